# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's exponential moving average of the weights (`exp_manager.ema`) in trainings that are resumed and
saved.

NeMo validates the averaged weights, writes them to `…-EMA.ckpt` beside each checkpoint, and reads the
optimizer's state from there when the training is resumed. With PyTorch 2.6 and later, that reading fails. And
NeMo writes the `.nemo` with the weights of the last step, which it has not validated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo.collections.common.callbacks import EMA
from nemo.collections.common.callbacks.ema import EMAOptimizer
from nemo.utils import logging

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.run_checkpoints import ema_copy


class ResumableEMA(EMA):
    """NeMo's callback, which reads its checkpoints without unpickling unknown classes."""

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restores the averages and the optimizer from the copy beside the checkpoint.

        Args:
            trainer: Lightning's.
            pl_module: the student.
            checkpoint: that the training resumes from; changed in place.

        Raises:
            TutorError: there is no such copy.
        """
        path = trainer.ckpt_path
        if not path or str(path).endswith("-EMA.ckpt"):
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            return
        copy = ema_copy(Path(path))
        if copy is None:
            raise TutorError(
                f"exp_manager.ema is on, but {path} has no copy with averaged weights beside it "
                f"({Path(path).stem}-EMA.ckpt); resume with exp_manager.ema.enable=false, or begin a new run."
            )
        states = load_lightning_checkpoint(copy)["optimizer_states"]
        for state in states:
            # NeMo stores parameters, and could not change them in place after it has read them.
            state["ema"] = tuple(tensor.detach() for tensor in state["ema"])
        checkpoint["optimizer_states"] = states
        logging.info(f"The averaged weights continue from {copy}.")


def use_resumable_ema(trainer: Any) -> None:
    """Replaces NeMo's EMA callback of a trainer by `ResumableEMA` with its settings.

    Raises:
        TutorError: the training would end with a restore of the best checkpoint, which NeMo's EMA cannot do.
    """
    for i, callback in enumerate(trainer.callbacks):
        if type(callback) is EMA:
            if getattr(trainer.checkpoint_callback, "save_best_model", False):
                raise TutorError(
                    "exp_manager.ema cannot be combined with checkpoint_callback_params.save_best_model, "
                    "because NeMo cannot restore the best checkpoint then; set save_best_model=false, and "
                    "export the best …-EMA.ckpt."
                )
            trainer.callbacks[i] = ResumableEMA(
                callback.decay,
                callback.validate_original_weights,
                callback.every_n_steps,
                callback.cpu_offload,
            )


@contextmanager
def averaged_weights(trainer: Any) -> Iterator[bool]:
    """Puts the averaged weights into the student for the time of the context, as a validation does.

    Args:
        trainer: Lightning's; None for a model without.

    Yields:
        Whether they are in it. They are not, where the training has no EMA, or validates the weights of the
        last step (`validate_original_weights`).
    """
    callbacks = () if trainer is None else (c for c in trainer.callbacks if isinstance(c, EMA))
    callback = next(iter(callbacks), None)
    optimizers: list[Any] = [] if callback is None else trainer.optimizers
    ready = bool(optimizers) and all(
        isinstance(one, EMAOptimizer) and one.ema_params and not one.in_saving_ema_model_context
        for one in optimizers
    )
    if callback is None or not ready or callback.validate_original_weights or not trainer.training:
        yield False
        return
    callback.swap_model_weights(trainer)
    try:
        yield True
    finally:
        callback.swap_model_weights(trainer)
