# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcripts that the student cannot write are told before a training, by every command that reads them."""

from __future__ import annotations

import json
import random
import tarfile
import unicodedata
from pathlib import Path

import pytest
import yaml
from lhotse import CutSet, Recording, SupervisionSegment
from typer.testing import CliRunner

from nemo_tutornet import TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.distill.transcripts import check_transcripts
from nemo_tutornet.nemo_io.missing_labels import is_lost_by, remedy_for
from tests.conftest import student_config

STAGES = [{"name": "ctc", "weights": {"ctc": 1.0, "rkd": 1.0}}]


@pytest.fixture
def spoken(corpus, tmp_path):
    """`spoken(train=[...], valid=[...])` writes manifests with these transcripts, and returns their
    folder.
    """

    def write(**texts: list[str]) -> Path:
        for name in ("train", "valid"):
            rows = [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]
            for row, text in zip(rows, texts.get(name, []), strict=False):
                row["text"] = text
            for row in rows:
                row["audio_filepath"] = str(corpus / row["audio_filepath"])
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_all_transcripts_that_can_be_written_make_no_sentence(corpus, make_student):
    assert check_transcripts(make_student(student_config(corpus, None))) == []


def test_each_kind_of_character_has_its_remedy(spoken, make_student):
    config = student_config(spoken(), None)
    student = make_student(config)
    lost, umlaut = is_lost_by(student), unicodedata.normalize("NFD", "ü")[1]
    for characters, remedy in {
        "AB": "write the transcripts in lower case",
        "7": "write numbers as words (for English, model.train_ds.normalize_transcripts=true does)",
        "\t\u00a0": "replace tabs and other white space by spaces",
        umlaut: "normalise the transcripts to NFC",
        "я": "add them to model.labels, or change the text",
    }.items():
        assert all(map(lost, characters)) and remedy_for(characters, student) == remedy
    assert not any(map(lost, "ab '"))
    config["train_ds"].update(parser="base")
    assert remedy_for("7", make_student(config)) == "write numbers as words"


def test_a_training_warns_and_trains(spoken, make_student, teacher_file, caplog, monkeypatch):
    folder = spoken(train=["AB c", "a\tb"], valid=["ab" * 60])
    said: list[str] = []
    monkeypatch.setattr("nemo_tutornet.models.logging.warning", lambda text, *_, **__: said.append(str(text)))
    student = make_student(student_config(folder, teacher_file, STAGES), max_epochs=1)
    student.trainer.fit(student)
    printed = [text for text in said if "transcripts" in text]
    assert len(printed) == 2
    assert printed[0].startswith(
        "model.train_ds: 2 of 8 transcripts hold characters that the student has no label"
    )
    assert printed[0].endswith(
        "write the transcripts in lower case; replace tabs and other white space by spaces."
    )
    assert printed[1].startswith(
        "model.validation_ds: 1 of 2 transcripts have more labels than the student has fr"
    )
    assert "120 labels, 47 frames" in printed[1]


def test_nothing_that_can_be_written_is_a_mistake(spoken, make_student, teacher_file):
    texts = ["AB C", "ÄÖ", "7"] * 3
    for part, teacher in (("train", teacher_file), ("valid", None)):
        student = make_student(student_config(spoken(**{part: texts}), teacher, STAGES if teacher else None))
        with pytest.raises(TutorError, match=r"(8 of 8|2 of 2) transcripts hold characters .*lower case"):
            student.trainer.fit(student)


def test_check_and_cache_warn(spoken, teacher_file, tmp_path):
    config = student_config(spoken(train=["AB c", "a\tb"]), teacher_file, STAGES)
    (tmp_path / "student.yaml").write_text(
        yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2, "accelerator": "cpu"}})
    )
    where = ["--config-path", str(tmp_path), "--config-name", "student"]
    checked = CliRunner().invoke(app, ["check", *where, "--json"])
    assert any(
        remark.startswith("model.train_ds: 2 of 8") for remark in json.loads(checked.stdout)["remarks"]
    )
    built = CliRunner().invoke(app, ["cache", *where, "--output", str(tmp_path / "cache")])
    assert built.exit_code == 0 and "2 of 8 transcripts hold characters" in " ".join(built.output.split())


@pytest.mark.parametrize("live", [False, True])
def test_adapt_warns_of_both_sets(live, spoken, teacher_file, tmp_path):
    config = student_config(spoken(train=["AB c"], valid=["a\tb"]), teacher_file, STAGES)
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2}}))
    where = ["--config-path", str(tmp_path), "--config-name", "student", "--epochs", "1"]
    where += ["--live"] if live else []
    made = CliRunner().invoke(app, ["adapt", *where, "--output", str(tmp_path / "adapter.safetensors")])
    said = " ".join(made.output.split())
    assert made.exit_code == 0 and "model.train_ds: 1 of 8 transcripts hold characters" in said
    assert "model.validation_ds: 1 of 2 transcripts hold characters" in said


def test_evaluate_names_what_a_model_never_writes(spoken, teacher_file):
    folder = spoken(valid=["AB c", "a7, b"])
    found = CliRunner().invoke(
        app, ["evaluate", str(teacher_file), "--manifest", str(folder / "valid.jsonl")]
    )
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert "teacher.nemo cannot write 4 characters of 2 of 2 transcripts" in words
    assert "'A' (1), 'B' (1), '7' (1), ',' (1); compare with --lowercase;" in words


@pytest.mark.parametrize("source", ["manifest", "tars", "cuts", "shar", "input_cfg"])
def test_sets_that_lhotse_reads(source, spoken, make_student, tmp_path):
    """Their transcripts are read without audio, and leave the random numbers of the training alone."""
    folder = spoken(train=["AB c", "ab" * 60], valid=[""] * 2)
    config = student_config(folder, None)
    train = config["train_ds"]
    train.update(use_lhotse=True, batch_size=2)
    if source in ("cuts", "shar"):
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        cuts = []
        for row in rows:
            cut = Recording.from_file(row["audio_filepath"]).to_cut()
            said = SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text=row["text"])
            cut.supervisions = [said]
            cuts.append(cut)
        train.pop("manifest_filepath")
        if source == "cuts":
            CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
            train["cuts_path"] = str(tmp_path / "cuts.jsonl.gz")
        else:
            (tmp_path / "shar").mkdir()
            CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", {"recording": "wav"})
            train["shar_path"] = str(tmp_path / "shar")
    elif source == "input_cfg":
        train["input_cfg"] = [{"type": "nemo", "manifest_filepath": train.pop("manifest_filepath")}]
    elif source == "tars":
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        with tarfile.open(tmp_path / "audio_0.tar", "w") as archive:
            for row in rows:
                archive.add(row["audio_filepath"], arcname=Path(row["audio_filepath"]).name)
        tarred = [{**row, "audio_filepath": Path(row["audio_filepath"]).name, "shard_id": 0} for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in tarred)
        (tmp_path / "tarred.jsonl").write_text(text, encoding="utf-8")
        train["manifest_filepath"] = str(tmp_path / "tarred.jsonl")
        train["tarred_audio_filepaths"] = str(tmp_path / "audio_0.tar")
    student = make_student(config, limit_train_batches=1)  # NeMo asks a stream for its length otherwise
    before = random.getstate()
    lost, long, silent = check_transcripts(student)
    assert random.getstate() == before
    assert lost.startswith("model.train_ds: 1 of 8 transcripts hold characters") and "'A' 'B'" in lost
    assert long.startswith("model.train_ds: 1 of 8 transcripts have more labels") and "120 labels" in long
    assert silent.startswith("model.validation_ds: none of its 2 utterances has a transcript")
    assert "nan" in silent
