# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Aligned words, confusions, and error rates of parts of a corpus."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.evaluation.error_rates import count_errors
from nemo_tutornet.report.transcripts import (
    align_hypotheses,
    align_words,
    count_confusions,
    rates_by_length,
    rates_by_speaker,
)

TEXTS = strategies.lists(strategies.sampled_from("abc"), max_size=6).map(" ".join)


@hypothesis.given(TEXTS, strategies.lists(TEXTS, min_size=1, max_size=3))
def test_an_alignment_holds_every_word_once(reference: str, hypotheses: list[str]) -> None:
    columns = align_hypotheses(reference, hypotheses)
    assert " ".join(column.reference for column in columns if column.reference) == reference
    for i, text in enumerate(hypotheses):
        edits = [edit for column in columns if (edit := column.edits[i]) is not None]
        assert " ".join(edit.hypothesis for edit in edits if edit.hypothesis) == text
        counted = count_errors(reference, text)
        kinds = [edit.kind for edit in edits]
        assert kinds.count("substitution") == counted.substitutions
        assert kinds.count("deletion") == counted.deletions
        assert kinds.count("insertion") == counted.insertions


def test_insertions_of_one_hypothesis_leave_a_hole_in_the_other() -> None:
    columns = align_hypotheses("a b", ["a x y b", "a b z"])
    assert [column.reference for column in columns] == ["a", "", "", "b", ""]
    cells = [[None if edit is None else edit.hypothesis for edit in column.edits] for column in columns]
    assert cells == [["a", "a"], ["x", None], ["y", None], ["b", "b"], [None, "z"]]


def test_an_empty_reference_has_insertions_only() -> None:
    assert [edit.kind for edit in align_words("", "a b")] == ["insertion", "insertion"]
    assert align_words("", "") == [] and align_hypotheses("", [""]) == []


def test_confusions_count_deletions_and_insertions_too() -> None:
    counts = count_confusions(["a b", "a b", "c"], ["a d", "a", "c e"])
    assert counts == {("b", "d"): 1, ("b", ""): 1, ("", "e"): 1}


def rows(*durations: float, speakers: str = "") -> list[Utterance]:
    named = [*speakers, *[None] * (len(durations) - len(speakers))]
    return [
        Utterance(Path(f"{i}.wav"), duration, "a b", speaker=speaker)
        for i, (duration, speaker) in enumerate(zip(durations, named, strict=True))
    ]


def test_every_utterance_is_in_one_part_by_length() -> None:
    corpus = rows(*[0.5 + i / 10 for i in range(20)])
    errors = [count_errors("a b", "a b" if row.duration < 1.4 else "a") for row in corpus]
    parts = rates_by_length(corpus, {"student": errors}, parts=4)
    assert [part.utterances for part in parts] == [5, 5, 5, 5] and sum(part.words for part in parts) == 40
    assert parts[0].rates["student"] == (0.0, 0.0, 0.0) and parts[-1].rates["student"][0] == 0.5


@pytest.mark.parametrize("durations", [[1.0], [1.0, 1.0], [1.0] * 30, [1.0] * 25 + [2.0] * 5])
def test_equally_long_utterances_are_not_split(durations: list[float]) -> None:
    errors = [count_errors("a b", "a b")] * len(durations)
    parts = rates_by_length(rows(*durations), {"student": errors})
    assert sum(part.utterances for part in parts) == len(durations) and len(parts) <= 2


def test_speakers_are_ordered_by_error_rate_and_unknown_ones_left_out() -> None:
    corpus = rows(1, 1, 1, 1, speakers="xyy")
    errors = [count_errors("a b", heard) for heard in ("a b", "a", "a b", "")]
    parts = rates_by_speaker(corpus, {"student": errors})
    assert [(part.name, part.words, part.rates["student"][0]) for part in parts] == [
        ("y", 4, 0.25),
        ("x", 2, 0.0),
    ]
    assert rates_by_speaker(rows(1, 1), {"student": errors[:2]}) == []
