# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""One step of a student with the losses of its stage, inside NeMo's own training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.functional.schedule import Stage

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel as _Host  # base class of the mixin's users
else:
    _Host = object


class StageStepMixin(_Host):
    """Replaces the loss of NeMo's training step by the weighted sum of a stage's losses.

    NeMo's training step runs the student, computes CTC, and then calls `add_interctc_losses` and
    `add_auxiliary_losses`, which are overridden here. A stage without CTC runs the student alone.
    """

    _losses: Callable[..., dict[str, Tensor]] | None = None  # losses of the current step
    _terms: dict[str, Tensor]
    _ctc_weight: float

    def step_of_stage(
        self, batch: TrainingBatch, batch_nb: int, stage: Stage, losses: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Any]:
        """Runs the student, and returns the loss and log in the format of NeMo's training step."""
        if stage.uses("ctc"):
            self._losses, self._ctc_weight = losses, stage.weights["ctc"]
            try:
                output = super().training_step(batch.for_nemo(), batch_nb)
            finally:
                self._losses = None
            terms = self._terms
        else:
            self.forward(input_signal=batch.signal, input_signal_length=batch.signal_lengths)
            self._terms = terms = losses()
            global_step = torch.tensor(self.trainer.global_step, dtype=torch.float32)
            log = {"learning_rate": self._optimizer.param_groups[0]["lr"], "global_step": global_step}
            output = {"loss": terms["loss"], "log": {"train_loss": terms["loss"], **log}}
        output["log"].update({f"train_{name}": terms[name].detach() for name in terms if name != "loss"})
        return output

    def add_auxiliary_losses(self, loss: Tensor, reset_registry: bool = False) -> Tensor:
        """Replaces the CTC loss by the weighted sum of the stage's losses.

        NeMo's training step calls this method after it computes CTC and before it logs.

        Args:
            loss: the CTC loss, scalar.
            reset_registry: see NeMo's method.

        Returns:
            The weighted sum, scalar; outside a training step with a teacher, the result of NeMo's method.
        """
        loss = super().add_auxiliary_losses(loss, reset_registry)
        if self._losses is None:
            return loss
        self._terms = self._losses(ctc=loss)
        return self._terms["loss"]

    def add_interctc_losses(self, loss_value: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
        """Applies NeMo's InterCTC (`model.interctc`) to the stage's CTC loss alone.

        NeMo's method multiplies the whole loss by what the intermediate layers' weights leave of 1, so that
        RKD and SKD would weigh less than the stage says.
        """
        if self._losses is None:
            return super().add_interctc_losses(loss_value, *args, **kwargs)
        ctc = self._terms["ctc"]
        # NeMo's method changes its argument in place, so it gets a copy.
        mixed, log = super().add_interctc_losses(ctc.clone(), *args, **kwargs)
        return loss_value + self._ctc_weight * (mixed - ctc), log
