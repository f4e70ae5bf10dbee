# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A NeMo model whose trainings can be resumed as if they had not been interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn

from nemo_tutornet.distill.resumption import KEY, ResumableEpochLoop, resumable
from nemo_tutornet.distill.schedule_length import ScheduleLength
from nemo_tutornet.errors import refusing

if TYPE_CHECKING:
    from nemo.core.classes import ModelPT as _Host  # base class of the mixin's users
else:
    _Host = object


class ResumableMixin(_Host):
    """Puts what `ResumableEpochLoop` needs into a NeMo model's hooks and checkpoints."""

    _epoch_loop: ResumableEpochLoop | None = None
    _schedule_length = ScheduleLength(None)

    def setup(self, stage: str | None = None) -> None:
        """Runs NeMo's setup, and gives the trainer its epoch loop.

        Args:
            stage: Lightning's stage.
        """
        super().setup(stage)
        if stage == "fit":
            self._epoch_loop = resumable(self.trainer, self)

    def train_dataloader(self) -> Any:
        """Returns NeMo's dataloader, and keeps the random states from which its first order is drawn."""
        if self._epoch_loop is not None:
            self._epoch_loop.note_random_states()
        return super().train_dataloader()

    def configure_optimizers(self) -> Any:
        """Builds NeMo's optimizer and learning-rate schedule, and keeps the schedule's length.

        Raises:
            TutorError: NeMo or PyTorch rejects the section `model.optim`.
        """
        with refusing("the optimizer (model.optim)"):
            built = super().configure_optimizers()
        self._schedule_length = ScheduleLength(self._scheduler)
        return built

    def on_train_start(self) -> None:
        """Gives a run that is resumed with another length its new learning-rate schedule."""
        super().on_train_start()
        self._schedule_length.apply(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random states and the position in the epoch."""
        super().on_save_checkpoint(checkpoint)
        if self._epoch_loop is not None and self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint[KEY] = self._epoch_loop.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hands them to the epoch loop of a training that is resumed.

        Args:
            checkpoint: the content of the `.ckpt`; its progress is corrected in place.
        """
        super().on_load_checkpoint(checkpoint)
        resuming = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if resuming and self._epoch_loop is not None:
            self._epoch_loop.load(checkpoint)
