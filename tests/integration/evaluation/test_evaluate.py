# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Models side by side in NeMo and in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.parts.preprocessing import features
from typer.testing import CliRunner

from nemo_tutornet import TutorError, export_student
from nemo_tutornet.cli import app
from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.evaluation.error_rates import count_errors
from nemo_tutornet.evaluation.scoring import Evaluation, no_faster
from nemo_tutornet.evaluation.transcribe import transcribe
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.weights import weights_sha256
from tests.conftest import student_config
from tests.integration.students import build


def test_evaluate_on_the_command_line(corpus, make_student, tmp_path):
    model = make_student(student_config(corpus, None))
    student = tmp_path / "student.nemo"
    model.save_to(str(student))
    arguments = ["evaluate", str(student), str(student), "--manifest", str(corpus / "valid.jsonl")]
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    assert (
        "WER %" in table.output
        and f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in table.output
    )
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert printed.stderr.splitlines() == 2 * [
        f"loading {student}",
        f"transcribing with {student}: 0 of 2 utterances",
    ]
    first, second = json.loads(printed.stdout)
    assert first["wer"] == second["wer"] and first["utterances"] == 2 and first["reference_words"] == 4
    texts = [
        output.text
        for output in model.transcribe([str(corpus / f"valid{i}.wav") for i in range(2)], verbose=False)
    ]
    wrong = [count_errors(r, h) for r, h in zip(["aa c", "bb d"], texts, strict=True)]
    assert first["wer"] == sum(e.substitutions + e.deletions + e.insertions for e in wrong) / 4
    assert first["real_time_factor"] > 0 and first["wer_low"] <= first["wer"] <= first["wer_high"]


def test_each_batch_is_reported(corpus: Path, tmp_path: Path) -> None:
    model = restore_ctc(build("quartznet", tmp_path))
    done: list[int] = []
    transcribe(model, read_manifest(corpus / "train.jsonl"), 3, report=done.append)
    assert done == [3, 6, 8]


def test_an_unpacked_model_is_as_large_as_its_files(corpus: Path, teacher_file: Path, tmp_path: Path) -> None:
    with tarfile.open(teacher_file) as archive:
        archive.extractall(tmp_path / "teacher", filter="data")
    sizes = [path.stat().st_size for path in (tmp_path / "teacher").iterdir()]
    assert len(sizes) > 1
    arguments = [
        "evaluate",
        str(teacher_file),
        str(tmp_path / "teacher"),
        "--manifest",
        str(corpus / "valid.jsonl"),
        "--json",
    ]
    packed, unpacked = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (packed["megabytes"], unpacked["megabytes"]) == (
        teacher_file.stat().st_size / 1e6,
        sum(sizes) / 1e6,
    )
    assert packed["wer"] == unpacked["wer"]


def test_short_audio_is_transcribed_as_nemo_transcribes_its_file(corpus: Path, tmp_path: Path) -> None:
    model = restore_ctc(build("quartznet", tmp_path))
    rows = read_manifest(corpus / "train.jsonl")
    assert min(row.duration for row in rows) < 0.7
    files = [str(row.audio) for row in rows]
    expected = [output.text for output in model.transcribe(files, batch_size=1, verbose=False)]
    assert transcribe(model, rows, 4)[0] == expected and len(set(expected)) > 2


def test_a_single_frame_on_a_machine_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = restore_ctc(build("quartznet", tmp_path))
    soundfile.write(tmp_path / "a.wav", np.full(200, 0.1), 16000)
    rows = [Utterance(tmp_path / "a.wav", 200 / 16000, "a")]
    assert transcribe(model, rows, 1)[0][0].strip(), "without a GPU NeMo takes it"
    monkeypatch.setattr(features, "torch", SimpleNamespace(**{**vars(torch), "cuda": OneGpu()}))
    with pytest.raises(TutorError, match=r"a single frame of audio \(10 to 20 ms\).*with --runtime onnx\.$"):
        transcribe(model, rows, 1)


class OneGpu:
    """What NeMo's front end asks of `torch.cuda`."""

    is_available = staticmethod(lambda: True)
    is_current_stream_capturing = staticmethod(lambda: False)


def test_evaluate_in_onnx_runtime(corpus: Path, tmp_path: Path) -> None:
    """A `.nemo` runs in each precision, an `.onnx` as it is; both make the same errors as NeMo."""
    source = build("quartznet bpe", tmp_path)
    graph = export_student(source, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx").onnx[0].path
    arguments = ["evaluate", str(source), str(graph), "--manifest", str(corpus / "valid.jsonl"), "--json"]
    nemo, alone = json.loads(CliRunner().invoke(app, arguments).stdout)
    printed = CliRunner().invoke(app, [*arguments, "--runtime", "onnx"])
    assert printed.exit_code == 0, printed.output
    rows = json.loads(printed.stdout)
    assert [row["runtime"] for row in rows] == ["onnx fp32", "onnx fp16", "onnx int8", "onnx fp32"]
    assert (nemo["runtime"], alone["runtime"]) == ("nemo", "onnx fp32")
    assert [row["model"] for row in rows] == [str(source)] * 3 + [str(graph)]
    counts = ("wer", "cer", "substitutions", "deletions", "insertions", "reference_words", "parameters")
    counts = (*counts, "weights_sha256", "manifest")
    assert nemo["weights_sha256"] == weights_sha256(restore_ctc(graph.with_suffix(".nemo")))
    for row in (alone, rows[0], rows[3]):
        assert {name: row[name] for name in counts} == {name: nemo[name] for name in counts}
    assert rows[1]["megabytes"] < rows[0]["megabytes"] and all(row["real_time_factor"] > 0 for row in rows)
    one = CliRunner().invoke(app, [*arguments, "--runtime", "onnx", "--precision", "int8"])
    assert [row["runtime"] for row in json.loads(one.stdout)] == ["onnx int8", "onnx fp32"]
    calibrated = ["--runtime", "onnx", "--precision", "int8", "--calibrate", str(corpus / "train.jsonl")]
    one = CliRunner().invoke(app, [*arguments, *calibrated])
    assert [row["runtime"] for row in json.loads(one.stdout)] == [
        "onnx int8",
        "onnx int8 static",
        "onnx fp32",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{nemo}", "--runtime", "tensorrt"], "there is no runtime 'tensorrt'; choose one of nemo, onnx."),
        (
            ["{nemo}", "--runtime", "onnx", "--precision", "int4"],
            "there is no ONNX precision int4; choose from fp32",
        ),
        (["{nemo}", "--calibrate", "{tmp}/m.jsonl"], "calibrates static int8, which is not evaluated here"),
        (["{tmp}/none.onnx"], "there is no file"),
        (["{tmp}/cut.onnx"], "is not a readable .onnx file"),
    ],
)
def test_mistakes_in_what_to_evaluate(
    arguments: list[str], words: str, corpus: Path, teacher_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"half a graph")
    given = [argument.format(nemo=teacher_file, tmp=tmp_path) for argument in arguments]
    result = CliRunner().invoke(app, ["evaluate", *given, "--manifest", str(corpus / "valid.jsonl")])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert words in " ".join(result.output.split())


def test_a_small_model_that_is_no_faster_is_named() -> None:
    base = dict.fromkeys((field.name for field in dataclasses.fields(Evaluation)), 0)

    def result(model: str, runtime: str, parameters: int, factor: float) -> Evaluation:
        return Evaluation(
            **{
                **base,
                "model": model,
                "runtime": runtime,
                "parameters": parameters,
                "real_time_factor": factor,
            }
        )

    teacher, slow = (
        result("teacher.nemo", "nemo", 13_000_000, 0.01),
        result("slow.nemo", "nemo", 6_500_000, 0.02),
    )
    assert no_faster([teacher, slow]) == [
        "slow.nemo has 2.0 x fewer parameters than teacher.nemo, but is no faster here (nemo): RTF 0.0200 "
        "against 0.0100."
    ]
    fast, elsewhere = (
        result("fast.nemo", "nemo", 6_500_000, 0.009),
        result("slow.nemo", "onnx fp32", 6_500_000, 0.02),
    )
    assert no_faster([teacher, fast, elsewhere, teacher]) == []
    adapted = result("teacher.nemo", "nemo", 14_000_000, 0.005)  # the same file, evaluated with an adapter
    assert no_faster([teacher, adapted]) == []


def test_rows_without_a_transcript_are_left_out(corpus: Path, teacher_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs [" / "x]"  # the table must not take it for markup
    folder.mkdir(parents=True)
    model = Path(shutil.copy(teacher_file, folder / "teacher.nemo"))
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "audio_filepath": str(corpus / row["audio_filepath"])} for row in rows]
    silent = {**rows[0], "text": ""}  # which does count: whatever is heard there is an insertion
    untranscribed = {key: value for key, value in rows[0].items() if key != "text"}
    printed = {}
    for name, written in {
        "all": [*rows, silent],
        "mixed": [untranscribed, *rows, silent, untranscribed],
    }.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
        (printed[name],) = json.loads(
            CliRunner().invoke(app, ["evaluate", str(model), "--manifest", str(path), "--json"]).stdout
        )
    assert (printed["all"].pop("untranscribed"), printed["mixed"].pop("untranscribed")) == (0, 2)
    assert [one.pop("manifest") for one in printed.values()] == ["all.jsonl", "mixed.jsonl"]
    assert [one.pop("real_time_factor") > 0 for one in printed.values()] == [True, True]
    assert printed["all"] == printed["mixed"] and printed["all"]["utterances"] == len(rows) + 1
    table = CliRunner().invoke(app, ["evaluate", str(model), "--manifest", str(tmp_path / "mixed.jsonl")])
    assert table.exit_code == 0, table.output
    assert "2 rows of the manifest have no transcript and were left out." in table.stdout
    assert "[/x]" in "".join(table.stdout.split())


def test_several_channels_are_refused(corpus: Path, tmp_path: Path) -> None:
    """Their mean made 92.9 % of a WER of 17.9 %. One file of the manifest is enough, and it is named."""
    model = build("quartznet", tmp_path)
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    audio, rate = soundfile.read(corpus / rows[1]["audio_filepath"])
    soundfile.write(tmp_path / "call.wav", np.stack([audio, audio[::-1]], axis=1), rate)
    rows = [
        {**rows[0], "audio_filepath": str(corpus / rows[0]["audio_filepath"])},
        {**rows[1], "audio_filepath": "call.wav"},
    ]
    manifest = tmp_path / "calls.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for command in (["evaluate", str(model)], ["report", str(model), "--output", str(tmp_path / "page")]):
        printed = CliRunner().invoke(app, [*command, "--manifest", str(manifest)])
        assert printed.exit_code == 2 and "line 2: " in printed.output, printed.output
        assert "call.wav has 2 channels" in printed.output and "mono file" in printed.output
    with pytest.raises(TutorError, match=r"call\.wav has 2 channels, but an ASR model reads one; write"):
        read_samples(Utterance(tmp_path / "call.wav", 0.5, "a"), rate)
