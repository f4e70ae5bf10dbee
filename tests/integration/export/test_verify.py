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
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import TutorCTCModel, TutorError, export_student, verify_student
from nemo_tutornet.cli import app
from nemo_tutornet.export import verify_worker
from nemo_tutornet.export.onnx_metadata import PRECISIONS
from nemo_tutornet.export.summary import Verification
from nemo_tutornet.export.verify import PROBE_SECONDS, probe_signals
from nemo_tutornet.nemo_io.isolation import preserve_app_state
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import student_config
from tests.integration.students import STUDENTS, build


@pytest.fixture(scope="module")
def model(corpus: Path) -> Any:
    """A student in the middle of a training: train mode, gradients, a frozen layer."""
    torch.manual_seed(0)
    model = TutorCTCModel(OmegaConf.create({"model": student_config(corpus, corpus / "teacher.nemo")}).model)
    model.train()
    signals = torch.randn(2, 16000)
    model(input_signal=signals, input_signal_length=torch.tensor([16000, 12000]))[0].sum().backward()
    next(model.encoder.parameters()).requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student.nemo` and `student.onnx`."""
    folder = tmp_path_factory.mktemp("exported")
    return export_student(model, folder / "student.nemo", onnx=folder / "student.onnx").path


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
    told = json.loads((tmp_path / "student.json").read_text())
    assert [entry["name"] for entry in told["files"]] == ["student.nemo", "student.int8.onnx", "student.onnx"]
    assert told["student"]["class"] == done.target and told["student"]["frame_ms"] == 20.0
    assert (
        told["student"]["parameters"] == done.parameters and len(told["student"]["vocabulary"]) == done.labels
    )
    names = [check["name"] for check in told["checks"]]
    of_graphs = [
        f"student{suffix}: {what}"
        for suffix in (".onnx", ".int8.onnx")
        for what in ("graph", "agrees", "metadata")
    ]
    for expected in ("keys", "restore", "no plugin", "log-probabilities", *of_graphs):
        assert expected in names
    assert all(check["passed"] for check in told["checks"])


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


# --- Damage


def repack(source: Path, destination: Path, change: Callable[[dict, dict], None]) -> Path:
    """The same archive with another config or state."""
    folder = destination.with_suffix("")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    config = yaml.safe_load((folder / "model_config.yaml").read_text(encoding="utf-8"))
    weights = torch.load(folder / "model_weights.ckpt", weights_only=True)
    change(config, weights)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.save(weights, folder / "model_weights.ckpt")
    with tarfile.open(destination, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=f"./{path.name}")
    return destination


def verified(
    student: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[Path] | None = None, reference: Any = None
) -> Verification:
    """The other process's program runs in this one, where it takes seconds less."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        with preserve_app_state():  # in a process of its own, whatever fails in it leaves nothing
            verify_worker.main(*command[2:])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("nemo_tutornet.export.verify.subprocess.run", run)
    return verify_student(student, graphs or [], reference)


def failures(
    student: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[Path] | None = None, reference: Any = None
) -> list[str]:
    checks = verified(student, monkeypatch, graphs, reference).checks
    return [
        f"{check.name}: {check.found}" for check in checks if not check.passed and check.name != "no plugin"
    ]


def shorter_labels(config: dict, weights: dict) -> None:
    config["labels"] = config["labels"][:-1]
    config["decoder"].update(vocabulary=config["labels"], num_classes=len(config["labels"]))


def other_labels(config: dict, weights: dict) -> None:
    config["labels"] = config["labels"][::-1]


NO_RATE = "sample rate: the config's sample_rate is no number of samples per second from 1000 to 192000"


def no_front_end(config: dict, weights: dict) -> None:
    del config["sample_rate"]
    config["preprocessor"] = 3


DAMAGE: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
    "a key missing": (
        lambda c, w: w.pop("decoder.decoder_layers.0.bias"),
        "keys: NeMo's decoder.decoder_layers.0.bias is missing in the file",
    ),
    "a key too many": (
        lambda c, w: w.update(teacher=torch.zeros(1)),
        "keys: teacher is in the file but not NeMo's",
    ),
    "another shape": (
        lambda c, w: w.update({"encoder.encoder.2.mconv.0.conv.weight": torch.zeros(20, 16, 3)}),
        "encoder.encoder.2.mconv.0.conv.weight is of another shape ([20, 16, 3] in the file, [16, 1, 1] in "
        "NeMo's)",
    ),
    "fewer labels": (
        shorter_labels,
        "labels: the config has 10 labels, but the decoder's weights give 12 outputs (11 and the blank)",
    ),
    "labels in disorder": (
        other_labels,
        "labels: the config's labels are not those of its decoder.vocabulary",
    ),
    "the plugin's class": (
        lambda c, w: c.update(target="nemo_tutornet.models.TutorCTCModel"),
        "target: the config's target is nemo_tutornet.models.TutorCTCModel, but a student is one of NeMo's",
    ),
    "no class": (lambda c, w: c.pop("target"), "target: the config's target is nothing"),
    "a teacher's trace": (
        lambda c, w: c.update(tutor={"teacher": 1}),
        "config: the config still tells of the training: tutor",
    ),
    "a path": (lambda c, w: c["optim"].update(init="/data/x.bin"), "the training: optim.init=/data/x.bin"),
    "a path as a URL": (
        lambda c, w: c["optim"].update(init="file:///data/x.bin"),
        "the training: optim.init=file:///data/x.bin",
    ),
    "a path under a number": (lambda c, w: c.update({7: "/data/x.bin"}), "the training: 7=/data/x.bin"),
    "data": (
        lambda c, w: c["train_ds"].update(cuts_path="a.jsonl"),
        "the training: train_ds.cuts_path=a.jsonl",
    ),
    "a lost artifact": (
        lambda c, w: c.update(lexicon="nemo:abc_lexicon.txt"),
        "artifacts: the config names abc_lexicon.txt, which the archive does not hold",
    ),
    "not a number": (
        lambda c, w: w["decoder.decoder_layers.0.bias"].fill_(float("nan")),
        "finite: log-probabilities on 0.80, 1.71, 3.33 s are not finite",
    ),
    "unbuildable": (
        lambda c, w: c["encoder"].update(activation="none"),
        "builds: stock NeMo cannot build a model from the file's config",
    ),
    "a class that is not there": (
        lambda c, w: c.update(target="${nowhere}"),
        "target: the config's target is a class that its",
    ),
    "no front end": (no_front_end, "builds: stock NeMo cannot build a model from the file's config"),
    **{
        f"a rate of {rate}": (lambda c, w, rate=rate: c.update(sample_rate=rate), NO_RATE)
        for rate in ("abc", -5, [1], 10**12, "${nowhere}")
    },
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_each_damage_has_its_sentence(
    damage: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = DAMAGE[damage]
    damaged = repack(exported, tmp_path / "damaged.nemo", change)
    found = failures(damaged, monkeypatch)
    assert any(words in failure for failure in found), found
    assert len(found) == 1


def test_an_undamaged_repack_passes(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = {
        "kenlm_path": "",
        "drop_path": 0.1,
        "lexicon_path": None,
    }  # the names of paths, and none of them one
    again = repack(exported, tmp_path / "again.nemo", lambda c, w: c["optim"].update(harmless))
    assert failures(again, monkeypatch, [exported.with_suffix(".onnx")]) == []


def test_a_tokenizer_that_tells_of_its_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = [
        f for f in failures(build("quartznet bpe", tmp_path), monkeypatch) if f.startswith("tokenizer")
    ]
    assert (
        f"the tokenizer still contains paths of its training: {tmp_path}/tokenizer/text.txt, "
        f"{tmp_path}/tokenizer/tokenizer" in found
    )


def test_truncated_and_foreign_archives(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.nemo"
    cut.write_bytes(exported.read_bytes()[:-20000])
    assert (
        "archive: " in failures(cut, monkeypatch)[0]
        and "not a readable .nemo file" in failures(cut, monkeypatch)[0]
    )
    empty = repack(exported, tmp_path / "empty.nemo", lambda c, w: None)
    with tarfile.open(empty, "w") as archive:
        archive.add(tmp_path / "empty" / "model_config.yaml", arcname="./model_config.yaml")
    assert failures(empty, monkeypatch) == ["weights: the archive has no model_weights.ckpt"]
    (tmp_path / "empty" / "model_weights.ckpt").write_bytes(b"no pickle")
    with tarfile.open(empty, "w") as archive:
        for path in (tmp_path / "empty").iterdir():
            archive.add(path, arcname=f"./{path.name}")
    assert "weights: model_weights.ckpt cannot be read" in failures(empty, monkeypatch)[0]


def test_other_weights_than_the_source(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repack(
        exported,
        tmp_path / "other.nemo",
        lambda c, w: w["decoder.decoder_layers.0.bias"].add_(torch.randn(12)),
    )
    reference = restore_ctc(exported)
    assert failures(exported, monkeypatch, reference=reference) == []
    (found,) = failures(other, monkeypatch, reference=reference)
    assert found.startswith("log-probabilities: largest difference from the source")

    def sick(input_signal: Any, input_signal_length: Any) -> Any:
        """Not a number on one probe of three, and not on the first."""
        log_probs, *rest = reference(input_signal=input_signal, input_signal_length=input_signal_length)
        return log_probs * (
            float("nan") if input_signal.shape[1] == int(PROBE_SECONDS[1] * 16000) else 1
        ), *rest

    (found,) = failures(exported, monkeypatch, reference=sick)
    assert found.startswith("log-probabilities: largest difference from the source inf")


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
    monkeypatch.setattr(
        "nemo_tutornet.export.student.stock_config", lambda config: config
    )  # an export that forgets to clean up
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
