# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Word and character error rates, and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
# Largest number of drawn utterances in memory at a time, over all draws. Each takes three integers.
_DRAWN_AT_ONCE = 2**20
# Marks a draw without any reference word; larger than any error rate.
_NO_REFERENCE = 1e30


@dataclass(frozen=True)
class ErrorCounts:
    """Error counts of one or several utterances.

    Attributes:
        substitutions: number of replaced words or characters.
        deletions: number of words or characters of the reference that the hypothesis lacks.
        insertions: number of words or characters of the hypothesis that the reference lacks.
        reference: number of words or characters of the reference.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference: int

    @property
    def rate(self) -> float:
        """Errors per reference word or character; NaN if the reference is empty."""
        total = self.substitutions + self.deletions + self.insertions
        return total / self.reference if self.reference else float("nan")


def count_errors(reference: str, hypothesis: str, unit: str = "word") -> ErrorCounts:
    r"""Counts substitutions, deletions and insertions with jiwer's alignment.

    Args:
        reference: the transcript.
        hypothesis: the output of the model.
        unit: `word` or `character`. In both, white space of any kind and length (tabs and no-break spaces
            too)
            is one space, and at the ends it is none: words are divided as by NeMo's WER, and the one space
            between two words is a character.

    Returns:
        The error counts of the utterance.

    Example:
        >>> count_errors("turn on the light", "turn the lights")
        ErrorCounts(substitutions=1, deletions=1, insertions=0, reference=4)
        >>> count_errors("turn on the light", "turn the lights").rate
        0.5
        >>> count_errors("turn on", " turn\ton ", "character").rate
        0.0
    """
    import jiwer

    # jiwer splits at U+0020 only, not at a tab or a no-break space, and counts each of them as a character.
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:  # jiwer 3 rejects an empty reference
        return ErrorCounts(0, 0, len(hypothesis.split() if unit == "word" else hypothesis), 0)
    counted = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
    length = counted.hits + counted.substitutions + counted.deletions
    return ErrorCounts(counted.substitutions, counted.deletions, counted.insertions, length)


def sum_errors(errors: Sequence[ErrorCounts]) -> ErrorCounts:
    """Adds the error counts of several utterances.

    Args:
        errors: the counts of each utterance.

    Returns:
        The sum of the counts.

    Example:
        >>> sum_errors([count_errors("a b", "a b"), count_errors("c d", "c")])
        ErrorCounts(substitutions=0, deletions=1, insertions=0, reference=4)
    """
    return ErrorCounts(
        sum(e.substitutions for e in errors),
        sum(e.deletions for e in errors),
        sum(e.insertions for e in errors),
        sum(e.reference for e in errors),
    )


def bootstrap_interval(
    errors: Sequence[ErrorCounts], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Computes the 95 % bootstrap interval of an error rate over utterances (Bisani and Ney, 2004).

    Each draw takes utterances with replacement. The interval reaches from the 2.5th to the 97.5th percentile
    of the error rates of the draws.

    Args:
        errors: the counts of each utterance.
        resamples: number of draws. A draw without any reference word has no error rate and is left out.
        seed: seed of the draws, so that the interval is reproducible.

    Returns:
        Lower and upper end of the interval, as fractions; NaN if no draw has a reference word.

    Example:
        >>> bootstrap_interval([count_errors("a b", "a c")] * 100)
        (0.5, 0.5)
    """
    if len(errors) < 2:  # every draw would be the same, and SciPy rejects a single observation
        rate = sum_errors(errors).rate
        return rate, rate
    return _interval([_errors_of(e) for e in errors], [e.reference for e in errors], resamples, seed)


@dataclass(frozen=True)
class RateDifference:
    """Difference of the error rates of two models on the same utterances.

    Attributes:
        value: the second model's error rate minus the first one's, as a fraction.
        low, high: 95 % bootstrap interval over utterances.
    """

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """True if the interval holds 0, or is not known."""
        return not (self.low > 0 or self.high < 0)


def paired_difference(first: Sequence[ErrorCounts], second: Sequence[ErrorCounts]) -> RateDifference:
    """Compares the error rates of two models by the paired bootstrap over utterances (Bisani and Ney, 2004).

    Each draw takes utterances with replacement, the same ones for both models, so what makes an utterance
    hard for both does not widen the interval. A draw without any reference word is left out.

    Args:
        first: the counts of each utterance by the first model.
        second: the counts of the same utterances by the second model.

    Returns:
        The difference and its interval; an interval of NaN for a single utterance, which cannot be resampled.

    Example:
        >>> better, worse = count_errors("a b", "a b"), count_errors("a b", "a c")
        >>> paired_difference([worse] * 9, [better] * 9)
        RateDifference(value=-0.5, low=-0.5, high=-0.5)
    """
    value = sum_errors(second).rate - sum_errors(first).rate
    if len(first) < 2:
        return RateDifference(value, float("nan"), float("nan"))
    more = [_errors_of(b) - _errors_of(a) for a, b in zip(first, second, strict=True)]
    return RateDifference(value, *_interval(more, [e.reference for e in first], RESAMPLES, seed=0))


def _errors_of(counts: ErrorCounts) -> int:
    return counts.substitutions + counts.deletions + counts.insertions


def _interval(
    errors: Sequence[int], reference: Sequence[int], resamples: int, seed: int
) -> tuple[float, float]:
    """Computes the 95 % bootstrap interval of errors per reference word; NaN if no draw has such a word."""
    from scipy.stats import bootstrap

    draws = bootstrap(
        (np.array(errors), np.array(reference)),
        _error_rate,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // len(errors)),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).bootstrap_distribution
    rates = draws[draws < _NO_REFERENCE]
    if not len(rates):
        return float("nan"), float("nan")
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _error_rate(errors: np.ndarray, reference: np.ndarray, axis: int = -1) -> np.ndarray:
    """Computes the errors per reference word of each draw, from the counts of its utterances `[..., U]`.

    It is `_NO_REFERENCE` for a draw without any reference word, because SciPy would warn about NaN.
    """
    totals = reference.sum(axis=axis)
    return np.where(totals > 0, errors.sum(axis=axis) / np.maximum(totals, 1), _NO_REFERENCE)
