# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts a training on the CPU and stops it at its first batch, before any parameter changes."""

from __future__ import annotations

import io
import warnings
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import open_dict
from rich.console import Console

from nemo_tutornet.distill.training_report import TrainingReport
from nemo_tutornet.errors import TutorError, refusing
from nemo_tutornet.functional.schedule import steps_per_epoch

_QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_ON_CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
_ELSEWHERE = ("gpu", "cuda", "mps", "tpu")


class _Started(BaseException):
    """The first batch is there. Not an `Exception`, so that `refusing` lets it pass."""


class _StopAtFirstBatch(Callback):
    def __init__(self) -> None:
        self.batch: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch
        raise _Started


def make_trainer(cfg: Any) -> pl.Trainer:
    """Builds the trainer of a config for the CPU, without loggers and checkpoints.

    Args:
        cfg: the whole config of a training.

    Returns:
        The trainer.

    Raises:
        TutorError: Lightning rejects the section `trainer`.
    """
    settings = deepcopy(cfg.trainer)
    with open_dict(settings), refusing("the trainer"):
        settings.update(_QUIET)
        elsewhere = settings.get("accelerator") in _ELSEWHERE
        if not elsewhere or torch.cuda.is_available():
            pl.Trainer(**resolve_trainer_cfg(settings))  # names of accelerators, devices and strategies
        settings.update(_ON_CPU)
        if elsewhere:
            settings.precision = 32
        trainer = pl.Trainer(**resolve_trainer_cfg(settings))
    trainer.callbacks.append(TrainingReport(Console(file=io.StringIO())))
    return trainer


def epoch_steps(cfg: Any, trainer: pl.Trainer) -> int | None:
    """Returns the optimizer steps of an epoch on one device; None where they are unknown, or with several.

    Args:
        cfg: the whole config of a training.
        trainer: from `make_trainer`, after `first_batch`.
    """
    devices = cfg.trainer.get("devices", "auto")
    if devices in ("auto", "-1", -1):
        devices = max(1, torch.cuda.device_count())
    if str(devices) != "1" or cfg.trainer.get("num_nodes", 1) != 1:
        return None
    return steps_per_epoch(trainer.num_training_batches, trainer.accumulate_grad_batches)


def first_batch(model: Any, trainer: pl.Trainer) -> Any:
    """Starts the training of a model, and stops it at its first batch.

    Args:
        model: a student that was built with `trainer`.
        trainer: from `make_trainer`.

    Returns:
        The batch.

    Raises:
        TutorError: the training cannot start, or has no batch.
    """
    stop = _StopAtFirstBatch()
    trainer.callbacks.append(stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about what was made quiet
        try:
            with refusing("the training"):
                trainer.fit(model)
        except _Started:
            return stop.batch
    raise TutorError(
        "this training has no batch: see model.train_ds.batch_size and drop_last, "
        "trainer.limit_train_batches, max_epochs and max_steps."
    )
