# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoding of a teacher's outputs for storage: pure functions on tensors. The codec is ours.

Posteriors of a small label set are stored as fp16 log-probabilities of all labels ("whole"). Posteriors of a
large label set are stored sparsely. Each frame stores the labels whose posterior is at least `min_posterior`,
always including its best label, and the log of the remaining mass. Decoding spreads the remaining mass evenly
over the other labels.

CTC posteriors are spiky, so a threshold takes less space than a fixed number of labels. Storage per hour of
audio, for a teacher with 129 outputs on AN4 and SKD losses within 0.1 %: 0.8 MB with a threshold of 1e-5,
3.1 MB with the best 8 labels of each frame, 23 MB with all labels. For 1025 outputs: 5.7 MB with a threshold
of 1e-6, 184 MB with all labels. A softmax temperature above 1 gives weight to the dropped posteriors. In that
case `choose_min_posterior` finds no threshold, and posteriors are stored whole.

Hidden vectors are stored in 8 bits with two gains, one per channel and one per frame. A channel or a frame of
large magnitude therefore does not reduce the precision of the others.

`benchmarks/cache_formats.py` measures these figures. The tests check the tolerances.

Legend: `T` frames, `V` labels with the blank last, `N` stored labels of all frames, `D` width of the hint
layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Label ids and counts are stored as 16-bit integers.
MOST_LABELS = 2**16 - 1
# The posterior of this log-probability is 0 in every float format, and fp16 represents the value exactly.
MIN_LOG_PROB = -1e4
# Keeps the gains away from the limits of the fp32 range.
MOST_HIDDEN = 1e30
# Gains have eight steps per factor of two. Rounding to a step wastes at most 9 % of the 8-bit range, and 255
# steps correspond to 2^-32.
_STEPS = 8


@dataclass(frozen=True)
class SparsePosteriors:
    """Sparse posteriors of one utterance: the labels at or above the threshold, and the remaining mass.

    Attributes:
        counts: number of stored labels of each frame `[T]`, uint16, at least 1.
        ids: ids of the stored labels `[N]`, uint16, frame by frame.
        values: log-probabilities of the stored labels `[N]`, fp16.
        residual_log_mass: log of the remaining mass of each frame `[T]`, fp16.
    """

    counts: Tensor
    ids: Tensor
    values: Tensor
    residual_log_mass: Tensor


@dataclass(frozen=True)
class CodedHidden:
    """8-bit hidden vectors of one utterance: `value / 127 * peak * 2^-((channel + frame) / 8)`.

    Attributes:
        values: scaled values `[T, D]`, int8.
        channels: gain of each channel `[D]`, uint8, in eighths of a factor of two.
        frames: gain of each frame `[T]`, uint8, in eighths of a factor of two.
        peak: the largest magnitude after the channel gains are applied, fp32.
    """

    values: Tensor
    channels: Tensor
    frames: Tensor
    peak: float


def encode_whole(log_probs: Tensor) -> Tensor:
    """Encodes the log-probabilities of all labels as fp16.

    Args:
        log_probs: log-probabilities `[T, V]`.

    Returns:
        Log-probabilities `[T, V]`, fp16, without -inf. The best label of each frame stays the only best one.
    """
    log_probs = clamp_log_probs(log_probs)
    return _best_alone(log_probs.half(), log_probs.argmax(dim=-1))


def decode_whole(coded: Tensor) -> Tensor:
    """Decodes the result of `encode_whole`.

    Args:
        coded: log-probabilities `[T, V]`, fp16.

    Returns:
        Normalised log-probabilities `[T, V]`, fp32.
    """
    return coded.float().log_softmax(dim=-1)


def encode_sparse(log_probs: Tensor, min_posterior: float) -> SparsePosteriors:
    """Selects the labels whose posterior is at least `min_posterior`, and the best label of each frame.

    Args:
        log_probs: log-probabilities `[T, V]`.
        min_posterior: smallest posterior to store.

    Returns:
        The selected posteriors and the remaining mass of each frame.
    """
    log_probs = clamp_log_probs(log_probs)
    best = log_probs.argmax(dim=-1, keepdim=True)
    kept = (log_probs >= math.log(min_posterior)).scatter(-1, best, True)
    coded = _best_alone(log_probs.half(), best[:, 0])
    residual = log_probs.masked_fill(kept, -math.inf).logsumexp(dim=-1).clamp(min=MIN_LOG_PROB)
    return SparsePosteriors(
        counts=kept.sum(dim=-1).to(torch.uint16),
        ids=kept.nonzero()[:, 1].to(torch.uint16),
        values=coded[kept],
        residual_log_mass=residual.half(),
    )


def decode_sparse(coded: SparsePosteriors, labels: int, out: Tensor | None = None) -> Tensor:
    """Decodes the result of `encode_sparse`.

    Args:
        coded: sparse posteriors of one utterance.
        labels: number of labels `V`.
        out: tensor `[T, V]` to write the result into; None allocates a new one.

    Returns:
        Normalised log-probabilities `[T, V]`, fp32.
    """
    counts, values = coded.counts.long(), coded.values.float()
    residual = coded.residual_log_mass.float()
    frame = torch.repeat_interleave(torch.arange(len(counts)), counts)
    others = labels - counts
    # If a frame stores every label, there is no other label that could receive the remaining mass.
    mass = torch.where(others > 0, residual.exp(), 0.0).index_add(0, frame, values.exp())
    total = mass.clamp(min=torch.finfo(torch.float32).tiny).log()
    share = (residual - others.clamp(min=1).log() - total).clamp(min=MIN_LOG_PROB)
    log_probs = torch.empty(len(counts), labels) if out is None else out
    log_probs.copy_(share[:, None].expand_as(log_probs))
    log_probs[frame, coded.ids.long()] = values - total[frame]
    return log_probs


def clamp_log_probs(log_probs: Tensor) -> Tensor:
    """Detaches log-probabilities, moves them to the CPU as fp32, and replaces -inf by `MIN_LOG_PROB`.

    Args:
        log_probs: log-probabilities of any shape.

    Returns:
        Log-probabilities of the same shape, fp32, at least `MIN_LOG_PROB`.
    """
    return log_probs.detach().float().cpu().clamp(min=MIN_LOG_PROB)


def _best_alone(coded: Tensor, best: Tensor) -> Tensor:
    """Raises the best label of a frame by one fp16 step where rounding made another label equal to it.

    Args:
        coded: log-probabilities `[T, V]`, fp16.
        best: best label of each frame `[T]`, before rounding.

    Returns:
        Log-probabilities `[T, V]`, fp16.
    """
    value = coded.gather(-1, best[:, None])
    tied = ((coded == value).sum(dim=-1, keepdim=True) > 1) & (value < 0)
    # For a negative fp16 number, the bits minus 1 are the next number closer to 0.
    lifted = torch.where(tied, (value.view(torch.int16) - 1).view(torch.float16), value)
    return coded.scatter(-1, best[:, None], lifted)


def encode_hidden(hidden: Tensor) -> CodedHidden:
    """Encodes hidden vectors in 8 bits.

    Args:
        hidden: hidden vectors `[D, T]`, magnitudes below `MOST_HIDDEN`.

    Returns:
        The encoded vectors; all 0 where no magnitude exceeds `1 / MOST_HIDDEN`.
    """
    hidden = hidden.detach().float().cpu()
    magnitude = hidden.abs()
    if not bool((magnitude > 1 / MOST_HIDDEN).any()):
        return CodedHidden(
            torch.zeros(hidden.T.shape, dtype=torch.int8), _none(len(hidden)), _none(hidden.shape[1]), 0.0
        )
    # Divide by the mean level of each frame, so that one frame of large magnitude does not determine the gain
    # of every channel. Average square roots, so that one channel of large magnitude does not determine the
    # level of every frame.
    loudness = magnitude.sqrt().mean(dim=0).square().clamp(min=torch.finfo(torch.float32).tiny)
    extent = (magnitude / loudness).amax(dim=1)
    channels = _gain(extent / extent.max())
    scaled = hidden * _inverse(channels)[:, None]
    loudest = scaled.abs().amax(dim=0)
    peak = float(loudest.max())
    frames = _gain(loudest / peak)
    values = (scaled * (_inverse(frames) * (127 / peak))).round().clamp(-127, 127).to(torch.int8)
    return CodedHidden(values=values.T.contiguous(), channels=channels, frames=frames, peak=peak)


def decode_hidden(coded: CodedHidden, out: Tensor | None = None) -> Tensor:
    """Decodes the result of `encode_hidden`.

    Args:
        coded: encoded hidden vectors of one utterance.
        out: tensor `[D, T]` to write the result into; None allocates a new one.

    Returns:
        Hidden vectors `[D, T]`, fp32.
    """
    channels = (coded.peak / 127) / _inverse(coded.channels)
    # Multiply in the contiguous layout `[T, D]` of the 8-bit values; only the final copy is strided.
    decoded = coded.values.float().mul_(channels).mul_(_inverse(coded.frames).reciprocal_()[:, None]).T
    return decoded if out is None else out.copy_(decoded)


def _none(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def _gain(magnitude: Tensor) -> Tensor:
    """Computes the largest gain, in steps, that keeps a magnitude between 0 and 1 at or below 1."""
    return (-_STEPS * magnitude.log2()).floor().clamp(0, 255).to(torch.uint8)


def _inverse(gain: Tensor) -> Tensor:
    return torch.exp2(gain.float() / _STEPS)
