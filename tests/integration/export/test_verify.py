# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The proof of an exported student, on good files and on damaged ones, and that exporting leaves its source
alone.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import TutorError, export_student, verify_student
from nemo_tutornet.cli import app
from nemo_tutornet.export.onnx_metadata import PRECISIONS
from nemo_tutornet.export.verify import PROBE_SECONDS, probe_signals
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.integration.students import STUDENTS, build


def state(model: Any) -> tuple:
    """Everything about a model that an export could change."""
    return (
        [(name, tensor.clone()) for name, tensor in model.state_dict().items()],
        [
            (name, p.requires_grad, None if p.grad is None else p.grad.clone())
            for name, p in model.named_parameters()
        ],
        [
            (name, module.training, getattr(module, "use_mask", None))
            for name, module in model.named_modules()
        ],
        OmegaConf.to_yaml(model.cfg),
    )


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def test_a_model_in_training_is_unchanged_by_its_export(model: Any, tmp_path: Path) -> None:
    before = copy.deepcopy(state(model))
    assert any(mask for _, _, mask in before[2]) and not all(asks for _, asks, _ in before[1])
    done = export_student(
        model,
        tmp_path / "student.nemo",
        onnx=tmp_path / "student.onnx",
        precisions=("fp32", "int8"),
        verify=True,
    )
    assert same(before, state(model))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "student.int8.onnx",
        "student.json",
        "student.nemo",
        "student.onnx",
    ]
    assert [graph.path for graph in done.onnx] == [tmp_path / "student.onnx", tmp_path / "student.int8.onnx"]
    shown = json.loads((tmp_path / "student.json").read_text())
    assert [entry["name"] for entry in shown["files"]] == [
        "student.nemo",
        "student.int8.onnx",
        "student.onnx",
    ]
    assert shown["student"]["class"] == done.target and shown["student"]["frame_ms"] == 20.0
    assert (
        shown["student"]["parameters"] == done.parameters
        and len(shown["student"]["vocabulary"]) == done.labels
    )
    names = [check["name"] for check in shown["checks"]]
    of_graphs = [
        f"student{suffix}: {what}"
        for suffix in (".onnx", ".int8.onnx")
        for what in ("graph", "agrees", "metadata")
    ]
    for expected in ("keys", "restore", "no plugin", "log-probabilities", *of_graphs):
        assert expected in names
    assert all(check["passed"] for check in shown["checks"])


def test_a_subword_model_in_memory_leaves_with_its_tokenizer(tmp_path: Path) -> None:
    model = restore_ctc(build("quartznet bpe", tmp_path))
    student = restore_ctc(export_student(model, tmp_path / "student.nemo").path)
    assert student.tokenizer.text_to_ids("ab cd") == model.tokenizer.text_to_ids("ab cd")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TutorError, match=r"a dict cannot be exported; give a .ckpt, a .nemo or a NeMo CTC model"
    ):
        export_student({}, tmp_path / "student.nemo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", list(STUDENTS))
def test_every_kind_of_student_passes(kind: str, tmp_path: Path) -> None:
    source = build(kind, tmp_path)
    graph = tmp_path / "out" / "student.onnx"
    done = export_student(
        source, graph.with_suffix(".nemo"), onnx=graph, precisions=PRECISIONS, sherpa=True, verify=True
    )
    assert done.verification is not None and done.verification.passed, done.verification
    facts = done.verification.facts
    assert facts["frame_ms"] == STUDENTS[kind].frame_ms
    assert (facts["kind"], facts["tokenizer"]) == (
        ("subword", "bpe") if kind.endswith("bpe") else ("character", None)
    )
    if facts["kind"] == "subword":
        left, came = (restore_ctc(path).tokenizer for path in (done.path, source))
        assert [left.text_to_ids(text) for text in ("ab cd", "aa c")] == [
            came.text_to_ids(text) for text in ("ab cd", "aa c")
        ]
        assert (
            str(tmp_path).encode() in source.read_bytes()
            and str(tmp_path).encode() not in done.path.read_bytes()
        )
    agrees = next(check for check in done.verification.checks if check.name == "student.onnx: agrees")
    assert ", ".join(str(int(seconds * 100)) for seconds in PROBE_SECONDS) in agrees.found


def test_a_process_that_dies_is_a_failed_check(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, -9, "", "first\nKilled\n")

    monkeypatch.setattr("nemo_tutornet.export.verify.subprocess.run", die)
    checks = verify_student(exported).checks
    assert (
        checks[-1].name == "restore"
        and checks[-1].found.endswith("ended with -9: Killed")
        and not checks[-1].passed
    )


def test_what_fails_its_verification_is_not_written(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student.nemo").write_bytes(b"old")
    # An export that forgets to clean up.
    monkeypatch.setattr("nemo_tutornet.export.student.stock_config", lambda config: config)
    with pytest.raises(
        TutorError, match=r"student.nemo failed its verification and was not written: config: .* tutor"
    ):
        export_student(
            _with_tutor(model), tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", verify=True
        )
    assert os.listdir(tmp_path) == ["student.nemo"] and (tmp_path / "student.nemo").read_bytes() == b"old"


def _with_tutor(model: Any) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel

    config = OmegaConf.create(OmegaConf.to_container(model.cfg))
    config.train_ds = config.validation_ds = None
    config.tutor = {"teacher": {"model_path": "teacher.nemo"}}
    return EncDecCTCModel(config)


def test_probes_are_the_same_each_time_and_of_odd_lengths() -> None:
    first, second = probe_signals(16000), probe_signals(16000)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and len(first) == 3
    assert any(len(signal) // 160 % 2 for signal in first) and max(signal.abs().max() for signal in first) < 1


# --- The command line


def test_export_and_verify_on_the_command_line(exported: Path, tmp_path: Path) -> None:
    student = tmp_path / "out" / "student.nemo"
    arguments = [
        "export",
        str(exported),
        str(student),
        "--onnx",
        str(student.with_suffix(".onnx")),
        "--fp16",
        "--verify",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if line.startswith(("writing", "verifying"))] == [
        "writing student.nemo",
        "writing student.onnx",
        "verifying student.nemo in a fresh process",
    ]
    assert "student.json: summary" in done.output and "fp16" in done.output and "WRONG" not in done.output

    check = ["verify", str(student), "--onnx", str(student.with_suffix(".onnx"))]
    received = CliRunner().invoke(app, check)
    assert received.exit_code == 0 and "student.json is as it was written" in " ".join(
        received.output.split()
    ), received.output

    student.write_bytes(student.read_bytes()[:-20000])
    received = CliRunner().invoke(app, check)
    assert received.exit_code == 2 and "Traceback" not in received.output
    assert (
        "student.nemo is not the file that was verified" in received.output
        and "it may be truncated" in received.output
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{file}", "{tmp}/s.nemo", "--onnx", "{tmp}/s.bin"], "s.bin must end in .onnx"),
        (["export", "{file}", "{tmp}/s.nemo", "--fp16"], "say where with --onnx OUT.onnx"),
        (["export", "{file}", "{tmp}/s.nemo", "--sherpa"], "say where with --onnx OUT.onnx"),
        (["verify", "{tmp}/none.nemo"], "there is no file"),
        (["verify", "{file}", "--onnx", "{tmp}/none.onnx"], "there is no file"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], words: str, exported: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [a.format(file=exported, tmp=tmp_path) for a in arguments])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert words in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
