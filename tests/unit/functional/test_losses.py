# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses against slow loop references.

Legend: `B` utterances, `T` frames, `D` width of the hint layer, `V` labels with the blank last.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.functional import frame_weighting, losses
from tests.operators import Operators
from tests.unit.functional.slow_losses import (
    BLANK,
    LABELS,
    LOSSES,
    QUICK,
    RKD,
    every_loss,
    make_batch,
    rkd_of,
    skd_of,
    slow_mask,
    slow_match,
    slow_rkd,
    slow_select,
    slow_skd,
    slow_weights,
)

# --- Agreement with the slow references


@QUICK
@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 9))
def test_frame_mask_agrees_with_loops(lengths: list[int], frames: int) -> None:
    mask = frame_weighting.frame_mask(torch.tensor(lengths, dtype=torch.int64), frames)
    assert mask.dtype == torch.bool
    assert mask.tolist() == slow_mask(lengths, frames)


@pytest.mark.parametrize("weighting", frame_weighting.FRAME_WEIGHTING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_frame_weights_agree_with_loops(weighting: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = make_batch(dtype=dtype)
    weights = frame_weighting.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
    expected = slow_weights(
        weighting, batch.teacher.tolist(), batch.teacher_hidden.tolist(), batch.mask.tolist()
    )
    for row, slow in zip(weights.tolist(), expected, strict=True):
        assert row == pytest.approx(slow, rel=tolerance, abs=0)


@pytest.mark.parametrize("weighting", frame_weighting.FRAME_WEIGHTING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rkd_agrees_with_loops(weighting: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = make_batch(dtype=dtype, seed=1)
    value = rkd_of(weighting)(batch)
    assert value.dtype == dtype
    weights = slow_weights(
        weighting, batch.teacher.tolist(), batch.teacher_hidden.tolist(), batch.mask.tolist()
    )
    expected = slow_rkd(
        batch.student_hidden.tolist(), batch.teacher_hidden.tolist(), weights, batch.mask.tolist()
    )
    assert value.item() == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("frames", frame_weighting.FRAME_SELECTION)
@pytest.mark.parametrize(
    "divergence, temperature", [("l2", 1.0), ("kl", 1.0), ("kl", 0.5), ("kl", 3.0), ("guided_ctc", 1.0)]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_skd_agrees_with_loops(
    divergence: str, temperature: float, frames: str, dtype: torch.dtype, tolerance: float
) -> None:
    batch = make_batch(dtype=dtype, seed=2)
    value = skd_of(divergence, frames, temperature)(batch)
    assert value.dtype == dtype
    mask = slow_select(frames, batch.teacher.tolist(), batch.mask.tolist(), 1)
    expected = slow_skd(divergence, batch.student.tolist(), batch.teacher.tolist(), mask, temperature)
    assert any(expected)
    assert value.tolist() == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("frames", frame_weighting.FRAME_SELECTION)
@pytest.mark.parametrize("around", [0, 1, 2, 9])
def test_frame_selection_agrees_with_loops(frames: str, around: int) -> None:
    for seed in range(5):
        batch = make_batch(seed=seed, frames=12, lengths=(12, 0, 1, 8))
        batch.teacher[..., -1] += 2  # mostly blank, as a CTC network
        chosen = frame_weighting.FRAME_SELECTION[frames](batch.teacher, batch.mask, around)
        assert chosen.dtype == torch.bool
        assert chosen.tolist() == slow_select(frames, batch.teacher.tolist(), batch.mask.tolist(), around)


@pytest.mark.parametrize("shift", [0, 1, 3, 50])
def test_matched_frames_agree_with_loops(shift: int) -> None:
    for seed in range(5):
        batch = make_batch(seed=seed, frames=12, lengths=(12, 0, 1, 8))
        found = frame_weighting.match_frames(batch.student, batch.teacher, batch.mask, shift)
        assert found.tolist() == slow_match(
            batch.student.tolist(), batch.teacher.tolist(), batch.mask.tolist(), shift
        )


@pytest.mark.parametrize("late", [-2, -1, 1, 2])
@pytest.mark.parametrize("divergence", ["l2", "kl"])
def test_a_shifted_spike_is_not_punished_on_matched_frames(divergence: str, late: int) -> None:
    spikes = torch.full((1, 9, LABELS), -9.0, dtype=torch.float64)
    spikes[..., BLANK], spikes[0, 4] = 0.0, -9.0
    spikes[0, 4, 1] = 0.0
    teacher = spikes.log_softmax(-1)
    student, mask = teacher.roll(late, dims=1), torch.ones(1, 9, dtype=torch.bool)
    match = frame_weighting.match_frames(student, teacher, mask, 2)
    matched = student.gather(1, match[..., None].expand_as(student))
    distance = losses.DIVERGENCE[divergence]
    assert distance(student, teacher, mask, 1.0).item() > 1
    assert distance(matched, teacher, mask, 1.0).item() == pytest.approx(0, abs=1e-12)
    too_far = frame_weighting.match_frames(student, teacher, mask, abs(late) - 1)
    assert too_far[0, 4] != 4 + late


def test_equal_frames_are_matched_in_place_and_padding_is_never_matched() -> None:
    batch = make_batch(seed=2, frames=6, lengths=(6, 3))
    same = torch.zeros_like(batch.teacher)
    assert frame_weighting.match_frames(same, batch.teacher, batch.mask, 4).tolist() == [list(range(6))] * 2
    padded = batch.student.clone()
    padded[1, 3:] = float("nan")
    found = frame_weighting.match_frames(padded, batch.teacher, batch.mask, 4)
    assert found[1, :3].max() < 3 and found[1, 3:].tolist() == [3, 4, 5]


def test_frames_are_matched_without_copies_of_the_posteriors() -> None:
    batch = make_batch(seed=2, frames=6, lengths=(6, 3))
    with Operators() as ran:
        frame_weighting.match_frames(batch.student, batch.teacher, batch.mask, 4)
    assert ran.counts["mul.Tensor"] and not ran.counts["index.Tensor"]


def test_impossible_labels_do_not_keep_frames_from_being_matched() -> None:
    student = torch.tensor([[[-math.inf, 0.0], [0.0, -math.inf]]])
    teacher = torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]])
    assert frame_weighting.match_frames(student, teacher, torch.ones(1, 2, dtype=torch.bool), 1).tolist() == [
        [1, 1]
    ]


def test_greedy_lengths_merge_repeats_and_leave_out_blanks_and_padding() -> None:
    best = torch.tensor([[0, 0, 4, 0, 1, 1], [4, 4, 4, 2, 2, 2], [3, 1, 3, 1, 3, 1]])
    log_probs = torch.nn.functional.one_hot(best, 5).float().log_softmax(-1)
    assert frame_weighting.greedy_lengths(
        log_probs, frame_weighting.frame_mask(torch.tensor([6, 3, 2]), 6)
    ).tolist() == [3, 0, 2]


@pytest.mark.parametrize("divergence", losses.DIVERGENCE)
def test_kl_alone_reads_the_temperature(divergence: str) -> None:
    batch = make_batch(seed=3)
    plain, tempered = (
        losses.DIVERGENCE[divergence](batch.student, batch.teacher, batch.mask, tau) for tau in (1.0, 2.0)
    )
    assert torch.equal(plain, tempered) == (divergence != "kl")


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_kl_of_log_probabilities_is_that_of_logits(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 3, dtype=torch.bool)
    logits = 3 * torch.randn(2, 2, 3, LABELS, generator=generator, dtype=torch.float64) + 7
    expected = slow_skd("kl", logits[0].tolist(), logits[1].tolist(), mask.tolist(), temperature)
    value = losses.skd_kl(logits[0].log_softmax(-1), logits[1].log_softmax(-1), mask, temperature)
    assert value.tolist() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reduction_is_that_of_ctc(reduction: str) -> None:
    """Whatever torch's CTC does with its own per-utterance values, also for a transcript without labels."""
    batch = make_batch(seed=4, lengths=(7, 7, 7))
    targets, target_lengths = torch.tensor([[0, 1, 2], [3, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 0])
    arguments = (batch.student.transpose(0, 1), targets, batch.lengths, target_lengths, LABELS - 1)
    each = torch.nn.functional.ctc_loss(*arguments, reduction="none")
    expected = torch.nn.functional.ctc_loss(*arguments, reduction=reduction)
    assert losses.reduce_like_ctc(each, target_lengths, reduction).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize(
    "reduction, expected",
    [
        ("mean_batch", (2 + 3 + 7) / 3),
        ("mean_volume", 12 / 5),
        ("mean", (2 / 1 + 3 / 4 + 7 / 1) / 3),
        ("sum", 12.0),
    ],
)
def test_reduction_by_hand(reduction: str, expected: float) -> None:
    each = torch.tensor([2.0, 3.0, 7.0], dtype=torch.float64)
    assert losses.reduce_like_ctc(each, torch.tensor([1, 4, 0]), reduction).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
def test_reduction_of_a_batch_without_labels_is_finite(reduction: str) -> None:
    value = losses.reduce_like_ctc(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), reduction)
    assert math.isfinite(value.item())


@every_loss
def test_gradcheck(name: str) -> None:
    batch = make_batch(lengths=(4, 0, 2), frames=4, seed=5)
    key = "student_hidden" if name in RKD else "student"
    start = getattr(batch, key).clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda student: LOSSES[name](batch.with_(**{key: student})), (start,))


# --- Several teachers


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_mixed_posteriors_agree_with_loops(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(3)
    teachers = [torch.randn(2, 3, 4, dtype=dtype).log_softmax(dim=-1) for _ in range(3)]
    # Sure beyond what floats hold.
    teachers[0][0, 0] = torch.tensor([0.0, -math.inf, -math.inf, -math.inf], dtype=dtype)
    weights = [1.0, 0.5, 3.0]
    mixed = losses.mix_posteriors(teachers, weights).exp()
    for b, t, v in itertools.product(range(2), range(3), range(4)):
        expected = sum(w * math.exp(float(p[b, t, v])) for w, p in zip(weights, teachers, strict=True)) / sum(
            weights
        )
        assert float(mixed[b, t, v]) == pytest.approx(expected, rel=10 * tolerance, abs=tolerance)
    assert torch.allclose(mixed.sum(dim=-1), torch.ones(2, 3, dtype=dtype))


def test_one_teacher_is_not_mixed() -> None:
    posteriors = torch.randn(1, 2, 3)
    assert losses.mix_posteriors([posteriors], [0.3]) is posteriors


def test_teachers_in_half_precision_are_mixed_in_single() -> None:
    teachers = [torch.randn(2, 3, 4).log_softmax(-1).half() for _ in range(2)]
    assert losses.mix_posteriors(teachers, [1.0, 3.0]).dtype == torch.float32


def test_a_label_that_comes_again_is_another_one() -> None:
    best = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 1]])
    log_probs = torch.nn.functional.one_hot(best, 5).float().log_softmax(-1)
    assert frame_weighting.greedy_lengths(log_probs, torch.ones(2, 4, dtype=torch.bool)).tolist() == [2, 4]
