# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of real (tiny) models, on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.commands import write_report as module
from nemo_tutornet.commands.write_report import collect_report, write_report
from nemo_tutornet.config import RKDConfig, TeacherConfig
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.report.posteriors import FrameReader
from nemo_tutornet.report.request import ReportRequest
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import LABELS, refusal, save_teacher, teacher_config, write_manifest
from tests.integration.report.runs import write_run


@pytest.fixture(scope="module")
def run(corpus: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "distilled", corpus, teacher_file)


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "alone", corpus, None, seed=1)
    return folder / "checkpoints" / "alone.nemo"


def test_a_report_of_a_run_with_its_teacher_and_a_baseline(
    run: Path, alone: Path, corpus: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    request = ReportRequest(run, corpus / "valid.jsonl", baseline=alone, output=tmp_path / "out")
    report, page = write_report(request, lambda what, *_: said.append(what))
    assert [model.role for model in report.models] == ["student", "baseline", "teacher"]
    assert [stage.name for stage in report.curves.stages] == ["rkd", "skd"]
    assert "val_wer" in report.baseline_curves.terms and report.change is not None
    assert any("validation set, by which an epoch" in note for note in report.notes)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out" / "report.html" and report.verdict in text.replace("&#39;", "'").replace(
        "\u00a0", " "
    )
    assert len(text) < 5_000_000
    names = {file.name for file in page.parent.iterdir()}
    assert {"figures.json", "models.light.png", "models.dark.png", "utterance_1.dark.png"} <= names
    assert {"curve_val_wer.light.png", "curve_train_loss.light.png"} <= names
    assert not any(name.startswith(".") for name in names), "a temporary folder is left"
    figures = json.loads((page.parent / "figures.json").read_text(encoding="utf-8"))
    assert figures["models"][0]["wer"] == report.models[0].evaluation.wer
    assert {"transcribing with the teacher", "comparing teacher and student", "drawing"} <= set(said)


def test_the_frames_are_those_of_the_models(run: Path, teacher_file: Path, corpus: Path) -> None:
    student = NemoArchive(run / "checkpoints" / "distilled.nemo")
    reader = FrameReader(student, TeacherConfig(model_path=str(teacher_file)), RKDConfig())
    row = read_manifest(corpus / "valid.jsonl")[0]
    frames = reader.read(row)
    assert reader.same_labels and frames.teacher is not None and frames.weights is not None
    assert (frames.teacher.frame, frames.student.frame, frames.weights.frame) == (0.04, 0.02, 0.02)
    for posteriors in (frames.teacher, frames.student):
        np.testing.assert_allclose(posteriors.probabilities.sum(axis=1), 1, atol=1e-5)
        assert len(posteriors.probabilities) * posteriors.frame == pytest.approx(row.duration, abs=0.05)
    # The tiny Conformer ends in a LayerNorm, so the weights are those of its blank on the student's frames.
    assert frames.weights.kind == "nonblank"
    assert frames.weights.values.mean() == pytest.approx(1, abs=1e-5)
    nearest = np.arange(len(frames.weights.values)) // 2
    blank = frames.teacher.probabilities[np.minimum(nearest, len(frames.teacher.probabilities) - 1), -1]
    raw = 1.05 - blank
    np.testing.assert_allclose(frames.weights.values, raw / raw.mean(), atol=0.02)
    alone = FrameReader(student, None, RKDConfig()).read(row)
    assert alone.teacher is None and alone.weights is None
    np.testing.assert_allclose(alone.student.probabilities, frames.student.probabilities, atol=1e-6)


def test_json_has_the_same_figures_and_writes_nothing(run: Path, alone: Path, corpus: Path) -> None:
    before = sorted(run.rglob("*"))
    arguments = ["report", str(run), str(alone), "--manifest", str(corpus / "valid.jsonl"), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--utterance", "valid1"])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("transcribing with the teacher: 0 of ") == 1
    figures = json.loads(done.stdout)
    assert [model["name"] for model in figures["models"]] == ["distilled student", "teacher", "alone"]
    assert [shown["name"] for shown in figures["utterances"]] == ["valid1"]
    assert figures["last_values"]["train_loss"] == 1.0 and figures["change"] is None
    assert figures["missing"]["by_speaker"] == (
        "There is no WER by speaker, because the manifest has no field `speaker`."
    )
    assert sorted(run.rglob("*")) == before


def test_a_file_alone_has_neither_curves_nor_a_teacher(alone: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.nemo"
    file.write_bytes(alone.read_bytes())
    report, page = write_report(ReportRequest(file, corpus / "valid.jsonl"))
    assert page == tmp_path / "student-report" / "report.html"
    assert [model.role for model in report.models] == ["student"] and report.offsets is None
    text = page.read_text(encoding="utf-8")
    for sentence in (
        "There are no curves, because a .nemo file was given",
        "There is no teacher, so the pictures show the student alone.",
        "There are no spike offsets, because there is no teacher",
    ):
        assert sentence in text


def test_a_teacher_that_is_gone_is_said(corpus: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gone", corpus, tmp_path / "none.nemo")
    report = collect_report(ReportRequest(run, corpus / "valid.jsonl"), pictures=False)
    assert [model.role for model in report.models] == ["student"]
    assert any(f"teacher ({tmp_path / 'none.nemo'}) is not here" in note for note in report.notes)


def test_other_labels_have_no_offsets_but_weights(run: Path, corpus: Path, tmp_path: Path) -> None:
    teacher = save_teacher(teacher_config(corpus, list("abcdefgh ")), tmp_path / "other.nemo")
    report = collect_report(ReportRequest(run, corpus / "valid.jsonl", teacher=teacher))
    assert report.offsets is None and "different labels" in report.missing["offsets"]
    frames = report.shown[0].frames
    assert frames is not None and frames.teacher is not None and frames.weights is not None


def test_a_transducer_is_decoded_by_itself(run: Path, corpus: Path, tmp_path: Path) -> None:
    from tests.integration import teacher_models
    from tests.integration.models import matrix

    signals = (torch.randn(3, 16000), torch.tensor([16000, 12000, 16000]))
    teacher = tmp_path / "transducer.nemo"
    teacher_models.save_kind(matrix.TEACHERS["transducer"], tmp_path, teacher, tmp_path, signals)
    report = collect_report(ReportRequest(run, corpus / "valid.jsonl", teacher=teacher))
    result = report.model("teacher")
    assert result is not None and result.evaluation.real_time_factor > 0 and len(result.hypotheses) == 2
    assert "has no CTC head" in report.missing["offsets"]
    frames = report.shown[0].frames
    assert frames is not None and frames.teacher is None and frames.weights is not None


def test_a_teacher_with_an_adapter_is_shown_with_and_without_it(
    run: Path, teacher_file: Path, corpus: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    head = AdapterHead(teacher_width=24, width=8, upsampling=2, outputs=len(LABELS) + 1)
    info = AdapterInfo(
        labels=tuple(LABELS),
        frame_ms=20.0,
        upsampling=2,
        teacher_width=24,
        width=8,
        teacher_outputs=0,
        teacher_sha256=sha256_of(teacher_file),
        teacher_class="EncDecCTCModel",
        wer=0.5,
        teacher_wer=0.5,
        utterances=2,
    )
    adapter = tmp_path / "adapter.safetensors"
    Adapter(head, info).save(adapter)
    request = ReportRequest(run, corpus / "valid.jsonl", adapter=adapter)
    report = collect_report(request)
    names = [(model.name, model.role) for model in report.models]
    assert names[1:] == [("teacher with adapter", "teacher"), ("teacher alone", "other")]
    adapted, alone = report.models[1:]
    extra = sum(parameter.numel() for parameter in head.parameters())
    assert adapted.evaluation.parameters - alone.evaluation.parameters == extra
    size = adapter.stat().st_size / 1e6
    assert adapted.evaluation.megabytes - alone.evaluation.megabytes == pytest.approx(size)
    frames = report.shown[0].frames
    assert frames is not None and frames.teacher is not None and frames.teacher.frame == 0.02
    heard = "".join(spike.label for spike in frames.teacher.spikes)
    assert adapted.hypotheses[report.rows.index(report.shown[0].row)].split() == heard.split()
    assert report.offsets is not None and "its teacher with adapter has" in report.verdict

    other = save_teacher(teacher_config(corpus, list("abcdefgh ")), tmp_path / "other.nemo")
    wrong = ReportRequest(run, corpus / "valid.jsonl", teacher=other, adapter=adapter)
    assert "which was made for another teacher" in refusal(collect_report, wrong)


def printed(*arguments: object) -> str:
    """The one line of a mistake on the command line."""
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    return " ".join(done.output.split())


def test_mistakes_on_the_command_line(
    run: Path, alone: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ["--manifest", corpus / "valid.jsonl"]
    evaluated: list[Sequence[object]] = []
    monkeypatch.setattr(module, "evaluate_model", lambda *given: evaluated.append(given))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "file").touch()
    assert "there is no manifest" in printed(run, "--manifest", tmp_path / "none.jsonl")
    assert "has no utterance" in printed(run, "--manifest", tmp_path / "empty.jsonl")
    assert "there is no folder" in printed(tmp_path / "none", *manifest)
    assert "has no checkpoints/NAME.nemo" in printed(tmp_path, *manifest)
    assert "there is no file" in printed(run, tmp_path / "none.onnx", *manifest)
    assert "none.nemo" in printed(run, *manifest, "--teacher", tmp_path / "none.nemo")
    (tmp_path / "teacher.onnx").touch()
    assert "teacher.onnx" in printed(run, *manifest, "--teacher", tmp_path / "teacher.onnx")
    assert "without its teacher" in printed(alone, *manifest, "--adapter", tmp_path / "none.safetensors")
    assert "--utterance nobody" in printed(run, *manifest, "--utterance", "nobody")
    assert "--adapter is" in printed(run, *manifest, "--adapter", tmp_path / "none.safetensors")
    assert "--output" in printed(run, *manifest, "--output", tmp_path / "file")
    student = run / "checkpoints" / "distilled.nemo"
    assert "the same file twice" in printed(run, *manifest, "--baseline", student)
    many = [item for i in range(module.MOST_SHOWN + 1) for item in ("--utterance", f"u{i}")]
    assert f"at most {module.MOST_SHOWN} utterances" in printed(run, *manifest, *many)
    assert not evaluated, "a mistake should not cost the time of an evaluation"


def test_audio_that_ends_early_is_reported(run: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "cut", [1.0, 1.0])
    soundfile.write(tmp_path / "cut1.flac", soundfile.read(tmp_path / "cut1.wav")[0], 16000)
    damaged = bytearray((tmp_path / "cut1.flac").read_bytes())
    damaged[200:] = bytes(len(damaged) - 200)
    (tmp_path / "cut1.flac").write_bytes(damaged)
    manifest.write_text(manifest.read_text().replace("cut1.wav", "cut1.flac"))
    message = refusal(collect_report, ReportRequest(run, manifest))
    assert "cut1.flac cannot be read to its end" in message


def test_without_the_extra_the_command_names_it(
    run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "jinja2" else found(name))
    message = refusal(write_report, ReportRequest(run, corpus / "valid.jsonl"))
    assert "jinja2" in message and 'pip install "nemo_tutornet[report]"' in message
