# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders as a training writes them, without the training."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from nemo_tutornet import TutorCTCModel
from tests.conftest import student_config


def write_run(folder: Path, corpus: Path, teacher: Path | None, seed: int = 0) -> Path:
    """A random student in the folder of a run, with its config and four logged steps.

    Args:
        folder: the run's.
        corpus: holds the manifests that its config names.
        teacher: that its config names; None for a run without one.
        seed: of the weights.
    """
    config = student_config(corpus, teacher)
    torch.manual_seed(seed)
    model = TutorCTCModel(OmegaConf.create({"model": config}).model)
    (folder / "checkpoints").mkdir(parents=True)
    model.save_to(str(folder / "checkpoints" / f"{folder.name}.nemo"))
    writer = SummaryWriter(str(folder / "version_0"))
    for step in range(4):
        writer.add_scalar("train_loss", 4.0 - step, step)
        writer.add_scalar("val_wer", 1.0 - 0.1 * step, step)
        writer.add_scalar("epoch", step, step)
        if teacher is not None:
            writer.add_scalar("tutor_stage", float(step > 1), step)
    writer.close()
    (folder / "version_0" / "hparams.yaml").write_text(yaml.safe_dump({"cfg": config}), encoding="utf-8")
    return folder
