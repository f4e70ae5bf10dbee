# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a client of somebody else's computes, against NeMo."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def largest(model: Any, asr: Any, audio: list[np.ndarray], batch: int = 1) -> float:
    """Largest difference of onnx-asr's log-probabilities from NeMo's on single utterances."""
    worst = 0.0
    for start in range(0, len(audio), batch):
        group = audio[start : start + batch]
        lengths = np.array([len(samples) for samples in group])
        waveforms = np.stack([np.pad(samples, (0, lengths.max() - len(samples))) for samples in group])
        log_probs, frames = asr._encode(*asr._preprocessor(waveforms, lengths))
        for samples, found, count in zip(group, log_probs, frames, strict=True):
            with torch.no_grad():
                expected, valid, _ = model(
                    input_signal=torch.from_numpy(samples)[None],
                    input_signal_length=torch.tensor([len(samples)]),
                )
            assert int(count) == int(valid[0])
            worst = max(worst, float(np.abs(found[:count] - expected[0, :count].numpy()).max()))
    return worst
