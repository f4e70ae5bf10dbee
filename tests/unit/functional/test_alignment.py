# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Frames are matched by time and inside each utterance; labels are matched by name.

Legend: `B` utterances, `S` frames of the student's grid, `T` frames of the teacher's, `D` width, `V` labels
with the blank last.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.alignment import (
    check_lengths,
    covered_frames,
    label_order,
    pool_hidden,
    pool_posteriors,
    repeat_frames,
    teacher_frames,
)
from tests.properties import examples

QUICK = examples(150)
# Milliseconds per frame: what NeMo's encoders have, and two odd ones.
SHIFTS = (10, 20, 30, 40, 60, 80, 160)


@st.composite
def shift_pairs(draw: st.DrawFn) -> tuple[int, int]:
    """Frame shifts (student, teacher), the student's not longer: what `pair` lets through."""
    student, teacher = sorted((draw(st.sampled_from(SHIFTS)), draw(st.sampled_from(SHIFTS))))
    return student, teacher


def frames_of(student_frames: int, lengths: list[int], rate: float) -> list[list[int]]:
    return teacher_frames(student_frames, torch.tensor(lengths, dtype=torch.int64), rate).tolist()


# --- teacher_frames


@QUICK
@given(
    st.integers(0, 60),
    st.lists(st.integers(0, 70), min_size=1, max_size=4),
    st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0]),
)
def test_teacher_frames_agree_with_loops(student_frames: int, lengths: list[int], rate: float) -> None:
    expected = []
    for length in lengths:
        row = []
        for s in range(student_frames):
            middle = Fraction(2 * s + 1, 2) * Fraction(rate)
            row.append(max(0, min(math.floor(middle), length - 1)))
        expected.append(row)
    assert frames_of(student_frames, lengths, rate) == expected


@QUICK
@given(st.integers(0, 200), st.lists(st.integers(0, 250), min_size=1, max_size=4), shift_pairs())
def test_teacher_frames_are_in_range_and_monotone(
    student_frames: int, lengths: list[int], shifts: tuple[int, int]
) -> None:
    index = teacher_frames(student_frames, torch.tensor(lengths), shifts[0] / shifts[1])
    assert index.shape == (len(lengths), student_frames)
    assert index.dtype == torch.int64
    for row, length in zip(index.tolist(), lengths, strict=True):
        assert all(0 <= t < max(length, 1) for t in row)
        assert all(a <= b <= a + 1 for a, b in itertools.pairwise(row))


@QUICK
@given(st.integers(1, 200), shift_pairs())
def test_a_teacher_frame_covers_the_middle_of_its_student_frame(frames: int, shifts: tuple[int, int]) -> None:
    mine, theirs = shifts
    for s, t in enumerate(frames_of(frames, [10_000], mine / theirs)[0]):
        assert t * theirs - 1e-6 <= (s + 0.5) * mine <= (t + 1) * theirs + 1e-6


@QUICK
@given(st.integers(1, 20_000), shift_pairs(), st.booleans(), st.booleans())
def test_matched_frames_are_within_one_frame_in_time(
    milliseconds: int, shifts: tuple[int, int], student_up: bool, teacher_up: bool
) -> None:
    """However the two encoders round the same audio, no student frame is given one further away than a
    teacher frame.
    """
    mine, theirs = shifts
    student_length = -(-milliseconds // mine) if student_up else milliseconds // mine
    teacher_length = max(-(-milliseconds // theirs) if teacher_up else milliseconds // theirs, 1)
    for s, t in enumerate(frames_of(student_length, [teacher_length], mine / theirs)[0]):
        gap = max(s * mine - (t + 1) * theirs, t * theirs - (s + 1) * mine)
        assert gap <= theirs


@QUICK
@given(st.integers(1, 120), shift_pairs())
def test_frames_repeat_only_where_the_student_is_faster(teacher_length: int, shifts: tuple[int, int]) -> None:
    mine, theirs = shifts
    student_length = teacher_length * theirs // mine
    row = frames_of(student_length, [teacher_length], mine / theirs)[0]
    repeats = [row.count(t) for t in range(max(row) + 1)]
    if mine == theirs:
        assert row == list(range(student_length))
    else:
        assert max(repeats) <= -(-theirs // mine)
        if teacher_length > 1:
            assert max(repeats) > 1
    assert min(repeats) >= theirs // mine, "a teacher frame is skipped"


@QUICK
@given(st.integers(1, 50), st.lists(st.integers(0, 60), min_size=2, max_size=5), shift_pairs())
def test_an_utterance_is_matched_by_its_own_length(
    frames: int, lengths: list[int], shifts: tuple[int, int]
) -> None:
    rate = shifts[0] / shifts[1]
    together = frames_of(frames, lengths, rate)
    for row, length in zip(together, lengths, strict=True):
        assert frames_of(frames, [length], rate) == [row]
        assert frames_of(frames + 17, [length], rate)[0][:frames] == row


def test_lengths_may_be_int32() -> None:
    index = teacher_frames(4, torch.tensor([2, 1], dtype=torch.int32), 0.5)
    assert index.dtype == torch.int64
    assert index.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


# --- covered_frames and pooling


@QUICK
@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
    st.sampled_from([1.0, 1.5, 2.0, 4.0, 8.0 / 3]),
)
def test_covered_frames_agree_with_loops(student_frames: int, lengths: list[int], rate: float) -> None:
    index, counts = covered_frames(student_frames, torch.tensor(lengths), rate)
    for b, length in enumerate(lengths):
        for s in range(student_frames):
            covered = [t for t in range(length) if s * rate <= t + 0.5 < (s + 1) * rate] or [
                max(length - 1, 0)
            ]
            assert index[b, s][counts[b, s]].tolist() == covered
        assert ((index[b] >= 0) & (index[b] < max(length, 1))).all()


@QUICK
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), shift_pairs())
def test_each_teacher_frame_is_covered_once(lengths: list[int], shifts: tuple[int, int]) -> None:
    rate = shifts[1] / shifts[0]
    index, counts = covered_frames(math.ceil(max(lengths) / rate), torch.tensor(lengths), rate)
    for b, length in enumerate(lengths):
        frames = math.ceil(length / rate - 0.5)  # student frames that begin before the teacher's end
        inside = index[b, :frames][counts[b, :frames]].tolist()
        assert sorted(set(inside)) == list(range(max(inside, default=-1) + 1))
        assert len(set(inside)) == len(inside)


@QUICK
@given(st.integers(1, 12), st.integers(1, 30), st.sampled_from([1.5, 2.0, 4.0]), st.integers(0, 10_000))
def test_pooling_agrees_with_loops_and_keeps_spikes(
    student_frames: int, length: int, rate: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(2, 30, 5, generator=generator, dtype=torch.float64).mul(3).log_softmax(-1)
    hidden = torch.randn(2, 3, 30, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([length, 30])
    index, counts = covered_frames(student_frames, lengths, rate)
    posteriors, mean = pool_posteriors(log_probs, index, counts), pool_hidden(hidden, index, counts)
    for b in range(2):
        for s in range(student_frames):
            frames = index[b, s][counts[b, s]].tolist()
            spike = min(frames, key=lambda t: float(log_probs[b, t, -1]))
            assert torch.equal(posteriors[b, s], log_probs[b, spike])
            expected = sum(hidden[b, :, t] for t in frames) / len(frames)
            torch.testing.assert_close(mean[b, :, s], expected, rtol=1e-12, atol=1e-12)


def test_at_the_same_rate_pooling_changes_nothing() -> None:
    log_probs, hidden = torch.randn(2, 7, 4).log_softmax(-1), torch.randn(2, 3, 7)
    index, counts = covered_frames(7, torch.tensor([7, 7]), 1.0)
    assert torch.equal(pool_posteriors(log_probs, index, counts), log_probs)
    assert torch.equal(pool_hidden(hidden, index, counts), hidden)


# --- repeat_frames


@pytest.mark.parametrize("dim", [1, 2])
def test_repeat_frames_agrees_with_loops(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 5, 4, generator=generator)  # [B, T, V]
    index = torch.randint(5, (3, 9), generator=generator)
    repeated = repeat_frames(teacher if dim == 1 else teacher.transpose(1, 2), index, dim)
    assert repeated.shape == ((3, 9, 4) if dim == 1 else (3, 4, 9))
    for b in range(3):
        for s in range(9):
            for v in range(4):
                found = repeated[b, s, v] if dim == 1 else repeated[b, v, s]
                assert found == teacher[b, index[b, s], v]


@QUICK
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 40), shift_pairs())
def test_the_teachers_padding_is_never_read(lengths: list[int], frames: int, shifts: tuple[int, int]) -> None:
    teacher = torch.full((len(lengths), 15, 2), math.nan)
    for b, length in enumerate(lengths):
        teacher[b, :length] = 1.0
    index = teacher_frames(frames, torch.tensor(lengths), shifts[0] / shifts[1])
    assert torch.isfinite(repeat_frames(teacher, index, dim=1)).all()
    assert torch.isfinite(repeat_frames(teacher.transpose(1, 2), index, dim=2)).all()


# --- check_lengths


@QUICK
@given(st.integers(1, 20_000), shift_pairs(), st.booleans(), st.booleans())
def test_lengths_that_differ_by_rounding_pass(
    ms: int, shifts: tuple[int, int], student_up: bool, teacher_up: bool
) -> None:
    mine, theirs = shifts
    student = -(-ms // mine) if student_up else ms // mine
    teacher = -(-ms // theirs) if teacher_up else ms // theirs
    check_lengths([student], [teacher], mine / theirs)


@QUICK
@given(st.integers(0, 500), shift_pairs(), st.integers(3, 50), st.booleans())
def test_lengths_that_differ_by_three_frames_are_refused(
    s: int, shifts: tuple[int, int], off: int, more: bool
) -> None:
    rate = shifts[0] / shifts[1]
    teacher = math.ceil(s * rate) + off if more else math.floor(s * rate) - off
    with pytest.raises(TutorError, match=rf"student has {s} frames and the teacher {teacher} "):
        check_lengths([10, s], [round(10 * rate), teacher], rate)


@pytest.mark.parametrize("shifts", [(80, 20), (160, 20), (80, 30)])
def test_a_slower_student_rounds_too(shifts: tuple[int, int]) -> None:
    mine, theirs = shifts
    for ms in range(1, 2000):
        for student, teacher in itertools.product(
            (-(-ms // mine), ms // mine), (-(-ms // theirs), ms // theirs)
        ):
            check_lengths([student], [teacher], mine / theirs)


@pytest.mark.parametrize("causal_student", [True, False])
def test_causal_subsampling_rounds_up_in_each_halving(causal_student: bool) -> None:
    """A streaming FastConformer of 80 ms beside a QuartzNet of 20 ms, as student and as teacher."""
    for features in range(1, 2000):
        causal = features
        for _ in range(3):
            causal = causal // 2 + 1
        plain = -(-features // 2)
        if causal_student:
            check_lengths([causal], [plain], 4.0)
        else:
            check_lengths([plain], [causal], 0.25)
            check_lengths([plain], [4 * causal], 1.0, upsampling=4)  # with an adapter
    with pytest.raises(TutorError, match="cannot be aligned in time"):
        check_lengths([54], [207], 4.0)


def test_more_than_two_frames_apart_is_refused() -> None:
    check_lengths([76], [40], 0.5)
    with pytest.raises(TutorError, match="student has 77 frames and the teacher 41 "):
        check_lengths([77], [41], 0.5)


@pytest.mark.parametrize("student, teacher", [(76, 38), (76, 37), (75, 38), (77, 38), (1, 1), (0, 0)])
def test_lengths_that_nemo_gives_pass(student: int, teacher: int) -> None:
    check_lengths([student], [teacher], 0.5)


# --- label_order

LABEL_SETS = st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=8)


@QUICK
@given(LABEL_SETS)
def test_equal_labels_need_no_order(labels: list[str]) -> None:
    assert label_order(labels, tuple(labels)) is None


@QUICK
@given(LABEL_SETS.flatmap(lambda labels: st.tuples(st.just(labels), st.permutations(labels))))
def test_label_order_puts_the_teachers_outputs_in_the_students_order(
    case: tuple[list[str], list[str]],
) -> None:
    student, teacher = case
    order = label_order(student, teacher)
    if student == teacher:
        assert order is None
        return
    assert order is not None
    assert [*teacher, "blank"][order[-1]] == "blank"
    assert [teacher[i] for i in order[:-1]] == student
    assert sorted(order) == list(range(len(teacher) + 1))


@pytest.mark.parametrize(
    "student, teacher, named",
    [
        (["a", "b"], ["a", "c"], ["only the student's: ['b']", "only the teacher's: ['c']"]),
        (["a", "b"], ["a"], ["2 labels, the teacher has 1;", "only the student's: ['b']"]),
        (["a"], ["A"], ["only the student's: ['a']", "only the teacher's: ['A']"]),
        (["a", "a"], ["a", "b"], ["only the student's: ['a']", "only the teacher's: ['b']"]),
        ([], ["a"], ["has 0 labels", "only the teacher's: ['a']"]),
        (["a", "a", "b"], ["b", "a", "a"], ["['a'] occur twice"]),
    ],
)
def test_different_label_sets_are_refused_and_shown(
    student: list[str], teacher: list[str], named: list[str]
) -> None:
    with pytest.raises(TutorError) as error:
        label_order(student, teacher)
    for words in named:
        assert words in str(error.value)


def test_a_long_label_set_is_not_shown_whole() -> None:
    with pytest.raises(TutorError) as error:
        label_order([f"s{i}" for i in range(1024)], [f"t{i}" for i in range(1024)])
    assert "1014 more" in str(error.value)
    assert len(str(error.value)) < 400
