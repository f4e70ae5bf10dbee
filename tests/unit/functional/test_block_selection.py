# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which of a teacher's blocks a student begins with."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.block_selection import Geometry, check_blocks, select_blocks
from tests.conftest import refusal


def blocks(names: str) -> list[Geometry]:
    """One block for each letter; equal letters have equal geometry."""
    return [{"conv.weight": (ord(name), 3), "conv.stride": (1,)} for name in names]


def fits(student: str, teacher: str, selected: tuple[int, ...]) -> bool:
    """An independent definition of a valid selection that is increasing."""
    ends = selected[-1] == len(teacher) - 1 and (selected[0] == 0 or len(selected) == 1)
    return ends and all(student[i] == teacher[j] for i, j in enumerate(selected))


@given(st.text("abc", min_size=1, max_size=5), st.text("abc", min_size=1, max_size=9))
def test_a_selection_is_found_whenever_there_is_one(student: str, teacher: str) -> None:
    valid = [one for one in combinations(range(len(teacher)), len(student)) if fits(student, teacher, one)]
    if not valid:
        with pytest.raises(TutorError):
            select_blocks(blocks(student), blocks(teacher))
        return
    # `valid` holds what keeps the order, fits, and keeps the first and the last.
    assert tuple(select_blocks(blocks(student), blocks(teacher))) in valid


@given(st.integers(1, 40), st.integers(0, 40))
def test_equal_layers_are_spread_evenly(student: int, more: int) -> None:
    selected = select_blocks(blocks("a" * student), blocks("a" * (student + more)))
    gaps = {after - before for before, after in pairwise(selected)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("student", "teacher", "selected"),
    [
        # QuartzNet 5x5 of 15x5, where the fourth group's first block has another input width than its others.
        ("abcdfhjk", "abbbcccdeefffhhhjk", [0, 1, 4, 7, 10, 13, 16, 17]),
        ("a" * 9, "a" * 17, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        ("a" * 8, "a" * 17, [0, 2, 5, 7, 9, 11, 14, 16]),
        ("a", "aaa", [2]),
        ("ab", "abbb", [0, 3]),
        ("abba", "abbbba", [0, 1, 4, 5]),
        ("abc", "abc", [0, 1, 2]),
    ],
)
def test_what_is_selected(student: str, teacher: str, selected: list[int]) -> None:
    assert select_blocks(blocks(student), blocks(teacher)) == selected


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (
            "aaa",
            "aa",
            "the student has 3 blocks and the teacher 2, but a student is initialised from a teacher with as "
            "many or more.",
        ),
        (
            "ba",
            "aa",
            "the first blocks differ: conv.weight is [98, 3] in the student and [97, 3] in the teacher.",
        ),
        (
            "ab",
            "aa",
            "the last blocks differ: conv.weight is [98, 3] in the student and [97, 3] in the teacher.",
        ),
        (
            "acb",
            "abb",
            "no block of the teacher from 1 on fits the student's block 1; in the nearest, 1, conv.weight is "
            "[99, 3] in the student and [98, 3] in the teacher.",
        ),
        (
            "abbc",
            "abccc",
            "no block of the teacher from 2 on fits the student's block 2; in the nearest, 2, "
            "conv.weight is [98, 3] in the student and [99, 3] in the teacher.",
        ),
        ("abb", "aab", "no block of the teacher is left for the student's block 2."),
    ],
)
def test_what_does_not_fit_is_named(student: str, teacher: str, sentence: str) -> None:
    assert refusal(select_blocks, blocks(student), blocks(teacher)) == sentence


def test_a_stride_and_a_missing_tensor_differ() -> None:
    short, long = {"conv.weight": (2, 3), "conv.stride": (1,)}, {"conv.weight": (2, 3), "conv.stride": (2,)}
    assert "conv.stride is [1] in the student and [2] in the teacher" in refusal(
        select_blocks, [short], [long]
    )
    assert "norm.weight is missing in the student and [2] in the teacher" in refusal(
        select_blocks, [short], [{**short, "norm.weight": (2,)}]
    )


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([0, 1, 2], None),
        ([2, 2, 0], None),
        ([0, 1], "2 layers are named, but the student has 3."),
        ([0, 1, 4], "the teacher has no layer 4, its last is 3."),
        (
            [0, 3, 1],
            "the teacher's layer 3 does not fit the student's layer 1: conv.weight is [97, 3] in the student "
            "and [98, 3] in the teacher.",
        ),
    ],
)
def test_a_selection_of_the_user_is_checked(layers: list[int], sentence: str | None) -> None:
    arguments = layers, blocks("aaa"), blocks("aaab"), "layer"
    if sentence is None:
        check_blocks(*arguments)
    else:
        assert refusal(check_blocks, *arguments) == sentence
