# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixed waveforms (`tutor.mixup`) with a live teacher."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from tests.conftest import student_config
from tests.integration.recorder import Recorder, same, state_of

STAGES = [
    {"name": "ctc", "steps": 2, "weights": {"ctc": 1.0}},
    {"name": "all", "weights": {"ctc": 1.0, "rkd": 1.0, "skd": 0.25}},
]
HALF = {"share": 0.5}


class Heard(Recorder):
    """The audio of teacher and student in each training step, and the transcripts that CTC reads."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(stop)
        self.loaded: list[Any] = []
        self.student: list[Any] = []
        self.teacher: list[Any] = []
        self.transcribed: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, model, batch, batch_idx)
        if not self.loaded:

            def listen(to: list[Any]) -> Any:
                def note(module: Any, args: Any, kwargs: Any) -> None:
                    if trainer.training:
                        to.append((kwargs["input_signal"].clone(), kwargs["length"].clone()))

                return note

            def read(module: Any, args: Any, kwargs: Any) -> None:
                if trainer.training:
                    self.transcribed.append(kwargs["target_lengths"].clone())

            model.preprocessor.register_forward_pre_hook(listen(self.student), with_kwargs=True)
            teacher = model.distiller.teacher.model.preprocessor
            teacher.register_forward_pre_hook(listen(self.teacher), with_kwargs=True)
            model.loss.register_forward_pre_hook(read, with_kwargs=True, prepend=True)
        self.loaded.append(tuple(part.clone() for part in batch[:4]))


def fit(make_student: Any, config: dict[str, Any], seen: Recorder, **trainer: Any) -> Any:
    model = make_student(config, callbacks=[seen], **trainer)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        model.trainer.fit(model)
    return model


def test_teacher_and_student_get_one_mixture_that_ctc_leaves_out(corpus, teacher_file, make_student):
    seen = Heard()
    config = student_config(corpus, teacher_file, STAGES, mixup=HALF)
    config["preprocessor"]["dither"] = 0.0  # NeMo adds it in place
    fit(make_student, config, seen, max_epochs=3)
    assert len(seen.loaded) == len(seen.student) == len(seen.transcribed) == 12
    assert len(seen.teacher) == 10  # not in the stage of CTC alone
    mixed = 0
    for step, (loaded, student) in enumerate(zip(seen.loaded, seen.student, strict=True)):
        signal, lengths, _, transcribed = loaded
        if step >= 2:
            assert all(torch.equal(*pair) for pair in zip(student, seen.teacher[step - 2], strict=True))
        for row in range(len(signal)):
            if torch.equal(student[0][row], signal[row]):
                assert student[1][row] == lengths[row]
                assert seen.transcribed[step][row] == transcribed[row] > 0
                continue
            mixed += 1
            assert step >= 2 and student[1][row] == lengths.max() and seen.transcribed[step][row] == 0
            both = torch.stack([signal[row], signal[1 - row]]).double()
            found = torch.linalg.lstsq(both.T, student[0][row].double()).solution
            assert found.sum().item() == pytest.approx(1, abs=1e-4) and 0 <= found[0] < 1
    assert 3 <= mixed <= 17  # of 20
    assert all(torch.isfinite(torch.tensor(log["train_loss"])) for log in seen.steps)


def test_a_resumed_run_draws_the_same_mixtures(corpus, teacher_file, make_student, tmp_path):
    config = student_config(corpus, teacher_file, STAGES, mixup=HALF, consistency={"weight": 0.2})
    fit(make_student, config, Recorder(), max_epochs=2, folder=tmp_path / "whole")
    fit(make_student, config, Recorder(6), max_epochs=2, folder=tmp_path / "parts")
    fit(make_student, config, Recorder(), max_epochs=2, folder=tmp_path / "parts")
    whole, parts = (
        load_lightning_checkpoint(next((tmp_path / name).rglob("*-last.ckpt")))["state_dict"]
        for name in ("whole", "parts")
    )
    assert same(whole, parts)


def test_off_is_bit_equal_to_a_training_without_the_key(corpus, teacher_file, make_student):
    configs = (
        student_config(corpus, teacher_file, STAGES, **more) for more in ({}, {"mixup": {"share": 0.0}})
    )
    one, other = (state_of(fit(make_student, config, Recorder(), max_epochs=1)) for config in configs)
    assert same(one, other)
