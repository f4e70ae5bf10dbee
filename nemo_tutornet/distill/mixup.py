# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixed waveforms for a live teacher: RKD and SKD learn from them, and CTC does not (ours)."""

from __future__ import annotations

from dataclasses import replace

import torch

from nemo_tutornet.config import MixupConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.functional.mixup import draw_mixtures, mix_waveforms
from nemo_tutornet.functional.schedule import Stage


def mix_batch(config: MixupConfig, stage: Stage, batch: TrainingBatch) -> TrainingBatch:
    """Mixes a share of a batch's rows with other rows of it, in a stage that uses RKD or SKD.

    A mixed row has no transcript, so CTC leaves it out like any row without one.

    Args:
        config: `tutor.mixup`.
        stage: the stage.
        batch: of a training set.

    Returns:
        The batch for teacher and student; the same one where nothing is mixed.
    """
    rows = len(batch.signal)
    if config.share <= 0 or rows < 2 or not (stage.uses("rkd") or stage.uses("skd")):
        return batch
    device = batch.signal.device
    partners, weights = (values.to(device) for values in draw_mixtures(rows, config.share, config.alpha))
    signal, lengths = mix_waveforms(batch.signal, batch.signal_lengths, partners, weights)
    transcript_lengths = torch.where(weights < 1, 0, batch.transcript_lengths)
    return replace(batch, signal=signal, signal_lengths=lengths, transcript_lengths=transcript_lengths)
