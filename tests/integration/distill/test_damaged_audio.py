# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio whose header is whole and whose end is missing: every command names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from typer.testing import CliRunner

from nemo_tutornet import TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.distill.training_audio import training_audio
from tests.conftest import student_config, write_manifest

STAGES = [{"name": "ctc", "weights": {"ctc": 1.0, "rkd": 1.0}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`train.jsonl` and `valid.jsonl` of FLAC files, and `bad.jsonl` with two cut ones, the third and
    fourth.
    """
    folder = tmp_path_factory.mktemp("damaged")
    for name, count in (("train", 6), ("valid", 2)):
        rows = [
            json.loads(line)
            for line in write_manifest(folder, name, [0.9 + 0.1 * i for i in range(count)]).open()
        ]
        for row in rows:
            wav = folder / row["audio_filepath"]
            flac = wav.with_suffix(".flac")
            soundfile.write(flac, *soundfile.read(wav))
            row["audio_filepath"] = str(flac)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [json.loads(line) for line in (folder / "train.jsonl").open()]
    for row in rows[2:4]:
        whole = Path(row["audio_filepath"])
        cut = whole.with_name(f"cut_{whole.name}")
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        row["audio_filepath"] = str(cut)
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(folder, teacher, train="bad", valid="valid", workers=0):
    config = student_config(folder, teacher, STAGES if teacher else None)
    config["train_ds"].update(manifest_filepath=str(folder / f"{train}.jsonl"), num_workers=workers)
    config["validation_ds"]["manifest_filepath"] = str(folder / f"{valid}.jsonl")
    return config


def test_statistics_before_a_training_take_another_utterance(folder, make_student):
    student = make_student(config_of(folder, None))
    assert len(list(training_audio(student, 10))) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_replaced_while_they_are_few(workers, folder, make_student, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr("nemo.utils.logging.warning", lambda text, *_, **__: warnings.append(str(text)))
    config = config_of(folder, None, workers=workers)
    config["train_ds"].update(shuffle=False, batch_size=6)
    loader = make_student(config)._train_dl
    guard_audio(loader, "model.train_ds", 0.5)
    loader.dataset.return_sample_id = True
    for _ in range(2):
        (batch,) = loader
        assert batch[4].tolist() == [0, 1, 4, 4, 4, 5]
        assert torch.equal(batch[0][2], batch[0][4]) and batch[3].tolist() == [4] * 6
    assert loader.dataset._process_sample.damaged.tolist() == [False, False, True, True, False, False]
    if not workers:  # one warning for each file
        assert len(warnings) == 2 and "cut_train2.flac cannot be decoded" in warnings[0]
        assert warnings[1].endswith("the next utterance takes its place (damaged so far: 2 of 6).")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_with_many_stops_at_a_sentence(workers, folder, make_student, teacher_file):
    student = make_student(config_of(folder, teacher_file, workers=workers))
    with pytest.raises(TutorError) as error:
        student.trainer.fit(student)
    said = str(error.value)
    assert said.startswith("model.train_ds: ") and "\n" not in said
    assert "/cut_train" in said and ", and at most 1 % of 6 utterances may be; fix the file" in said


def test_a_config_may_allow_more(folder, make_student, teacher_file):
    config = config_of(folder, teacher_file)
    config["tutor"]["max_damaged_share"] = 0.5
    student = make_student(config, max_epochs=1, limit_val_batches=0)
    student.trainer.fit(student)
    assert int(student._train_dl.dataset._process_sample.damaged.sum()) == 2


def test_validation_never_goes_on_without_an_utterance(folder, make_student):
    student = make_student(config_of(folder, None, train="train", valid="bad"))
    with pytest.raises(TutorError, match=r"^model\.validation_ds: .*cut_train2\.flac cannot be decoded"):
        student.trainer.fit(student)


def test_check_cache_and_adapt_name_the_file(folder, teacher_file, tmp_path):
    config = config_of(folder, teacher_file)
    config["train_ds"].update(shuffle=False, batch_size=2)  # the first batch is whole
    (tmp_path / "student.yaml").write_text(
        yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2, "accelerator": "cpu"}})
    )
    where = ["--config-path", str(tmp_path), "--config-name", "student"]
    checked = json.loads(CliRunner().invoke(app, ["check", *where, "--json"]).stdout)
    assert not any("decoded" in remark for remark in checked["remarks"])
    decoded = json.loads(CliRunner().invoke(app, ["check", *where, "--decode", "--json"]).stdout)
    damaged = [remark for remark in decoded["remarks"] if "cannot be decoded" in remark]
    assert [f"cut_train{i}.flac" in remark for i, remark in zip((2, 3), damaged, strict=True)] == [True, True]
    for command in (["cache", "--output", "cache"], ["adapt", "--output", "a.safetensors"]):
        arguments = [*command[:2], str(tmp_path / command[2])]
        made = CliRunner().invoke(app, [*arguments, *where])
        assert made.exit_code == 2 and "cannot be decoded (" in " ".join(made.output.split())
        assert "/cut_train" in made.output and "Traceback" not in made.output
