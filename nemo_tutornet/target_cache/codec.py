# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How a teacher's outputs are coded for the disk: pure functions, tensors in, tensors out (the codec is
ours).

Posteriors of a small label set are fp16 log-probabilities, whole. Of a large one each frame keeps the labels
whose posterior is at least `min_posterior`, its best one in any case, and the log of the remaining mass,
which decoding spreads evenly over the other labels. CTC posteriors are spiky, so this beats a fixed number of
labels. For 129 outputs of a teacher on AN4, and SKD within 0.1 %, a smallest posterior of 1e-5 takes 0.8 MB
an hour, the best 8 labels of each frame 3.1, all 23. For 1025 outputs 1e-6 takes 5.7 MB an hour, all take
184. A softmax temperature above 1 gives weight to the dropped posteriors; `choose_min_posterior` then finds
none, and posteriors stay whole.

Hidden vectors are 8 bits with two gains, one of each channel and one of each frame, so that neither a loud
channel nor a loud frame costs the others their precision.

Measured with `benchmarks/cache_formats.py`; tests hold the tolerances.

Legend: `T` frames, `V` labels with the blank last, `N` kept labels of all frames, `D` width of the hint
layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Ids and counts are 16 bits.
MOST_LABELS = 2**16 - 1
# A log-probability below this is 0 in every float format, and fp16 holds it exactly.
MIN_LOG_PROB = -1e4
# Gains stay clear of fp32's ends.
MOST_HIDDEN = 1e30
# Gains are in steps of an eighth of an octave, so they waste at most 9 % of a byte's range, and 255 of them
# are 2^-32.
_STEPS = 8


@dataclass(frozen=True)
class SparsePosteriors:
    """Posteriors of one utterance that are large enough to be kept.

    Attributes:
        counts: kept labels of each frame `[T]`, uint16, at least 1.
        ids: the kept labels `[N]`, uint16, frame by frame.
        values: their log-probabilities `[N]`, fp16.
        residual_log_mass: log of each frame's remaining mass `[T]`, fp16.
    """

    counts: Tensor
    ids: Tensor
    values: Tensor
    residual_log_mass: Tensor


@dataclass(frozen=True)
class CodedHidden:
    """Hidden vectors of one utterance: `value / 127 * peak * 2^-((channel + frame) / 8)`.

    Attributes:
        values: `[T, D]`, int8.
        channels: gain of each channel `[D]`, uint8.
        frames: gain of each frame `[T]`, uint8.
        peak: the largest magnitude under its channel's gain, fp32.
    """

    values: Tensor
    channels: Tensor
    frames: Tensor
    peak: float


def encode_whole(log_probs: Tensor) -> Tensor:
    """Log-probabilities `[T, V]` as fp16 `[T, V]`, nowhere -inf; each frame's best label stays its only best
    one.
    """
    log_probs = clamp_log_probs(log_probs)
    return _best_alone(log_probs.half(), log_probs.argmax(dim=-1))


def decode_whole(coded: Tensor) -> Tensor:
    """Log-probabilities `[T, V]`, fp32, of `encode_whole`'s result, normalised."""
    return coded.float().log_softmax(dim=-1)


def encode_sparse(log_probs: Tensor, min_posterior: float) -> SparsePosteriors:
    """Keeps of log-probabilities `[T, V]` those whose posterior is at least `min_posterior`, and each frame's
    best.
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
    """Log-probabilities `[T, V]`, fp32, of `encode_sparse`'s result, normalised; `labels` is `V`, `out` is
    written if given.
    """
    counts, values = coded.counts.long(), coded.values.float()
    residual = coded.residual_log_mass.float()
    frame = torch.repeat_interleave(torch.arange(len(counts)), counts)
    others = labels - counts
    # A frame that keeps every label has nothing to spread.
    mass = torch.where(others > 0, residual.exp(), 0.0).index_add(0, frame, values.exp())
    total = mass.clamp(min=torch.finfo(torch.float32).tiny).log()
    share = (residual - others.clamp(min=1).log() - total).clamp(min=MIN_LOG_PROB)
    log_probs = torch.empty(len(counts), labels) if out is None else out
    log_probs.copy_(share[:, None].expand_as(log_probs))
    log_probs[frame, coded.ids.long()] = values - total[frame]
    return log_probs


def clamp_log_probs(log_probs: Tensor) -> Tensor:
    """Log-probabilities detached, in fp32, on the CPU, and nowhere -inf."""
    return log_probs.detach().float().cpu().clamp(min=MIN_LOG_PROB)


def _best_alone(coded: Tensor, best: Tensor) -> Tensor:
    """Lifts each frame's `best` `[T]` by one fp16 step where rounding made another of `[T, V]` its equal."""
    value = coded.gather(-1, best[:, None])
    tied = ((coded == value).sum(dim=-1, keepdim=True) > 1) & (value < 0)
    # The bits of a negative fp16 count up with its magnitude.
    lifted = torch.where(tied, (value.view(torch.int16) - 1).view(torch.float16), value)
    return coded.scatter(-1, best[:, None], lifted)


def encode_hidden(hidden: Tensor) -> CodedHidden:
    """Hidden vectors `[D, T]` in 8 bits; magnitudes are below `MOST_HIDDEN`, and 0 below its inverse."""
    hidden = hidden.detach().float().cpu()
    magnitude = hidden.abs()
    if not bool((magnitude > 1 / MOST_HIDDEN).any()):
        return CodedHidden(
            torch.zeros(hidden.T.shape, dtype=torch.int8), _none(len(hidden)), _none(hidden.shape[1]), 0.0
        )
    # A channel is measured against its frames' loudness, so that one loud frame does not set every channel's
    # gain; the mean of square roots, so that one loud channel does not set every frame's loudness.
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
    """Hidden vectors `[D, T]`, fp32, of `encode_hidden`'s result; written into `out` if given."""
    channels = (coded.peak / 127) / _inverse(coded.channels)
    # The product over the 8-bit rows is contiguous; the transposed copy is the only strided step.
    decoded = coded.values.float().mul_(channels).mul_(_inverse(coded.frames).reciprocal_()[:, None]).T
    return decoded if out is None else out.copy_(decoded)


def _none(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def _gain(magnitude: Tensor) -> Tensor:
    """Steps by which magnitudes of 0 to 1 may be lifted and stay within 1."""
    return (-_STEPS * magnitude.log2()).floor().clamp(0, 255).to(torch.uint8)


def _inverse(gain: Tensor) -> Tensor:
    return torch.exp2(gain.float() / _STEPS)
