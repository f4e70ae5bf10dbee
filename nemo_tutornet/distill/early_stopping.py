# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Early stopping that waits until the student has a decoder.

In a stage that trains only the encoder, and whose decoder cannot be composed (`distill.warm_start`), the
student writes noise. Its word error rate stays at 1, and early stopping would end the training there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping


def wait_for_decoder(trainer: Any, decoder_is_random: Callable[[], bool]) -> None:
    """Makes the trainer's early stopping skip validations while the decoder is random.

    Args:
        trainer: Lightning's.
        decoder_is_random: whether no loss has trained the decoder, and it cannot be composed.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and not isinstance(callback._should_skip_check, _Waiting):
            waiting: Any = _Waiting(callback, decoder_is_random)
            callback._should_skip_check = waiting


class _Waiting:
    def __init__(self, callback: EarlyStopping, decoder_is_random: Callable[[], bool]) -> None:
        self._callback, self._decoder_is_random = callback, decoder_is_random

    def __call__(self, trainer: Any) -> bool:
        return type(self._callback)._should_skip_check(self._callback, trainer) or self._decoder_is_random()
