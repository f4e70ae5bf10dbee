# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Choice of the smallest posterior that a cache stores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nemo_tutornet.functional.losses import DIVERGENCE
from nemo_tutornet.target_cache.codec import MOST_LABELS, clamp_log_probs, decode_sparse, encode_sparse

# With at most this many outputs, all posteriors are stored. 29 outputs take 5.2 MB per hour of audio at 40 ms
# per frame.
WHOLE_LABELS = 128
# Values that `choose_min_posterior` tries, in the order of the size of the resulting cache, smallest first.
CANDIDATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
_TOLERANCE = 1e-3  # largest relative change of a loss
# Divergences that are checked by default: every divergence of SKD, at temperature 1.
DIVERGENCES: tuple[tuple[str, float], ...] = tuple((name, 1.0) for name in DIVERGENCE)


def choose_min_posterior(
    samples: Sequence[Tensor], divergences: Sequence[tuple[str, float]] = DIVERGENCES
) -> float | None:
    """Chooses the largest candidate threshold that changes no SKD loss by more than 0.1 % (ours).

    Each loss is summed over the samples, separately for each student of `reference_students`.

    Args:
        samples: log-probabilities of a trained teacher, `[T, V]` each.
        divergences: names in `losses.DIVERGENCE`, each with its temperature.

    Returns:
        One of `CANDIDATES`. None if all posteriors should be stored: the label set is small or too large for
        16-bit ids, no candidate changes the losses so little, or no candidate saves space.
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
        if all(abs(found[name] - exact[name]) <= _TOLERANCE * abs(exact[name]) for name in exact):
            return min_posterior
    return None


def reference_losses(
    teachers: Sequence[Tensor], samples: Sequence[Tensor], divergences: Sequence[tuple[str, float]]
) -> dict[tuple[str, str, float], float]:
    """Sums each SKD loss over utterances, for each reference student.

    Args:
        teachers: log-probabilities of the teacher to evaluate, exact or decoded, `[T, V]` each.
        samples: exact log-probabilities of the teacher, from which the students are made, `[T, V]` each.
        divergences: names in `losses.DIVERGENCE`, each with its temperature.

    Returns:
        The sums by name of the student, name of the divergence, and temperature.
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
    """Makes students that represent the beginning, the middle and the end of a training.

    Args:
        log_probs: log-probabilities of the teacher `[T, V]`.

    Yields:
        Name and log-probabilities `[T, V]` of each student: `uniform` over the labels; `late`, the teacher
        delayed by one frame and mixed with a tenth of `uniform`; `unsure`, the teacher at temperature 2.
    """
    uniform = torch.full_like(log_probs, -math.log(log_probs.shape[-1]))
    yield "uniform", uniform
    yield "late", torch.logaddexp(log_probs.roll(1, dims=0) + math.log(0.9), uniform + math.log(0.1))
    yield "unsure", (log_probs / 2).log_softmax(dim=-1)
