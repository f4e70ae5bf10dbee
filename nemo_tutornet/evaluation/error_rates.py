# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Word and character error rates, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
# Utterances of all draws that are in memory at a time, three integers each.
_DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class ErrorCounts:
    """Error counts of one or many utterances.

    Attributes:
        substitutions, deletions, insertions: of words or characters.
        reference: words or characters of the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference: int

    @property
    def rate(self) -> float:
        """Errors per reference word or character; NaN without a reference."""
        total = self.substitutions + self.deletions + self.insertions
        return total / self.reference if self.reference else float("nan")


def count_errors(reference: str, hypothesis: str, unit: str = "word") -> ErrorCounts:
    """Substitutions, deletions and insertions by jiwer's alignment.

    Args:
        reference: transcript.
        hypothesis: what the model made of it.
        unit: `word`, what stands between white space of any kind, as in NeMo's WER, or `character`, where a
        space counts as one.
    """
    import jiwer

    if unit == "word":  # jiwer divides words at U+0020 only, not at a tab or a no-break space
        reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference.strip():  # jiwer 3 refuses an empty reference
        return ErrorCounts(0, 0, len(hypothesis.split() if unit == "word" else hypothesis.strip()), 0)
    counted = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
    length = counted.hits + counted.substitutions + counted.deletions
    return ErrorCounts(counted.substitutions, counted.deletions, counted.insertions, length)


def sum_errors(errors: Sequence[ErrorCounts]) -> ErrorCounts:
    """The counts of all utterances together."""
    return ErrorCounts(
        sum(e.substitutions for e in errors),
        sum(e.deletions for e in errors),
        sum(e.insertions for e in errors),
        sum(e.reference for e in errors),
    )


def bootstrap_interval(
    errors: Sequence[ErrorCounts], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of an error rate, utterances drawn with replacement (Bisani and Ney,
    2004).

    Args:
        errors: counts of each utterance.
        resamples: number of draws; one without any reference word has no rate and is left out.
        seed: of the draws, so that a table can be made again.

    Returns:
        Low and high end, as fractions; NaN where no draw has a reference word.
    """
    from scipy.stats import bootstrap

    if len(errors) < 2:  # every draw is the same, and SciPy refuses a single observation
        rate = sum_errors(errors).rate
        return rate, rate
    wrong = np.array([e.substitutions + e.deletions + e.insertions for e in errors])
    reference = np.array([e.reference for e in errors])
    draws = bootstrap(
        (wrong, reference),
        _error_rate,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // len(errors)),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).bootstrap_distribution
    rates = draws[draws >= 0]
    if not len(rates):
        return float("nan"), float("nan")
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _error_rate(wrong: np.ndarray, reference: np.ndarray, axis: int = -1) -> np.ndarray:
    """Errors per reference word of each draw, from its utterances' counts `[..., U]`.

    It is -1 for a draw without any reference word, and not NaN, of which SciPy would warn.
    """
    totals = reference.sum(axis=axis)
    return np.where(totals > 0, wrong.sum(axis=axis) / np.maximum(totals, 1), -1.0)
