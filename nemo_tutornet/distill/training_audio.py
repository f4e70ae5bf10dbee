# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A few utterances of a student's training set, for statistics that are taken before the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import IterableDataset

from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.data.dataloader import TrainingBatch

# Number of utterances from which statistics are taken.
UTTERANCES = 50


def training_audio(student: Any, most: int) -> Iterator[Tensor]:
    """Yields the waveforms `[1, N]` of some utterances of a student's training set.

    They are evenly spread over a set that has an index, otherwise its first. Another utterance replaces a
    damaged one. The training's own dataloader is not touched.
    """
    section = student.cfg.get("train_ds")
    config: Any = OmegaConf.create(
        OmegaConf.to_container(section, resolve=True) if section is not None else {}
    )
    config.update(shuffle=False, augmentor=None, batch_size=1, num_workers=0, drop_last=False)
    config.update(use_semi_sorted_batching=False, pin_memory=False)
    if config.get("use_lhotse"):
        config.update(use_bucketing=False, batch_duration=None)
    loader = student._setup_dataloader_from_config(config) if section is not None else None
    if loader is None:
        return
    guard_audio(loader, "model.train_ds", 1.0)  # the training that follows refuses a set with many of them
    batches = loader
    if not config.get("use_lhotse") and not isinstance(loader.dataset, IterableDataset):
        dataset, count = loader.dataset, len(loader.dataset)
        chosen = sorted({round(i) for i in torch.linspace(0, count - 1, min(most, count)).tolist()})
        batches = (loader.collate_fn([dataset[i]]) for i in chosen)
    given = 0
    for batch in map(TrainingBatch.from_nemo, batches):
        for signal, length in zip(batch.signal, batch.signal_lengths.tolist(), strict=True):
            if given == most:
                return
            given += 1
            yield signal[None, :length]
