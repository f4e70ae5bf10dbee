# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Error rates, and their intervals against every possible resample and a slow loop."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nemo.collections.asr.metrics.wer import word_error_rate

from nemo_tutornet.evaluation import error_rates
from nemo_tutornet.evaluation.error_rates import ErrorCounts, bootstrap_interval, count_errors, sum_errors


def utterances(*counts: tuple[int, int]) -> list[ErrorCounts]:
    """Utterances with a number of errors, of all three kinds in turn, and of reference words."""
    return [
        ErrorCounts((wrong + 2) // 3, (wrong + 1) // 3, wrong // 3, reference) for wrong, reference in counts
    ]


def slow_interval(resamples: Iterable[Sequence[ErrorCounts]]) -> tuple[float, float]:
    """The percentile interval of the resamples that have a reference word."""
    rates = [total.rate for total in map(sum_errors, resamples) if total.reference]
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def test_error_counts_agree_with_an_edit_distance_by_hand() -> None:
    errors = count_errors("a b c d e f g h", "a x c d e g h i")
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.reference) == (1, 1, 1, 8)
    assert errors.rate == 3 / 8
    characters = count_errors("ab c", "abc", "character")
    assert (characters.deletions, characters.reference) == (1, 4)
    assert count_errors("", "a b").insertions == 2 and count_errors("a b", "").deletions == 2
    assert (
        count_errors("", "a b", "character").insertions == 3
        and count_errors("a b", "", "character").deletions == 3
    )


TEXTS = st.lists(st.sampled_from("ab \t\n\x1c\u00a0\u3000\u200b")).map("".join)


@given(TEXTS, TEXTS)
@example("a\u00a0b\u3000a\tb", "a b a b")
def test_words_are_divided_as_in_nemos_word_error_rate(reference: str, hypothesis: str) -> None:
    errors = count_errors(reference, hypothesis)
    assert errors.reference == len(reference.split())
    if errors.reference:
        assert errors.rate == word_error_rate([hypothesis], [reference])
    else:
        assert errors.insertions == len(hypothesis.split())


@given(TEXTS, TEXTS)
@example(" a  b\u00a0", "a\tb")
def test_white_space_counts_alike_in_words_and_characters(reference: str, hypothesis: str) -> None:
    """One space between two words, and none at the ends, whatever it is made of."""
    tidy = [" ".join(text.split()) for text in (reference, hypothesis)]
    for unit in ("word", "character"):
        errors = count_errors(reference, hypothesis, unit)
        assert errors == count_errors(*tidy, unit)
        assert errors.reference == len(tidy[0].split() if unit == "word" else tidy[0])
    if tidy[0]:
        assert count_errors(reference, hypothesis, "character").rate == word_error_rate(
            tidy[1:], tidy[:1], use_cer=True
        )


@pytest.mark.parametrize(
    "counts",
    [
        [(0, 3), (2, 4), (1, 2), (5, 5)],
        [(1, 3), (1, 3), (1, 3)],  # every resample has the same rate
        [(3, 0), (2, 4), (0, 0), (1, 6)],  # two have no reference, so some resamples have none
        [(1, 0), (0, 2), (0, 0), (2, 0)],
        [(7, 2), (0, 2), (3, 1), (0, 3)],  # more errors than words
    ],
)
def test_interval_is_that_of_all_resamples(counts: list[tuple[int, int]]) -> None:
    """So few utterances can be drawn in at most 256 ways, and the drawn ones have the same percentiles."""
    errors = utterances(*counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_interval(errors, resamples=20_000)
    assert found == pytest.approx(slow_interval(itertools.product(errors, repeat=len(errors))))


def test_interval_of_many_utterances_agrees_with_a_slow_loop() -> None:
    draw = random.Random(1)
    errors = utterances(*((draw.choice([0, 0, 1, 4]), draw.randrange(12)) for _ in range(60)))
    found = bootstrap_interval(errors)
    low, high = slow_interval(draw.choices(errors, k=len(errors)) for _ in range(5000))
    # The ends of 2000 draws scatter by some 4 % of the interval's width, and more by no more than chance.
    assert found == pytest.approx((low, high), abs=0.15 * (high - low))
    assert low < sum_errors(errors).rate < high
    assert bootstrap_interval(errors, seed=1) != found


def test_utterances_are_drawn_with_their_references() -> None:
    """Errors drawn apart from their words would spread the rate."""
    low, high = bootstrap_interval(utterances(*((n, 2 * n) for n in range(1, 50))))
    assert low == high == 0.5


def test_interval_of_one_utterance_or_none() -> None:
    assert bootstrap_interval(utterances((1, 4))) == (0.25, 0.25)
    for errors in ([], utterances((2, 0)), utterances((2, 0), (0, 0), (1, 0))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(map(math.isnan, bootstrap_interval(errors)))


def test_no_more_is_drawn_at_once_than_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    rate = error_rates._error_rate

    def recorded(wrong: np.ndarray, reference: np.ndarray, axis: int = -1) -> np.ndarray:
        sizes.append(wrong.size)
        return rate(wrong, reference, axis)

    monkeypatch.setattr(error_rates, "_error_rate", recorded)
    low, high = bootstrap_interval(utterances((0, 5), (1, 5)) * 10_000)
    assert max(sizes) <= error_rates._DRAWN_AT_ONCE and sum(sizes) >= 2000 * 20_000
    assert low < 0.1 < high


def test_bootstrap_interval_holds_the_rate_and_is_the_same_each_time() -> None:
    counts = [count_errors("a b c d", "a b c d" if i % 4 else "a b x d") for i in range(100)]
    low, high = bootstrap_interval(counts)
    assert low < 25 / 400 < high and (low, high) == bootstrap_interval(counts)
    # A quarter of the utterances with 1 error of 4: 1.96 * 2 * sqrt(p q / n) / 4 = 0.042.
    assert 0.02 < high - low < 0.06
    assert bootstrap_interval(counts[1:4]) == (0.0, 0.0)
