# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of audio, by which a training finds that its audio is not what its cache was built from.

A fingerprint is the length of the waveform as a vector, and its dot products with a few fixed sequences of
random signs. Two recordings have the same fingerprint only if their difference is small (Johnson and
Lindenstrauss, 1984). An exact checksum would differ as well where another version of a library decodes or
resamples the same file, and would stop a training for nothing.

Legend: `B` utterances, `N` samples, `P` numbers of a fingerprint.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_PROJECTIONS = 4
SIZE = 1 + _PROJECTIONS
# A difference of the waveforms of 1 %, or -40 dB, of their level is no other audio. Rounding to bf16 makes
# 0.2 %.
TOLERANCE = 0.01
# The sequences repeat after this many samples, but with another weight each time.
_PERIOD = 2**14
_PERIODS = 2**12


@cache
def _signs() -> tuple[Tensor, Tensor]:
    """Returns the signs inside a period `[_PERIOD, P - 1]` and the weights of the periods `[_PERIODS, P -
    1]`.

    They are drawn as raw integers, which no version of NumPy changes.
    """
    generator = np.random.PCG64(20200867)
    drawn = generator.random_raw(_PERIOD * _PROJECTIONS // 64).astype("<u8")
    signs = np.unpackbits(drawn.view(np.uint8)).astype(np.float32) * 2 - 1
    uniform = generator.random_raw(_PERIODS * _PROJECTIONS) / 2.0**63 - 1
    weights = torch.from_numpy(np.sqrt(3) * uniform).reshape(_PERIODS, _PROJECTIONS)
    return torch.from_numpy(signs).reshape(_PERIOD, _PROJECTIONS), weights


@cache
def _signs_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns `_signs` on a device, to which they are copied once."""
    with torch.inference_mode(False):
        signs, weights = _signs()
        return signs.to(device), weights.to(device)


def fingerprints(signal: Tensor, lengths: Tensor) -> Tensor:
    """Computes the fingerprint of each utterance of a batch.

    Args:
        signal: waveforms `[B, N]`.
        lengths: valid samples `[B]`.

    Returns:
        `[B, P]`, fp32, on the CPU. Padding, and the other utterances of the batch, do not change them.

    Example:
        >>> tone = torch.sin(torch.arange(32000) / 20)[None]
        >>> known = fingerprints(tone, torch.tensor([32000]))
        >>> same_audio(known, fingerprints(1.001 * tone, torch.tensor([32000]))).tolist()
        [True]
        >>> same_audio(known, fingerprints(tone.roll(10), torch.tensor([32000]))).tolist()
        [False]
    """
    device = signal.device
    inside, across = _signs_on(device)
    found = torch.zeros(len(signal), SIZE, dtype=torch.float64, device=device)
    columns, shortest = torch.arange(_PERIOD, device=device), int(lengths.min()) if len(lengths) else 0
    # A period at a time: no copy of the whole batch is made.
    for number, start in enumerate(range(0, signal.shape[1], _PERIOD)):
        part = signal[:, start : start + _PERIOD].detach().float()
        if start + part.shape[1] > shortest:
            part = part.masked_fill(columns[: part.shape[1]] >= (lengths - start)[:, None], 0.0)
        found[:, 0] += torch.linalg.vector_norm(part, dim=1).double().square()
        with torch.autocast(device.type, enabled=False):
            found[:, 1:] += across[number % _PERIODS] * (part @ inside[: part.shape[1]])
    found[:, 0].sqrt_()
    return found.float().cpu()


def same_audio(known: Tensor, found: Tensor) -> Tensor:
    """Compares the fingerprints of audio.

    Args:
        known: fingerprints `[B, P]`.
        found: fingerprints `[B, P]` of as many samples.

    Returns:
        `[B]`, bool: the difference of the waveforms is within the tolerance.
    """
    level = torch.maximum(known[:, 0], found[:, 0])
    return ((known - found).abs() <= TOLERANCE * level[:, None] + 1e-6).all(dim=1)
