# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Stages whose lengths are shares of the training: where they end, and what a longer training makes of
them.
"""

from __future__ import annotations

from typing import Any

import pytest

from nemo_tutornet.distill.warm_start import DecoderWarmStart
from nemo_tutornet.errors import TutorError
from tests.conftest import student_config
from tests.integration.recorder import RKD, SKD, Recorder

pytestmark = pytest.mark.integration

BATCHES = 4  # of an epoch of the corpus


def stages_run(model: Any, recorder: Recorder) -> list[float]:
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    return [step["tutor_stage"] for step in recorder.steps]


@pytest.mark.parametrize(
    "limits, share, first, steps",
    [
        ({"max_epochs": 2}, 0.3, 3, 8),  # 2.4 of 8 steps: it ends in the middle of an epoch
        ({"max_epochs": 3}, 1 / 3, BATCHES, 12),
        ({"max_epochs": 1}, 0.25, 1, 4),
        ({"max_epochs": -1, "max_steps": 6}, 0.5, 3, 6),
        ({"max_epochs": 100, "max_steps": 6}, 0.5, 3, 6),
        (
            {"max_epochs": 2, "accumulate_grad_batches": 2},
            0.3,
            4,
            8,
        ),  # batches; an optimizer step is not divided
    ],
)
def test_a_share_ends_where_it_should(corpus, teacher_file, make_student, limits, share, first, steps):
    recorder = Recorder()
    config = student_config(corpus, teacher_file, [RKD | {"share": share}, SKD])
    found = stages_run(make_student(config, callbacks=[recorder], **limits), recorder)
    assert found == [0.0] * first + [1.0] * (steps - first)


def test_a_run_that_is_made_longer_stays_in_its_stage(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    config = student_config(corpus, teacher_file, [RKD | {"share": 0.25}, SKD])
    recorder = Recorder()
    found = stages_run(make_student(config, folder=tmp_path, callbacks=[recorder], max_epochs=2), recorder)
    assert found == [0.0] * 2 + [1.0] * 6
    # A quarter of 16 epochs has not passed yet, but the decoder has been trained.
    again = Recorder()
    resumed = make_student(config, folder=tmp_path, callbacks=[again], max_epochs=16)
    monkeypatch.setattr(DecoderWarmStart, "apply", lambda *_: pytest.fail("over a trained decoder"))
    resumed.trainer.limit_train_batches = 1
    assert set(stages_run(resumed, again)) == {1.0}


def test_a_share_of_an_endless_training_is_refused(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [RKD | {"share": 0.25}, SKD])
    model = make_student(config, max_epochs=-1)
    with pytest.raises(TutorError, match=r"model\.tutor\.stages gives lengths as shares .* set one of them"):
        model.trainer.fit(model)
