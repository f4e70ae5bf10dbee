# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the smallest posterior that a cache keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nemo_tutornet.functional.losses import DIVERGENCE
from nemo_tutornet.target_cache.codec import MOST_LABELS, clamp_log_probs, decode_sparse, encode_sparse

# Up to this many outputs posteriors are kept whole: 29 are 5.2 MB an hour at 40 ms.
WHOLE_LABELS = 128
# Values that `choose_min_posterior` tries, the smallest cache first.
CANDIDATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
# What SKD may use by default: every divergence, at temperature 1.
DIVERGENCES: tuple[tuple[str, float], ...] = tuple((name, 1.0) for name in DIVERGENCE)


def choose_min_posterior(
    samples: Sequence[Tensor], divergences: Sequence[tuple[str, float]] = DIVERGENCES, tolerance: float = 1e-3
) -> float | None:
    """The largest of some smallest posteriors with which no SKD loss changes by more than a tolerance.

    Losses are summed over the samples, against students that know nothing, are a frame late and a tenth
    unsure, and are the teacher at temperature 2.

    Args:
        samples: a trained teacher's log-probabilities, `[T, V]` each.
        divergences: names in `losses.DIVERGENCE`, each with its temperature.
        tolerance: of the relative change.

    Returns:
        One of `CANDIDATES`; None where posteriors are kept whole, because the label set is small (or too
        large for 16 bits), none is good enough, or none saves anything.
    """
    labels = samples[0].shape[-1]
    if not WHOLE_LABELS < labels <= MOST_LABELS:
        return None
    exact = reference_losses([clamp_log_probs(sample) for sample in samples], samples, divergences)
    for min_posterior in CANDIDATES:
        coded = [encode_sparse(sample, min_posterior) for sample in samples]
        if sum(4 * len(sparse.counts) + 4 * len(sparse.ids) for sparse in coded) >= sum(
            2 * sample.numel() for sample in samples
        ):
            return None
        found = reference_losses([decode_sparse(sparse, labels) for sparse in coded], samples, divergences)
        if all(abs(found[name] - exact[name]) <= tolerance * abs(exact[name]) for name in exact):
            return min_posterior
    return None


def reference_losses(
    teachers: Sequence[Tensor], samples: Sequence[Tensor], divergences: Sequence[tuple[str, float]]
) -> dict[tuple[str, str, float], float]:
    """Sum of each SKD loss against each reference student; `teachers` are exact or decoded, `samples` make
    the students.
    """
    sums: dict[tuple[str, str, float], float] = {}
    for teacher, sample in zip(teachers, samples, strict=True):
        valid = torch.ones(1, len(teacher), dtype=torch.bool)
        for student, log_probs in reference_students(clamp_log_probs(sample)):
            for name, temperature in divergences:
                key = (student, name, temperature)
                loss = DIVERGENCE[name](log_probs[None], teacher[None], valid, temperature)
                sums[key] = sums.get(key, 0.0) + float(loss)
    return sums


def reference_students(log_probs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Students that stand for a training's beginning, middle and end, from the teacher's `[T, V]`."""
    uniform = torch.full_like(log_probs, -math.log(log_probs.shape[-1]))
    yield "uniform", uniform
    yield "late", torch.logaddexp(log_probs.roll(1, dims=0) + math.log(0.9), uniform + math.log(0.1))
    yield "unsure", (log_probs / 2).log_softmax(dim=-1)
