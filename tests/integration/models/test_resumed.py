# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel, TutorError
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.distill.warm_start import DecoderWarmStart
from nemo_tutornet.nemo_io.lightning_ckpt import check_lightning_checkpoint, load_lightning_checkpoint
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import ACCELERATOR, save_teacher, student_config, teacher_config
from tests.integration.recorder import RKD, SKD, Recorder, same


@pytest.mark.parametrize("stop_after", [2, 6])
def test_an_interrupted_run_resumes_inside_its_stage(
    corpus, teacher_file, make_student, tmp_path, monkeypatch, stop_after
):
    """Epochs of 4 steps, RKD for 5 steps and then SKD; interrupted in the first or the second stage."""
    stages = [RKD | {"steps": 5}, SKD]
    saving = {"val_check_interval": 1, "max_epochs": 3}
    model = make_student(
        student_config(corpus, teacher_file, stages),
        folder=tmp_path,
        callbacks=[Recorder(stop_after)],
        **saving,
    )
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        model.trainer.fit(model)
    (last,) = tmp_path.rglob("*-last.ckpt")
    saved = load_lightning_checkpoint(last)
    reached = saved["global_step"]
    assert 0 < reached <= stop_after
    assert saved["tutor"]["stage"] == ("rkd" if reached <= 5 else "skd")

    recorder = Recorder()
    resumed = make_student(
        student_config(corpus, teacher_file, stages), folder=tmp_path, callbacks=[recorder], **saving
    )
    assert Path(resumed.trainer.ckpt_path) == last
    check_lightning_checkpoint(last)  # as the example script does
    seen: dict[str, Any] = {}

    class AtStart(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen["projection"] = {
                name: p.detach().clone() for name, p in module.distiller.projection.named_parameters()
            }
            seen["stage"] = stages[module.distiller.stage]["name"]
            seen["step"] = trainer.global_step

    resumed.trainer.callbacks.append(AtStart())
    composed: list[int] = []
    apply = DecoderWarmStart.apply

    def counted(self: DecoderWarmStart, decoder: Any) -> None:
        composed.append(resumed.trainer.global_step)
        apply(self, decoder)

    monkeypatch.setattr(DecoderWarmStart, "apply", counted)
    resumed.trainer.fit(resumed)
    assert seen["step"] == reached and seen["stage"] == saved["tutor"]["stage"]
    assert same(seen["projection"], saved["tutor"]["projection"])
    stages_run = [step["tutor_stage"] for step in recorder.steps]
    assert len(stages_run) == 12 - reached
    assert stages_run == [0.0 if step < 5 else 1.0 for step in range(reached, 12)]
    assert (5 in composed) == (reached <= 5), "the boundary's warm start happens once over both runs"
    assert all(step <= 5 for step in composed)


def test_loading_a_checkpoint_first_and_fitting_later_keeps_the_projection(
    corpus, teacher_file, make_student, tmp_path
):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=1)
    model.trainer.fit(model)
    (last,) = tmp_path.rglob("*-last.ckpt")
    loaded = TutorCTCModel.load_from_checkpoint(str(last), map_location="cpu", weights_only=False)
    loaded.set_trainer(pl.Trainer(logger=False, accelerator="cpu"))
    loaded.setup("fit")
    assert torch.equal(loaded.distiller.projection.weight, model.distiller.projection.weight)


def test_resuming_with_other_layers_is_refused(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=1)
    model.trainer.fit(model)
    other = student_config(corpus, teacher_file, rkd={"guided_layer": "encoder.encoder.0"})
    resumed = make_student(other, folder=tmp_path, max_epochs=2)
    with pytest.raises(TutorError, match=r"projection has weight of shape \[24, 20, 1\].*\[24, 16, 1\]"):
        resumed.trainer.fit(resumed)


@pytest.mark.parametrize("began", ["with a teacher", "without a teacher"])
def test_resuming_without_the_teacher_or_with_a_new_one_is_refused(
    corpus, teacher_file, make_student, tmp_path, began
):
    """Both write to the same folder when only `model.tutor=null` is added to a command."""
    teachers = (teacher_file, None) if began == "with a teacher" else (None, teacher_file)
    first, second = (student_config(corpus, teacher) for teacher in teachers)
    model = make_student(first, folder=tmp_path, max_epochs=1)
    model.trainer.fit(model)
    resumed = make_student(second, folder=tmp_path, max_epochs=2)
    with pytest.raises(
        TutorError, match=rf"^the run in this folder began {began}, .* another exp_manager\.name"
    ):
        resumed.trainer.fit(resumed)


def test_going_on_with_another_teacher_is_reported(corpus, teacher_file, make_student, tmp_path, monkeypatch):
    """The cache of the same teacher is none; RKD's projection would not notice, as widths are equal."""
    printed: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *_, **__: printed.append(str(message)))

    def run(config: dict[str, Any], epochs: int) -> list[str]:
        printed.clear()
        model = make_student(config, folder=tmp_path / "run", max_epochs=epochs)
        model.trainer.fit(model)
        return [message for message in printed if "other teachers" in message]

    live = student_config(corpus, teacher_file)
    assert run(live, 1) == []
    trainer = {"max_epochs": 2, "accelerator": ACCELERATOR, "devices": 1}
    build_cache(OmegaConf.create({"model": live, "trainer": trainer}), tmp_path / "cache", progress=False)
    assert run({**live, "tutor": {**live["tutor"], "teacher": {"cache": str(tmp_path / "cache")}}}, 2) == []
    other = save_teacher(teacher_config(corpus), tmp_path / "other.nemo")  # packed at another time
    (message,) = run(student_config(corpus, other), 3)
    assert sha256_of(teacher_file)[:12] in message and sha256_of(other)[:12] in message


def test_a_failed_save_leaves_the_old_file_whole(corpus, make_student, tmp_path, monkeypatch):
    model = make_student(student_config(corpus, None))
    path = tmp_path / "student.nemo"
    model.save_to(str(path))
    old = path.read_bytes()
    monkeypatch.setattr(
        "tarfile.TarFile.add", lambda *a, **kw: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        model.save_to(str(path))
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["student.nemo"]


@pytest.mark.parametrize("how", ["a checkpoint", "a run"])
def test_another_training_of_a_resumed_student_begins_anew(corpus, teacher_file, make_student, tmp_path, how):
    config = student_config(corpus, teacher_file)  # RKD for one epoch, then SKD
    model = make_student(config, folder=tmp_path, max_epochs=2)
    model.trainer.fit(model)
    if how == "a run":
        model = make_student(config, folder=tmp_path, max_epochs=3)
        model.trainer.fit(model)
    else:
        (last,) = tmp_path.rglob("*-last.ckpt")
        # This test's own file.
        model = TutorCTCModel.load_from_checkpoint(str(last), map_location="cpu", weights_only=False)
        model.setup_training_data(OmegaConf.create(config["train_ds"]))
        model.set_trainer(make_student(config, max_epochs=1, limit_val_batches=0).trainer)
        model.trainer.fit(model)
    assert model.distiller.stage == 1
    another = make_student(config, max_epochs=1, limit_val_batches=0).trainer
    model.set_trainer(another)
    another.fit(model)
    assert model.distiller.stage == 0
