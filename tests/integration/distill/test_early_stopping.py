# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Early stopping waits for a decoder; a training and an export without one say so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.distill.early_stopping import wait_for_decoder
from tests.conftest import student_config

STAGES = [{"name": "rkd", "epochs": 4, "weights": {"rkd": 1.0}}, {"name": "ctc", "weights": {"ctc": 1.0}}]


class Never(EarlyStopping):
    """Sees no improvement, as in a word error rate that stays at 1."""

    def _improvement_message(self, current):
        return ""

    def on_validation_end(self, trainer, pl_module):
        if trainer.state.fn == "fit" and not self._should_skip_check(trainer):
            self.seen.append(trainer.current_epoch)
        super().on_validation_end(trainer, pl_module)


@pytest.fixture
def stopping():
    callback = Never("val_wer", patience=1, min_delta=1000.0, mode="min")
    callback.seen = []
    return callback


@pytest.mark.parametrize("composed", [False, True])
def test_it_waits_while_the_decoder_is_neither_trained_nor_composed(
    composed, corpus, teacher_file, make_student, stopping
):
    config = student_config(corpus, teacher_file, STAGES, rkd={"warm_start_decoder": composed})
    student = make_student(config, max_epochs=8, callbacks=[stopping])
    student.trainer.fit(student)
    # The first validation that counts, and one more of patience.
    assert stopping.seen == ([0, 1] if composed else [4, 5])


def test_the_student_of_the_current_training_counts(stopping):
    """One callback serves two trainings one after the other."""
    skipped = []
    for random in (True, False, None):
        distiller = None if random is None else SimpleNamespace(decoder_is_random=random)
        trainer = SimpleNamespace(
            callbacks=[stopping],
            lightning_module=SimpleNamespace(distiller=distiller),
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            sanity_checking=False,
        )
        if distiller is not None:
            wait_for_decoder(trainer)
        skipped.append(stopping._should_skip_check(trainer))
    assert skipped == [True, False, False]


def test_a_training_that_ends_without_a_decoder_says_so(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr("nemo_tutornet.models.logging.warning", lambda text, *_, **__: said.append(str(text)))
    notes = []
    for composed in (True, False):
        config = student_config(corpus, teacher_file, STAGES[:1], rkd={"warm_start_decoder": composed})
        student = make_student(config, max_epochs=1)
        student.trainer.fit(student)
        path = tmp_path / f"{composed}.ckpt"
        student.trainer.save_checkpoint(path)
        done = CliRunner().invoke(app, ["export", str(path), str(path.with_suffix(".nemo"))])
        assert done.exit_code == 0, done.output
        notes.append("no stage had trained the decoder" in " ".join(done.output.split()))
    assert notes == [False, True]
    assert sum("No stage has trained the student's decoder" in text for text in said) == 1
