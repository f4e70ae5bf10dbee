# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The sentence that a colleague reads first."""

from __future__ import annotations

import math

import pytest

from nemo_tutornet.evaluation.error_rates import RateDifference, count_errors, paired_difference
from nemo_tutornet.report.verdict import points, verdict
from tests.unit.report.reports import evaluation

STUDENT, BASELINE = evaluation(0.08), evaluation(0.10)
TEACHER = evaluation(0.05, parameters=18_900_000, speed=25.0)


def test_a_gain_beyond_the_noise() -> None:
    assert verdict(STUDENT, BASELINE, TEACHER, RateDifference(-0.02, -0.03, -0.01)) == (
        "Distillation lowered the student's word error rate from 10.0 % to 8.0 % (20 % relative), a gain "
        "beyond the noise of these 6 utterances; its teacher has 5.0 %, and the student is 67.5 times "
        "smaller and about 4 times as fast here."
    )


def test_a_gain_within_the_noise_is_called_so() -> None:
    sentence = verdict(STUDENT, BASELINE, None, RateDifference(-0.02, -0.05, 0.01))
    assert sentence.endswith("(20 % relative), a gain within the noise of these 6 utterances.")
    one_utterance = verdict(STUDENT, BASELINE, None, RateDifference(-0.02, math.nan, math.nan))
    assert "within the noise" in one_utterance


def test_harm_and_no_change_are_called_so() -> None:
    worse = verdict(BASELINE, STUDENT, None, RateDifference(0.02, 0.01, 0.03))
    assert worse.startswith(
        "Distillation raised the student's word error rate from 8.0 % to 10.0 % (25 % rel"
    )
    assert "a loss beyond the noise" in worse
    same = verdict(STUDENT, STUDENT, None, RateDifference(0.0, -0.01, 0.01))
    assert same == "Distillation left the student's word error rate at 8.0 % on these 6 utterances."
    perfect = verdict(STUDENT, evaluation(0.0), None, RateDifference(0.08, 0.01, 0.2))
    assert "from 0.0 % to 8.0 %, a loss" in perfect


def test_without_a_baseline_nothing_is_said_about_distillation() -> None:
    assert verdict(STUDENT) == "The student's word error rate is 8.0 % on 6 utterances."


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"speed": 104.0}, "67.5 times smaller and as fast here."),
        ({"speed": 200.0}, "67.5 times smaller and about 2 times as slow here."),
        ({"speed": 25.0, "runtime": "onnx fp32"}, "the student is 67.5 times smaller."),
        ({"speed": 25.0, "parameters": 280_000}, "the student is as large and about 4 times as fast here."),
        (
            {"speed": 25.0, "parameters": 140_000},
            "the student is 2 times larger and about 4 times as fast here.",
        ),
    ],
)
def test_speed_and_size(figures: dict[str, object], words: str) -> None:
    teacher = evaluation(0.05, **{"parameters": 18_900_000, **figures})  # type: ignore[arg-type]
    assert verdict(STUDENT, None, teacher).endswith(words)


def test_the_paired_difference_sees_what_two_intervals_do_not() -> None:
    """Hard utterances are hard for both models; each is a little better with the second."""
    texts = [" ".join("abcdefghij")] * 40
    heard = [" ".join("abcdefghij"[: 10 - i % 9]) for i in range(40)]
    first = [count_errors(text, guess[:-2]) for text, guess in zip(texts, heard, strict=True)]
    second = [count_errors(text, guess) for text, guess in zip(texts, heard, strict=True)]
    change = paired_difference(first, second)
    assert change.value == pytest.approx(-0.1) and change.low == change.high == pytest.approx(-0.1)
    assert not change.is_noise and paired_difference(first, first).is_noise
    assert paired_difference(first[:1], second[:1]).is_noise
    empty = [count_errors("", "a"), count_errors("a", "a")]
    found = paired_difference(empty, empty[::-1])
    assert math.isfinite(found.low) and math.isfinite(found.high)


def test_points_of_one_utterance_have_no_interval() -> None:
    assert points(RateDifference(0.1, math.nan, math.nan)) == "+10.0 points (no interval for one utterance)"
