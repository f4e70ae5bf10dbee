# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A number that is not finite stops a training before it spoils anything, and its cause is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from nemo_tutornet import TutorError
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import student_config
from tests.integration.recorder import RKD, SKD, same, state_of


def _stopped(model: Any) -> str:
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(TutorError) as error:
        model.trainer.fit(model)
    after = dict(model.named_parameters())  # with those that exist in training only
    assert model.trainer.global_step == 0 and same(before, {name: after[name] for name in before})
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_audio_that_is_not_finite(corpus: Path, teacher_file, make_student, tmp_path: Path, value: float):
    samples, rate = soundfile.read(corpus / "train3.wav", dtype="float32")
    samples[1000] = value
    soundfile.write(tmp_path / "bad.wav", samples, rate, subtype="FLOAT")
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["audio_filepath"] = str(corpus / row["audio_filepath"])
    rows[3]["audio_filepath"] = str(tmp_path / "bad.wav")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for stage in (RKD, SKD):
        config = student_config(corpus, teacher_file, [stage])
        config["train_ds"].update(manifest_filepath=str(tmp_path / "train.jsonl"), batch_size=8)
        model = make_student(config, folder=tmp_path / stage["name"])
        message = _stopped(model)
        assert message.startswith("step 1: the loss is not finite (") and " nan" in message
        assert f"the audio has NaN or infinite values in {tmp_path / 'bad.wav'} from 0 s for " in message
        assert message.endswith("; fix the audio or leave it out.")
        assert not [*tmp_path.rglob("*.nemo"), *tmp_path.rglob("*.ckpt")], "nothing spoilt is saved"


def test_a_teacher_that_is_not_finite(corpus, teacher_file, make_student, monkeypatch):
    targets = LiveTeacher.targets

    def broken(self: LiveTeacher, batch: Any, request: Any) -> Any:
        given = targets(self, batch, request)
        log_probs = given.log_probs.clone()
        log_probs[1, 3] = float("nan")
        return replace(given, log_probs=log_probs)

    monkeypatch.setattr(LiveTeacher, "targets", broken)
    config = student_config(corpus, teacher_file, [SKD])
    config["train_ds"]["shuffle"] = False
    message = _stopped(make_student(config))
    assert f"the teacher's output has NaN or infinite values in {corpus / 'train1.wav'} from" in message


def test_a_student_that_diverged(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [{"name": "ctc", "weights": {"ctc": 1.0, "skd": 1.0}}])
    config["train_ds"].update(shuffle=False, batch_size=8)
    model = make_student(config)
    with torch.no_grad():
        model.decoder.decoder_layers[0].bias[:] = float("inf")
    with pytest.raises(TutorError) as error:
        model.trainer.fit(model)
    assert "so the student diverged, on " in str(error.value)
    assert f"{corpus / 'train0.wav'} from 0 s" in str(error.value) and "and 5 more" in str(error.value)


def test_a_run_without_nonsense_is_not_stopped(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file), max_epochs=1)
    model.trainer.fit(model)
    assert all(torch.isfinite(value).all() for value in state_of(model).values() if value.is_floating_point())
