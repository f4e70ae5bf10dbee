# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""SKD without repeated frames, against slow references that work on one utterance at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nemo_tutornet.functional.alignment import teacher_frames
from nemo_tutornet.functional.frame_weighting import frame_mask
from nemo_tutornet.functional.losses import skd_kl
from nemo_tutornet.functional.skd_alignment import occurrence_of_frames, pool_student, skd_occurrences
from tests.properties import examples

LABELS = 4  # three labels and the blank


def posteriors(seed: int, batch: int, frames: int, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(batch, frames, LABELS, generator=generator)).log_softmax(dim=2)


def slow_pool(log_probs: Tensor, index: list[int], frames: int) -> list[list[float] | None]:
    """The pooled posteriors of each teacher frame of one utterance; None where no student frame is."""
    pooled: list[list[float] | None] = []
    for t in range(frames):
        window = [log_probs[s].exp().tolist() for s, of in enumerate(index) if of == t]
        if not window:
            pooled.append(None)
            continue
        values = [1 - math.prod(1 - p[v] for p in window) for v in range(LABELS - 1)]
        values.append(math.prod(p[-1] for p in window))
        pooled.append([value / sum(values) for value in values])
    return pooled


def slow_occurrences(log_probs: Tensor) -> list[int]:
    """The occurrence of each frame of one utterance, by looking at each run."""
    best = log_probs.argmax(dim=1).tolist()
    runs: list[list[int]] = []
    for t, label in enumerate(best):
        if label == LABELS - 1:
            continue
        if t and best[t - 1] == label:
            runs[-1].append(t)
        else:
            runs.append([t])

    def nearest(t: int) -> int:
        distances = [min(abs(t - frame) for frame in run) for run in runs]
        return distances.index(min(distances)) if runs else -1

    return [nearest(t) for t in range(len(best))]


def slow_skd_occurrences(student: Tensor, teacher: Tensor, index: list[int]) -> float:
    of_teacher = slow_occurrences(teacher)
    of_student = [of_teacher[t] for t in index]
    total = 0.0
    for k in range(max(of_teacher, default=-1) + 1):
        sides = []
        for log_probs, occurrences in ((teacher, of_teacher), (student, of_student)):
            frames = [p.exp().tolist() for p, k_ in zip(log_probs, occurrences, strict=True) if k_ == k]
            if not frames:
                break
            sums = [max(sum(p[v] for p in frames), 1e-8) for v in range(LABELS - 1)]
            labels = [value / sum(sums) for value in sums]
            blank = min(max(sum(p[-1] for p in frames) / len(frames), 1e-8), 1 - 1e-6)
            sides.append((labels, (blank, 1 - blank)))
        if len(sides) == 2:
            for wanted, found in zip(*sides, strict=True):
                total += sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True))
    return total


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Tensor, Tensor, float]:
    """Seed, lengths of the student and the teacher `[B]`, and teacher frames per student frame."""
    ratio = draw(st.sampled_from([0.25, 0.5, 1.0]))
    lengths = draw(st.lists(st.integers(0, 24), min_size=1, max_size=3))
    teacher = [max(0, math.ceil(length * ratio) + draw(st.integers(-1, 1))) for length in lengths]
    return draw(st.integers(0, 10**6)), torch.tensor(lengths), torch.tensor(teacher), ratio


@examples(60)
@given(batch=batches())
def test_pooled_posteriors_are_those_of_the_reference(batch: tuple[int, Tensor, Tensor, float]) -> None:
    seed, lengths, teacher_lengths, ratio = batch
    frames, most = int(lengths.max()) + 2, int(teacher_lengths.max()) + 2
    student = posteriors(seed, len(lengths), frames)
    index, mask = teacher_frames(frames, teacher_lengths, ratio), frame_mask(lengths, frames)
    pooled, found = pool_student(student, index, mask, most)
    assert torch.allclose(pooled.exp().sum(dim=2), torch.ones(len(lengths), most), atol=1e-5)
    for row, length in enumerate(lengths.tolist()):
        expected = slow_pool(student[row, :length], index[row, :length].tolist(), most)
        for t, values in enumerate(expected):
            assert bool(found[row, t]) == (values is not None)
            if values is not None:
                assert pooled[row, t].exp().tolist() == pytest.approx(values, abs=1e-5)


@examples(60)
@given(batch=batches())
def test_occurrences_are_those_of_the_reference(batch: tuple[int, Tensor, Tensor, float]) -> None:
    seed, lengths, teacher_lengths, ratio = batch
    frames, most = int(lengths.max()) + 2, int(teacher_lengths.max()) + 2
    student, teacher = posteriors(seed, len(lengths), frames), posteriors(seed + 1, len(lengths), most)
    teacher[..., -1] += 2.0  # more blanks
    teacher = teacher.log_softmax(dim=2)
    index, mask = teacher_frames(frames, teacher_lengths, ratio), frame_mask(lengths, frames)
    mask = mask & (teacher_lengths > 0)[:, None]
    of_teacher = frame_mask(teacher_lengths, most)
    occurrences = occurrence_of_frames(teacher, of_teacher)
    losses = skd_occurrences(student, teacher, index, mask, of_teacher)
    for row, (length, own) in enumerate(zip(lengths.tolist(), teacher_lengths.tolist(), strict=True)):
        expected = slow_occurrences(teacher[row, :own])
        assert occurrences[row].tolist() == expected + [-1] * (most - own)
        valid = length if own else 0
        reference = slow_skd_occurrences(
            student[row, :valid], teacher[row, :own], index[row, :valid].tolist()
        )
        assert losses[row].item() == pytest.approx(reference, rel=1e-4, abs=1e-4)


def test_equal_frames_are_left_as_they_are() -> None:
    """With one student frame a window, pooling changes nothing, and SKD is that of the frames."""
    student, teacher = posteriors(1, 2, 7), posteriors(2, 2, 7)
    index = torch.arange(7).expand(2, 7)
    mask = frame_mask(torch.tensor([7, 4]), 7)
    pooled, found = pool_student(student, index, mask, 7)
    assert torch.equal(found, mask)
    assert torch.allclose(pooled[mask], student[mask], atol=1e-5)
    assert torch.allclose(skd_kl(pooled, teacher, found), skd_kl(student, teacher, mask), rtol=1e-4)


def test_one_spike_in_a_window_is_enough() -> None:
    """Frame by frame, a student that writes a label once pays for the teacher's repeated frame."""
    teacher = torch.tensor([[[0.98, 0.01, 0.005, 0.005], [0.01, 0.01, 0.01, 0.97]]]).log()
    once = teacher.repeat_interleave(2, dim=1).clone()
    once[0, 1] = teacher[0, 1]
    index = torch.tensor([[0, 0, 1, 1]])
    mask, of_teacher = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    frames = skd_kl(once, teacher.repeat_interleave(2, dim=1), mask)
    pooled, found = pool_student(once, index, mask, 2)
    assert skd_kl(pooled, teacher, found) < 0.05 * frames
    assert skd_occurrences(once, teacher, index, mask, of_teacher) < 0.1 * frames


def test_gradients_are_finite_where_posteriors_are_certain() -> None:
    """A posterior of exactly 1 or 0, as fp32 has, also where frames are padded with NaN."""
    student = torch.zeros(1, 6, LABELS)
    student[0, :, 0], student[0, 2:, 0], student[0, 2:, -1] = 200.0, 0.0, 200.0
    student[0, 5] = float("nan")
    student.requires_grad_()
    teacher = posteriors(3, 1, 3)
    index, mask = torch.tensor([[0, 0, 1, 1, 2, 2]]), frame_mask(torch.tensor([5]), 6)
    log_probs = student.log_softmax(dim=2)
    pooled, found = pool_student(log_probs, index, mask, 3)
    both = skd_kl(pooled, teacher, found) + skd_occurrences(
        log_probs, teacher, index, mask, torch.ones(1, 3, dtype=torch.bool)
    )
    (gradient,) = torch.autograd.grad(both.sum(), student)
    assert both.isfinite().all() and gradient[0, :5].isfinite().all()


def test_a_teacher_that_writes_nothing_gives_no_loss() -> None:
    teacher = torch.full((2, 3, LABELS), 0.01)
    teacher[..., -1] = 0.97
    student = posteriors(5, 2, 6).requires_grad_()
    index = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
    mask, of_teacher = torch.ones(2, 6, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    loss = skd_occurrences(student, teacher.log(), index, mask, of_teacher)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert not student.grad.any()
