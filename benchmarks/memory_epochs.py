# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What grows in the memory of a training with many short epochs: objects of Python, or gaps of the C heap.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/memory_epochs.py --epochs 300 --trim
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/memory_epochs.py --epochs 300

A student of a few thousand parameters trains on 24 utterances of 0.5 to 3.7 s, and validates, logs and writes
checkpoints after each epoch of six steps. In each tenth of the epochs it prints its own memory (unique set
size) and the number of Python's objects. With `--trim`, the heap then gives its free pages back
(`malloc_trim`): what is left is in use. Without it, they are given back at the end only.

`MALLOC_MMAP_THRESHOLD_=131072` before the command keeps large tensors out of the heap.
"""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import typer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from nemo.collections.asr.models import EncDecCTCModel
from nemo.utils.exp_manager import configure_no_restart_validation_training_loop
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.distill.training_report import TrainingReport
from tests.conftest import student_config, write_manifest

SECONDS = [0.5 + 0.137 * i for i in range(24)]
STAGES = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25, "rkd": 1.0}}]


class Watch(Callback):
    """Prints the memory of this process after a tenth of the epochs.

    Args:
        trim: whether the heap gives its free pages back each time, not only at the end.
    """

    def __init__(self, trim: bool) -> None:
        self.trim = trim

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Prints a line of JSON."""
        epoch = trainer.current_epoch + 1
        if epoch % max(1, trainer.max_epochs // 10):
            return
        row = {"epoch": epoch, "step": trainer.global_step, "mb": megabytes()}
        if self.trim or epoch == trainer.max_epochs:
            gc.collect()
            row["objects"] = len(gc.get_objects())
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            row["mb_trimmed"] = megabytes()
        print(json.dumps(row), flush=True)


def megabytes() -> float:
    return round(psutil.Process().memory_full_info().uss / 1e6, 1)


def main(
    epochs: int = typer.Option(300, min=10, help="Of six steps each."),
    teacher: bool = typer.Option(True, help="Distil; otherwise train with CTC alone."),
    extras: bool = typer.Option(True, help="Validate, log, and write checkpoints."),
    trim: bool = typer.Option(False, help="Give free pages of the heap back in each tenth."),
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, "train", SECONDS)
        write_manifest(folder, "valid", SECONDS[::4])
        path = folder / "teacher.nemo" if teacher else None
        if path is not None:
            EncDecCTCModel(OmegaConf.create(student_config(folder, None))).save_to(str(path))
        config = student_config(folder, path, STAGES)
        for section in ("train_ds", "validation_ds"):
            config[section]["batch_size"] = 4
        callbacks: list[Callback] = [Watch(trim)]
        if extras:
            callbacks += [
                TrainingReport(),
                ModelCheckpoint(folder / "checkpoints", monitor="val_loss", save_last=True, save_top_k=3),
            ]
        pl.seed_everything(1)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=callbacks,
            logger=TensorBoardLogger(folder) if extras else False,
            enable_checkpointing=extras,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if extras else 0,
            log_every_n_steps=1,
        )
        configure_no_restart_validation_training_loop(trainer)
        trainer.fit(TutorCTCModel(OmegaConf.create({"model": config}).model, trainer=trainer))


if __name__ == "__main__":
    typer.run(main)
