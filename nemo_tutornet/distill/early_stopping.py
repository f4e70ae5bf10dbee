# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Early stopping that waits until the student has a decoder.

In a stage that trains only the encoder, and whose decoder cannot be composed (`distill.warm_start`), the
student writes noise. Its word error rate stays at 1, and early stopping would end the training there.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping


def wait_for_decoder(trainer: Any) -> None:
    """Makes the trainer's early stopping skip validations while the decoder is random.

    That is so while no loss has trained the decoder, and it cannot be composed. A callback may serve several
    trainings one after the other; the student of the current one counts.

    Args:
        trainer: Lightning's.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping):
            waiting: Any = _Waiting(callback)
            callback._should_skip_check = waiting


class _Waiting:
    def __init__(self, callback: EarlyStopping) -> None:
        self._callback = callback

    def __call__(self, trainer: Any) -> bool:
        if type(self._callback)._should_skip_check(self._callback, trainer):
            return True
        distiller = getattr(trainer.lightning_module, "distiller", None)
        return distiller is not None and distiller.decoder_is_random
