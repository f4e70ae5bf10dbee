# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning-rate schedule of a run that is resumed with another length."""

from __future__ import annotations

import warnings
from typing import Any

from nemo.utils import logging


class ScheduleLength:
    """Keeps the lengths of a new learning-rate schedule, which a checkpoint's would replace.

    A checkpoint holds the attributes of NeMo's scheduler, its number of steps among them. A run that is
    resumed with more epochs would train them at the smallest learning rate.

    Args:
        scheduler: Lightning's scheduler config as NeMo builds it; None where the optimizer has none.
    """

    def __init__(self, scheduler: dict[str, Any] | None) -> None:
        self._scheduler = (scheduler or {}).get("scheduler")
        self._lengths: dict[str, int] = {}
        if self._scheduler is not None:
            for name, value in vars(self._scheduler).items():
                if name.endswith("_steps") and isinstance(value, int):
                    self._lengths[name] = value

    def apply(self, step: int) -> None:
        """Gives the scheduler its new length, where a checkpoint changed it, and the optimizer its rate.

        Args:
            step: optimizer steps of the run so far, for the message.
        """
        scheduler = self._scheduler
        before = {name: getattr(scheduler, name) for name in self._lengths}
        if scheduler is None or before == self._lengths:
            return
        vars(scheduler).update(self._lengths)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wants get_lr() to be called by step() only
            rates = scheduler.get_lr()
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
        logging.warning(
            f"This run began with a learning-rate schedule of {before.get('max_steps')} steps and has one of "
            f"{self._lengths.get('max_steps')} now: at step {step} the learning rate is {rates[0]:.3g}."
        )
