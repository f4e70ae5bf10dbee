# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files written in the middle of an RKD stage: the student in them is usable, and the training does not
notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.common.callbacks import EMA
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint

from nemo_tutornet.distill.warm_start import compose_decoder
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from tests.conftest import student_config
from tests.integration.recorder import RKD, SKD, Recorder, same, state_of

DECODER = ("decoder.decoder_layers.0.weight", "decoder.decoder_layers.0.bias")


def saver(folder: Path) -> NeMoModelCheckpoint:
    """Writes a `.ckpt` and a `.nemo` after every step."""
    every_step: dict[str, Any] = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    return NeMoModelCheckpoint(
        dirpath=str(folder), prefix="run", always_save_nemo=True, save_nemo_on_train_end=False, **every_step
    )


def assert_composed(model: Any, state: dict[str, torch.Tensor], saved: dict[str, Any]) -> None:
    """The decoder in `state` is the teacher's on the projection that was saved beside it."""
    projection = torch.nn.Conv1d(*reversed(saved["tutor"]["projection"]["weight"].shape[:2]), 1)
    projection.load_state_dict(saved["tutor"]["projection"])
    expected = compose_decoder(
        model.distiller.teacher.ctc_projection(), projection, model.distiller.match.label_order
    )
    for name, value in zip(DECODER, expected, strict=True):
        assert torch.equal(state[name], value)


@pytest.mark.parametrize("more", [[], [EMA(0.5)]], ids=["plain", "ema"])
def test_every_file_of_an_rkd_stage_holds_a_composed_decoder(
    corpus, teacher_file, make_student, tmp_path, more
):
    config = student_config(corpus, teacher_file, [RKD])
    model = make_student(config, max_steps=3, callbacks=[*more, saver(tmp_path)], enable_checkpointing=True)
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    checkpoints = {path.name: load_lightning_checkpoint(path) for path in tmp_path.glob("step=*.ckpt")}
    names = [f"step={step}{ema}.ckpt" for step in (1, 2, 3) for ema in (["", "-EMA"] if more else [""])]
    assert sorted(checkpoints) == sorted(names)
    for saved in checkpoints.values():
        assert_composed(model, saved["state_dict"], saved)
    assert len({saved["state_dict"][DECODER[0]].sum().item() for saved in checkpoints.values()}) == len(names)
    (nemo,) = tmp_path.glob("*.nemo")
    last = checkpoints[names[-1]]
    assert same(EncDecCTCModel.restore_from(str(nemo), map_location="cpu").state_dict(), last["state_dict"])


@pytest.mark.parametrize("more", [list, lambda: [EMA(0.5)]], ids=["plain", "ema"])
def test_saving_does_not_change_what_is_trained(corpus, teacher_file, make_student, tmp_path, more):
    config = student_config(corpus, teacher_file, [RKD | {"steps": 3}, SKD])
    config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
    found = []
    for savers in ([], [saver(tmp_path)]):
        recorder = Recorder()
        model = make_student(
            config, max_epochs=2, callbacks=[recorder, *more(), *savers], enable_checkpointing=bool(savers)
        )
        torch.manual_seed(3)
        model.trainer.fit(model)
        found.append((state_of(model), [step["train_loss"] for step in recorder.steps]))
    assert len(list(tmp_path.glob("step=*.ckpt"))) >= 8
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_save_to_in_the_middle_of_rkd_leaves_the_model_as_it_is(corpus, teacher_file, make_student, tmp_path):
    path = tmp_path / "student.nemo"

    class Saving(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            before, saved = state_of(module), {"state_dict": {}}
            module.save_to(str(path))
            assert same(before, state_of(module))
            module.on_save_checkpoint(saved)
            assert_composed(
                module, EncDecCTCModel.restore_from(str(path), map_location="cpu").state_dict(), saved
            )

    model = make_student(student_config(corpus, teacher_file, [RKD]), max_steps=2, callbacks=[Saving()])
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    assert path.exists()


def test_weights_put_in_after_the_training_are_what_is_saved(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file, [RKD]), max_epochs=1)
    model.trainer.fit(model)
    other = {name: torch.randn_like(value) for name, value in model.decoder.state_dict().items()}
    model.decoder.load_state_dict(other)
    model.save_to(str(tmp_path / "at once.nemo"))
    model.trainer.validate(model, verbose=False)
    model.save_to(str(tmp_path / "student.nemo"))
    model.trainer.save_checkpoint(tmp_path / "student.ckpt")
    for name in ("at once", "student"):
        restored = EncDecCTCModel.restore_from(str(tmp_path / f"{name}.nemo"), map_location="cpu")
        assert same(restored.decoder.state_dict(), other)
    saved = load_lightning_checkpoint(tmp_path / "student.ckpt")["state_dict"]
    assert same({name: saved[f"decoder.{name}"] for name in other}, other)


def test_the_best_model_may_be_one_of_rkd(corpus, teacher_file, make_student, tmp_path):
    """With NeMo's `save_best_model` the `.nemo` of a finished run is the best `.ckpt`'s model, not the last
    one's.
    """
    # The first epoch's is best.
    kept: dict[str, Any] = {"monitor": "val_loss", "mode": "max", "save_top_k": 1, "save_last": True}
    saving = NeMoModelCheckpoint(
        dirpath=str(tmp_path), prefix="run", always_save_nemo=True, save_best_model=True, **kept
    )
    stages = [RKD | {"epochs": 1}, {"name": "ctc", "weights": {"ctc": 1.0}}]
    config = student_config(corpus, teacher_file, stages)
    model = make_student(config, max_epochs=3, callbacks=[saving], enable_checkpointing=True)
    model.trainer.fit(model)
    (last,) = tmp_path.glob("*last.ckpt")
    (best,) = set(tmp_path.glob("*.ckpt")) - {last}
    (nemo,) = tmp_path.glob("*.nemo")
    saved = load_lightning_checkpoint(best)
    assert saved["tutor"]["stage"] == "rkd"
    assert_composed(model, saved["state_dict"], saved)
    found = EncDecCTCModel.restore_from(str(nemo), map_location="cpu").state_dict()
    assert same(found, saved["state_dict"]) and not same(found, load_lightning_checkpoint(last)["state_dict"])


class SavesAfterStep(Callback):
    """Writes a `.nemo` by itself, without a checkpoint before it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            module.save_to(str(self.path))
            with module_averages(trainer):
                self.state, self.saved = state_of(module), {"tutor": deepcopy(module.distiller.state())}


@contextmanager
def module_averages(trainer: Any) -> Iterator[None]:
    (ema,) = (callback for callback in trainer.callbacks if isinstance(callback, EMA))
    ema.swap_model_weights(trainer)
    yield
    ema.swap_model_weights(trainer)


def test_a_file_of_averaged_weights_has_a_decoder_of_the_averaged_projection(
    corpus, teacher_file, make_student, tmp_path
):
    saves = SavesAfterStep(tmp_path / "averaged.nemo")
    config = student_config(corpus, teacher_file, [RKD])
    model = make_student(config, max_steps=3, callbacks=[EMA(0.9), saves])
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    state = EncDecCTCModel.restore_from(str(saves.path), map_location="cpu").state_dict()
    assert_composed(model, state, saves.saved)
    assert same(
        {k: v for k, v in state.items() if k not in DECODER},
        {k: v for k, v in saves.state.items() if k not in DECODER},
    )
