# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/adapter.md with a small student: from a subword teacher to a character student."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from tests.conftest import write_manifest
from tests.integration import teacher_models
from tests.integration.documents.test_readme import ROOT, commands, run, shorter, smaller
from tests.integration.models import matrix
from tests.integration.students import write_tokenizer

PAGE = (ROOT / "docs" / "adapter.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds what the commands name."""
    for name in ("examples", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("train", "valid", "test"):
        write_manifest(tmp_path, name, [1.51, 1.6])
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    signals = (torch.randn(3, 16000), torch.tensor([16000, 12000, 16000]))
    kind = matrix.TEACHERS["fastconformer bpe"]
    teacher_models.save_kind(kind, tmp_path, tmp_path / "subwords.nemo", tokenizer, signals)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(command: str, *more: str) -> str:
    """Runs a command of `nemo-tutornet`; returns what it printed."""
    program, *arguments = shlex.split(smaller(command))
    assert program == "nemo-tutornet"
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 0 and "Traceback" not in done.output, done.output
    return done.stdout


def test_from_a_subword_teacher_to_a_character_student(folder):
    """The training is a process; the other commands run in this one, which has imported NeMo already."""
    teacher, adapter = commands("nemo-tutornet inspect", PAGE)
    assert "80 ms" in here(teacher)
    (adapt,) = commands("nemo-tutornet adapt", PAGE)
    made = here(adapt, "--epochs", "2")
    assert "20 ms frames (4 for each frame of the teacher)" in made
    assert "Train with model.tutor.teacher.adapter=adapter.safetensors" in " ".join(made.split())
    assert "28 labels and the blank, 20 ms frames" in here(adapter)
    (check,) = commands("nemo-tutornet check", PAGE)
    checked = json.loads(here(check, "--json"))
    assert checked["matches"]["decoder warm start"] == "yes"
    assert any(remark.startswith("The adapter's WER") for remark in checked["remarks"]) == (
        json.loads(here(adapter, "--json"))["wer"] > 1.15 * json.loads(here(adapter, "--json"))["teacher_wer"]
    )
    (train,) = [line for line in commands("python examples", PAGE) if "name=adapted" in line]
    run(smaller(shorter(train)), folder)
    (export,) = commands("nemo-tutornet export", PAGE)
    assert "student.nemo" in here(export)
    assert type(ASRModel.restore_from("student.nemo", map_location="cpu")) is EncDecCTCModel
    # The baseline is trained on another page.
    alone = Path("runs/alone/checkpoints/alone.nemo")
    alone.parent.mkdir(parents=True)
    alone.write_bytes(Path("student.nemo").read_bytes())
    (evaluate,) = commands("nemo-tutornet evaluate", PAGE)
    assert "WER %" in here(evaluate)


def test_audio_without_transcripts(folder):
    """docs/guides/untranscribed.md: an adapter writes the pseudo-labels, or its teacher does."""
    page = (ROOT / "docs" / "guides" / "untranscribed.md").read_text(encoding="utf-8")
    (folder / "subwords.nemo").rename(folder / "teacher.nemo")
    untranscribed = write_manifest(folder, "untranscribed", [1.4, 1.55])
    rows = [json.loads(line) for line in untranscribed.read_text().splitlines()]
    for row in rows:
        del row["text"]
    untranscribed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (adapt,) = commands("nemo-tutornet adapt", page)
    made = json.loads(here(adapt, "--epochs", "2", "--json"))
    assert made["utterances"] == 2 + made["pseudo_labelled"]
    (train,) = [line for line in commands("python examples", page) if "name=few" in line]
    run(smaller(shorter(train)), folder)
    assert (folder / "runs/few/checkpoints/few.nemo").is_file()
