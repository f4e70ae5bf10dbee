# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The result of a distillation in words."""

from __future__ import annotations

from nemo_tutornet.evaluation.error_rates import RateDifference
from nemo_tutornet.evaluation.scoring import Evaluation

# Real-time factors that differ by less are called equal: they are measured once.
_SAME_SPEED = 0.1


def verdict(
    student: Evaluation,
    baseline: Evaluation | None = None,
    teacher: Evaluation | None = None,
    change: RateDifference | None = None,
    teacher_name: str = "teacher",
) -> str:
    """Says in one sentence what the distillation did.

    Args:
        student: the distilled student.
        baseline: the undistilled student; None if it is not known.
        teacher: the teacher; None if it is not known.
        change: WER of the student minus that of the baseline.
        teacher_name: what the teacher is called.

    Returns:
        A sentence. It says so where the change is within the noise of the utterances.
    """
    if baseline is not None and change is not None:
        first = _change(student, baseline, change)
    else:
        first = f"The student's word error rate is {percent(student.wer)} on {student.utterances} utterances"
    if teacher is None:
        return f"{first}."
    same_runtime = student.runtime == teacher.runtime
    speed = _speed(teacher.real_time_factor / student.real_time_factor) if same_runtime else ""
    size = _ratio(teacher.parameters / student.parameters, "smaller", "larger")
    comparison = " and ".join(words for words in (size, speed) if words)
    return f"{first}; its {teacher_name} has {percent(teacher.wer)}, and the student is {comparison}."


def percent(rate: float) -> str:
    """Formats a fraction in percent.

    Example:
        >>> percent(0.0843), percent(float("nan"))
        ('8.4 %', 'unknown')
    """
    return "unknown" if rate != rate else f"{100 * rate:.1f} %"


def points(change: RateDifference) -> str:
    """Formats a difference and its interval in percentage points.

    Example:
        >>> points(RateDifference(-0.02, -0.041, 0.003))
        '−2.0 points (95 % interval −4.1 to +0.3)'
    """
    interval = f"95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
    known = change.low == change.low
    text = f"{100 * change.value:+.1f} points ({interval if known else 'no interval for one utterance'})"
    return text.replace("-", "\u2212")


def _change(student: Evaluation, baseline: Evaluation, change: RateDifference) -> str:
    rates = f"from {percent(baseline.wer)} to {percent(student.wer)}"
    these = f"these {student.utterances} utterances"
    if change.value == 0:
        return f"Distillation left the student's word error rate at {percent(student.wer)} on {these}"
    lowered = change.value < 0
    relative = ""
    if baseline.wer > 0:
        relative = f" ({abs(student.wer / baseline.wer - 1):.0%} relative)".replace("%", " %")
    noise = "within" if change.is_noise else "beyond"
    what = "a gain" if lowered else "a loss"
    verb = "lowered" if lowered else "raised"
    return (
        f"Distillation {verb} the student's word error rate {rates}{relative}, {what} {noise} the noise "
        f"of {these}"
    )


def _ratio(ratio: float, if_more: str, if_less: str) -> str:
    if round(ratio, 1) == 1.0:
        return "as large"
    factor, word = (ratio, if_more) if ratio > 1 else (1 / ratio, if_less)
    return f"{factor:.3g} times {word}"


def _speed(ratio: float) -> str:
    if abs(ratio - 1) < _SAME_SPEED:
        return "as fast here"
    factor, word = (ratio, "as fast") if ratio > 1 else (1 / ratio, "as slow")
    return f"about {factor:.2g} times {word} here"
