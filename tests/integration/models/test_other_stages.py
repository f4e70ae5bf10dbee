# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that is resumed with other stages than it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_tutornet.distill.warm_start import DecoderWarmStart
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from tests.conftest import student_config
from tests.integration.recorder import RKD, SKD, Recorder

CTC = {"name": "ctc", "weights": {"ctc": 1.0}}


def run(make_student: Any, config: dict[str, Any], folder: Path, epochs: int) -> list[float]:
    """Trains, or goes on, and gives the stage of each step."""
    recorder = Recorder()
    model = make_student(config, folder=folder, max_epochs=epochs, callbacks=[recorder])
    model.trainer.limit_train_batches = 1
    model.trainer.fit(model)
    return [step["tutor_stage"] for step in recorder.steps]


@pytest.fixture
def in_skd(corpus, teacher_file, make_student, tmp_path) -> Path:
    """The folder of a run that ended in `skd`, its third stage."""
    stages = [RKD | {"epochs": 1}, CTC | {"epochs": 1}, SKD]
    assert run(make_student, student_config(corpus, teacher_file, stages), tmp_path, 3) == [0.0, 1.0, 2.0]
    (last,) = tmp_path.rglob("*-last.ckpt")
    tutor = load_lightning_checkpoint(last)["tutor"]
    assert tutor["stage"] == "skd"
    return tmp_path


@pytest.mark.parametrize(
    "stages, found",
    [
        ([RKD | {"epochs": 1}, SKD], [1.0, 1.0]),
        # By the number the run would be in `more`.
        ([RKD | {"epochs": 1}, CTC | {"epochs": 1}, RKD | {"name": "more", "epochs": 4}, SKD], [3.0, 3.0]),
        ([SKD | {"epochs": 4}, RKD | {"epochs": 1}, CTC], [0.0, 1.0]),
    ],
)
def test_it_goes_on_in_the_stage_of_that_name(corpus, teacher_file, make_student, in_skd, stages, found):
    assert run(make_student, student_config(corpus, teacher_file, stages), in_skd, 5) == found


def test_a_decoder_that_a_dropped_stage_trained_is_not_overwritten(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    more = RKD | {"name": "more"}
    run(make_student, student_config(corpus, teacher_file, [CTC | {"epochs": 1}, more]), tmp_path, 2)
    resumed = make_student(student_config(corpus, teacher_file, [more]), folder=tmp_path, max_epochs=3)
    monkeypatch.setattr(DecoderWarmStart, "apply", lambda *_: pytest.fail("over a trained decoder"))
    resumed.trainer.fit(resumed)
    assert resumed.distiller.stage == 0


def test_a_stage_that_is_gone_is_refused(corpus, teacher_file, make_student, in_skd):
    stages = [RKD | {"epochs": 1}, CTC]
    with pytest.raises(
        TutorError,
        match=r"^the checkpoint was saved in stage 'skd', but model\.tutor\.stages has only 'rkd', 'ctc'; ",
    ):
        run(make_student, student_config(corpus, teacher_file, stages), in_skd, 5)
