# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses against slow loop references, and the invariants that every one of them must hold.

The references are plain Python (`math`, loops over b, t, v), written from the formulas of the docstrings and from nothing else.

Legend: `B` utterances, `T` frames, `D` width of the hint layer, `V` labels with the blank last.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_tutornet import config, losses

LENGTHS = (7, 0, 1, 5, 7)
FRAMES, WIDTH, LABELS = 7, 3, 5
QUICK = settings(max_examples=80, deadline=None, derandomize=True)

# --- Slow references -------------------------------------------------------------------------------------------------


def slow_mask(lengths: Sequence[int], frames: int) -> List[List[bool]]:
    return [[t < length for t in range(frames)] for length in lengths]


def slow_rkd(student: list, teacher: list, weights: list, mask: list) -> float:
    total, count = 0.0, 0
    for b in range(len(mask)):
        for t in range(len(mask[b])):
            if mask[b][t]:
                error = sum((teacher[b][d][t] - student[b][d][t]) ** 2 for d in range(len(teacher[b]))) / len(teacher[b])
                total += weights[b][t] * error
                count += 1
    return total / count if count else 0.0


def slow_mean_one(raw: Callable[[int, int], float], mask: list) -> List[List[float]]:
    rows = []
    for b in range(len(mask)):
        valid = [t for t in range(len(mask[b])) if mask[b][t]]
        mean = sum(raw(b, t) for t in valid) / len(valid) if valid else 1.0
        rows.append([raw(b, t) / mean if t in valid else 0.0 for t in range(len(mask[b]))])
    return rows


def slow_weights(weighting: str, log_probs: list, hidden: list, mask: list) -> List[List[float]]:
    if weighting == "nonblank":
        return slow_mean_one(lambda b, t: 1 - math.exp(log_probs[b][t][-1]) + 0.05, mask)
    if weighting == "energy":
        return slow_mean_one(lambda b, t: sum(row[t] ** 2 for row in hidden[b]) / len(hidden[b]), mask)
    return slow_mean_one(lambda b, t: 1.0, mask)


def slow_tempered(row: List[float], temperature: float) -> List[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def slow_best(row: List[float]) -> int:
    best = 0
    for v in range(1, len(row)):
        if row[v] > row[best]:
            best = v
    return best


def slow_distance(divergence: str, student: List[float], teacher: List[float], temperature: float) -> float:
    if divergence == "l2":
        return sum((math.exp(s) - math.exp(t)) ** 2 for s, t in zip(student, teacher, strict=True))
    if divergence == "kl":
        p, q = slow_tempered(student, temperature), slow_tempered(teacher, temperature)
        return temperature**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b > 0)
    best = slow_best(teacher)
    return -math.exp(student[best]) if best != len(teacher) - 1 else 0.0


def slow_skd(divergence: str, student: list, teacher: list, mask: list, temperature: float = 1.0) -> List[float]:
    sums = []
    for b in range(len(mask)):
        total = 0.0
        for t in range(len(mask[b])):
            if mask[b][t]:
                total += slow_distance(divergence, student[b][t], teacher[b][t], temperature)
        sums.append(total)
    return sums


def slow_select(frames: str, teacher: list, mask: list, around: int) -> List[List[bool]]:
    chosen = []
    for b in range(len(mask)):
        row = []
        for t in range(len(mask[b])):
            keep = mask[b][t]
            if frames != "all":
                reach = range(t - around, t + around + 1) if frames == "symmetric" else [t]
                keep = keep and any(
                    0 <= n < len(mask[b]) and mask[b][n] and slow_best(teacher[b][n]) != len(teacher[b][n]) - 1 for n in reach
                )
            row.append(keep)
        chosen.append(row)
    return chosen


# --- Batches and the losses by name ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One batch of both networks: hidden layers `[B, D, T]`, log-probabilities `[B, T, V]`, lengths `[B]`."""

    student_hidden: Tensor
    teacher_hidden: Tensor
    student: Tensor
    teacher: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        return losses.frame_mask(self.lengths, self.teacher.shape[1])

    def with_(self, **changes: Tensor) -> Batch:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(*(t.to(dtype) for t in self.tensors()), self.lengths)

    def tensors(self) -> List[Tensor]:
        return [self.student_hidden, self.teacher_hidden, self.student, self.teacher]

    def leaves(self) -> Batch:
        return Batch(*(t.detach().clone().requires_grad_(True) for t in self.tensors()), self.lengths)


def make_batch(
    lengths: Sequence[int] = LENGTHS, frames: int = FRAMES, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    b = len(lengths)
    return Batch(
        student_hidden=normal(b, WIDTH, frames).to(dtype),
        teacher_hidden=normal(b, WIDTH, frames).to(dtype),
        student=normal(b, frames, LABELS).log_softmax(-1).to(dtype),
        teacher=normal(b, frames, LABELS).log_softmax(-1).to(dtype),
        lengths=torch.tensor(lengths),
    )


def fill_padding(batch: Batch, extra: int, value: Optional[float]) -> Batch:
    """The batch with `extra` more frames, and `value` (None: large random numbers) in every frame beyond a length."""
    generator = torch.Generator().manual_seed(99)
    frames = batch.mask.shape[1]
    valid = losses.frame_mask(batch.lengths, frames + extra)

    def filled(tensor: Tensor, time_axis: int) -> Tensor:
        shape = list(tensor.shape)
        shape[time_axis] = frames + extra
        garbage = 50 * torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        garbage = garbage if value is None else torch.full_like(garbage, value)
        garbage.narrow(time_axis, 0, frames).copy_(
            torch.where(valid[:, :frames].unsqueeze(3 - time_axis), tensor, garbage.narrow(time_axis, 0, frames))
        )
        return garbage

    return Batch(
        filled(batch.student_hidden, 2),
        filled(batch.teacher_hidden, 2),
        filled(batch.student, 1),
        filled(batch.teacher, 1),
        batch.lengths,
    )


def rkd_of(weighting: str) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        weights = losses.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
        return losses.rkd(batch.student_hidden, batch.teacher_hidden, weights, batch.mask)

    return run


def skd_of(divergence: str, frames: str, temperature: float = 1.0) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        mask = losses.FRAME_SELECTION[frames](batch.teacher, batch.mask, 1)
        return losses.DIVERGENCE[divergence](batch.student, batch.teacher, mask, temperature)

    return run


SKD: Dict[str, Callable[[Batch], Tensor]] = {
    f"skd-{divergence}-{frames}": skd_of(divergence, frames)
    for divergence in losses.DIVERGENCE
    for frames in losses.FRAME_SELECTION
}
SKD["skd-kl-all-tempered"] = skd_of("kl", "all", 2.5)
RKD = {f"rkd-{weighting}": rkd_of(weighting) for weighting in losses.FRAME_WEIGHTING}
LOSSES = {**RKD, **SKD}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_skd = pytest.mark.parametrize("name", SKD)


def scalar(name: str, batch: Batch) -> Tensor:
    """The loss as training sees it."""
    value = LOSSES[name](batch)
    return value.sum() if value.dim() else value


def student_of(name: str, batch: Batch) -> Tensor:
    return batch.student_hidden if name in RKD else batch.student


def frame_gradients(name: str, batch: Batch) -> Tensor:
    """Gradient of the student's argument, time second: `[B, T, D or V]`."""
    batch = batch.leaves()
    scalar(name, batch).backward()
    gradient = student_of(name, batch).grad
    assert gradient is not None
    return gradient.transpose(1, 2) if name in RKD else gradient


# --- Agreement with the slow references ------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 9))
def test_frame_mask_agrees_with_loops(lengths: List[int], frames: int) -> None:
    mask = losses.frame_mask(torch.tensor(lengths, dtype=torch.int64), frames)
    assert mask.dtype == torch.bool
    assert mask.tolist() == slow_mask(lengths, frames)


@pytest.mark.parametrize("weighting", losses.FRAME_WEIGHTING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_frame_weights_agree_with_loops(weighting: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = make_batch(dtype=dtype)
    weights = losses.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
    expected = slow_weights(weighting, batch.teacher.tolist(), batch.teacher_hidden.tolist(), batch.mask.tolist())
    for row, slow in zip(weights.tolist(), expected, strict=True):
        assert row == pytest.approx(slow, rel=tolerance, abs=0)


@pytest.mark.parametrize("weighting", losses.FRAME_WEIGHTING)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_rkd_agrees_with_loops(weighting: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = make_batch(dtype=dtype, seed=1)
    value = rkd_of(weighting)(batch)
    assert value.dtype == dtype
    weights = slow_weights(weighting, batch.teacher.tolist(), batch.teacher_hidden.tolist(), batch.mask.tolist())
    expected = slow_rkd(batch.student_hidden.tolist(), batch.teacher_hidden.tolist(), weights, batch.mask.tolist())
    assert value.item() == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("frames", losses.FRAME_SELECTION)
@pytest.mark.parametrize("divergence, temperature", [("l2", 1.0), ("kl", 1.0), ("kl", 0.5), ("kl", 3.0), ("guided", 1.0)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_skd_agrees_with_loops(divergence: str, temperature: float, frames: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = make_batch(dtype=dtype, seed=2)
    value = skd_of(divergence, frames, temperature)(batch)
    assert value.dtype == dtype
    mask = slow_select(frames, batch.teacher.tolist(), batch.mask.tolist(), 1)
    expected = slow_skd(divergence, batch.student.tolist(), batch.teacher.tolist(), mask, temperature)
    assert any(expected)
    assert value.tolist() == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize("frames", losses.FRAME_SELECTION)
@pytest.mark.parametrize("around", [0, 1, 2, 9])
def test_frame_selection_agrees_with_loops(frames: str, around: int) -> None:
    for seed in range(5):
        batch = make_batch(seed=seed, frames=12, lengths=(12, 0, 1, 8))
        batch.teacher[..., -1] += 2  # mostly blank, as a CTC network
        chosen = losses.FRAME_SELECTION[frames](batch.teacher, batch.mask, around)
        assert chosen.dtype == torch.bool
        assert chosen.tolist() == slow_select(frames, batch.teacher.tolist(), batch.mask.tolist(), around)


def slow_match(student: list, teacher: list, mask: list, shift: int) -> List[List[int]]:
    matched = []
    for p, q, valid in zip(student, teacher, mask, strict=True):
        row = []
        for t in range(len(valid)):
            near = [s for s in range(len(valid)) if abs(s - t) <= shift and valid[s]] if valid[t] else [t]
            costs = {s: -sum(math.exp(q[t][v]) * p[s][v] for v in range(len(q[t]))) for s in near}
            row.append(min(near, key=lambda s: (costs[s], abs(s - t), t - s)))
        matched.append(row)
    return matched


@pytest.mark.parametrize("shift", [0, 1, 3, 50])
def test_matched_frames_agree_with_loops(shift: int) -> None:
    for seed in range(5):
        batch = make_batch(seed=seed, frames=12, lengths=(12, 0, 1, 8))
        found = losses.match_frames(batch.student, batch.teacher, batch.mask, shift)
        assert found.tolist() == slow_match(batch.student.tolist(), batch.teacher.tolist(), batch.mask.tolist(), shift)


@pytest.mark.parametrize("late", [-2, -1, 1, 2])
@pytest.mark.parametrize("divergence", ["l2", "kl"])
def test_a_shifted_spike_is_not_punished_on_matched_frames(divergence: str, late: int) -> None:
    spikes = torch.full((1, 9, LABELS), -9.0, dtype=torch.float64)
    spikes[..., BLANK], spikes[0, 4] = 0.0, -9.0
    spikes[0, 4, 1] = 0.0
    teacher = spikes.log_softmax(-1)
    student, mask = teacher.roll(late, dims=1), torch.ones(1, 9, dtype=torch.bool)
    match = losses.match_frames(student, teacher, mask, 2)
    matched = student.gather(1, match[..., None].expand_as(student))
    distance = losses.DIVERGENCE[divergence]
    assert distance(student, teacher, mask, 1.0).item() > 1
    assert distance(matched, teacher, mask, 1.0).item() == pytest.approx(0, abs=1e-12)
    too_far = losses.match_frames(student, teacher, mask, abs(late) - 1)
    assert too_far[0, 4] != 4 + late


def test_equal_frames_are_matched_in_place_and_padding_is_never_matched() -> None:
    batch = make_batch(seed=2, frames=6, lengths=(6, 3))
    same = torch.zeros_like(batch.teacher)
    assert losses.match_frames(same, batch.teacher, batch.mask, 4).tolist() == [list(range(6))] * 2
    padded = batch.student.clone()
    padded[1, 3:] = float("nan")
    found = losses.match_frames(padded, batch.teacher, batch.mask, 4)
    assert found[1, :3].max() < 3 and found[1, 3:].tolist() == [3, 4, 5]


@pytest.mark.parametrize("divergence", losses.DIVERGENCE)
def test_kl_alone_reads_the_temperature(divergence: str) -> None:
    batch = make_batch(seed=3)
    plain, tempered = (losses.DIVERGENCE[divergence](batch.student, batch.teacher, batch.mask, tau) for tau in (1.0, 2.0))
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
    assert losses.reduce_like_ctc(each, target_lengths, reduction).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    "reduction, expected",
    [("mean_batch", (2 + 3 + 7) / 3), ("mean_volume", 12 / 5), ("mean", (2 / 1 + 3 / 4 + 7 / 1) / 3), ("sum", 12.0)],
)
def test_reduction_by_hand(reduction: str, expected: float) -> None:
    each = torch.tensor([2.0, 3.0, 7.0], dtype=torch.float64)
    assert losses.reduce_like_ctc(each, torch.tensor([1, 4, 0]), reduction).item() == pytest.approx(expected, rel=1e-12)


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


# --- Invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LOSSES if "guided" not in name])
def test_identical_networks_give_zero_and_no_gradient(name: str) -> None:
    batch = make_batch(seed=6)
    batch = batch.with_(student_hidden=batch.teacher_hidden, student=batch.teacher)
    assert scalar(name, batch).item() == 0.0
    assert frame_gradients(name, batch).abs().max().item() < 1e-14


@pytest.mark.parametrize("frames", losses.FRAME_SELECTION)
def test_guided_ctc_of_identical_networks_is_minus_their_confidence(frames: str) -> None:
    batch = make_batch(seed=7)
    value = skd_of("guided", frames)(batch.with_(student=batch.teacher))
    for b, length in enumerate(LENGTHS):
        best = [batch.teacher[b, t].exp().max().item() for t in range(length) if batch.teacher[b, t].argmax() < LABELS - 1]
        assert value[b].item() == pytest.approx(-sum(best), rel=1e-12, abs=0)
        assert -len(best) <= value[b].item() <= 0


@every_loss
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("garbage", [None, 0.0, math.nan, math.inf, -math.inf])
def test_padding_changes_nothing(name: str, extra: int, garbage: Optional[float]) -> None:
    batch = make_batch(seed=8)
    padded = fill_padding(batch, extra, garbage)
    assert padded.mask.shape[1] == FRAMES + extra
    torch.testing.assert_close(LOSSES[name](padded), LOSSES[name](batch), rtol=1e-12, atol=0)
    before, after = frame_gradients(name, batch), frame_gradients(name, padded)
    torch.testing.assert_close(after[:, :FRAMES][batch.mask], before[batch.mask], rtol=1e-12, atol=1e-300)
    assert (after[~padded.mask] == 0).all(), "padding has a gradient"


@every_loss
def test_batch_permutation_changes_nothing(name: str) -> None:
    batch = make_batch(seed=9)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = Batch(*(tensor[order] for tensor in batch.tensors()), batch.lengths[order])
    value, after = LOSSES[name](batch), LOSSES[name](shuffled)
    torch.testing.assert_close(after, value[order] if value.dim() else value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SKD)
@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
def test_batch_permutation_changes_no_reduced_loss(name: str, reduction: str) -> None:
    batch, targets = make_batch(seed=10), torch.tensor([3, 0, 1, 2, 5])
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = Batch(*(tensor[order] for tensor in batch.tensors()), batch.lengths[order])
    value = losses.reduce_like_ctc(LOSSES[name](batch), targets, reduction)
    after = losses.reduce_like_ctc(LOSSES[name](shuffled), targets[order], reduction)
    torch.testing.assert_close(after, value, rtol=1e-12, atol=0)


@every_skd
def test_utterances_do_not_touch_each_other(name: str) -> None:
    batch = make_batch(seed=11)
    together = LOSSES[name](batch)
    for b in range(len(LENGTHS)):
        alone = Batch(*(tensor[b : b + 1] for tensor in batch.tensors()), batch.lengths[b : b + 1])
        torch.testing.assert_close(LOSSES[name](alone), together[b : b + 1], rtol=1e-12, atol=0)


@every_loss
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    batch = make_batch(seed=12).leaves()
    scalar(name, batch).backward()
    assert batch.teacher.grad is None
    assert batch.teacher_hidden.grad is None
    gradient = student_of(name, batch).grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_frame_weights_of_padding_do_not_count() -> None:
    batch = make_batch(seed=13)
    weights = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = slow_rkd(batch.student_hidden.tolist(), batch.teacher_hidden.tolist(), weights.tolist(), batch.mask.tolist())
    for garbage in (0.0, 1e9, math.nan, math.inf):
        filled = torch.where(batch.mask, weights, garbage)
        value = losses.rkd(batch.student_hidden, batch.teacher_hidden, filled, batch.mask)
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_no_gradient_reaches_the_frame_weights() -> None:
    batch = make_batch(seed=13).leaves()
    weights = torch.ones(batch.mask.shape, dtype=torch.float64, requires_grad=True)
    losses.rkd(batch.student_hidden, batch.teacher_hidden, weights, batch.mask).backward()
    assert weights.grad is None


@every_loss
def test_gradient_flows_at_the_frames_that_count_and_nowhere_else(name: str) -> None:
    batch = make_batch(seed=14)
    counted = batch.mask.tolist()
    if name in SKD:
        frames = "nonblank" if "guided" in name else name.split("-")[2]
        counted = slow_select(frames, batch.teacher.tolist(), counted, 1)
    gradient = frame_gradients(name, batch)
    assert (gradient.abs().sum(dim=-1) > 0).tolist() == counted


def extreme(lengths: Sequence[int], frames: int, labels: Sequence[int], floor: float) -> Tensor:
    """Log-probabilities of a network that is certain of `labels` in turn and gives every other label `floor`."""
    log_probs = torch.full((len(lengths), frames, LABELS), floor, dtype=torch.float64)
    for t in range(frames):
        log_probs[:, t, labels[t % len(labels)]] = 0.0
    return log_probs


BLANK = LABELS - 1
EDGES: Dict[str, Callable[[], Batch]] = {
    "ordinary": make_batch,
    "one empty utterance": lambda: make_batch(lengths=(0, 7)),
    "nothing but empty utterances": lambda: make_batch(lengths=(0, 0)),
    "one frame": lambda: make_batch(lengths=(1,), frames=1),
    "teacher is sure it is all blank": lambda: make_batch().with_(teacher=extreme(LENGTHS, FRAMES, [BLANK], -math.inf)),
    "both are sure it is all blank": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [BLANK], -math.inf), student=extreme(LENGTHS, FRAMES, [BLANK], -math.inf)
    ),
    "sure of different labels": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [0, BLANK], -math.inf), student=extreme(LENGTHS, FRAMES, [1, 0], -math.inf)
    ),
    "far but finite": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [0, BLANK], -6e4), student=extreme(LENGTHS, FRAMES, [1, 0], -6e4)
    ),
    "silent hidden layers": lambda: make_batch().with_(
        teacher_hidden=torch.zeros(len(LENGTHS), WIDTH, FRAMES, dtype=torch.float64)
    ),
    "large hidden layers": lambda: make_batch().with_(
        teacher_hidden=torch.full((len(LENGTHS), WIDTH, FRAMES), 6e4, dtype=torch.float64),
        student_hidden=torch.full((len(LENGTHS), WIDTH, FRAMES), -6e4, dtype=torch.float64),
    ),
}


@every_loss
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_finite_in_every_precision(name: str, edge: str, dtype: torch.dtype) -> None:
    batch = EDGES[edge]().to(dtype)
    value = LOSSES[name](batch)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(value).all()
    assert torch.isfinite(frame_gradients(name, batch)).all()


@every_loss
def test_nothing_to_learn_from_empty_utterances(name: str) -> None:
    batch = make_batch(lengths=(0, 0))
    assert (LOSSES[name](batch) == 0).all()
    assert (frame_gradients(name, batch) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_loss
def test_half_precision_is_only_in_the_inputs(name: str, dtype: torch.dtype) -> None:
    """The half-precision inputs, widened by hand, give the same value: nothing is computed in half precision."""
    batch = make_batch(seed=15).to(dtype)
    torch.testing.assert_close(LOSSES[name](batch), LOSSES[name](batch.to(torch.float32)), rtol=0, atol=0)


# --- What each one promises besides ----------------------------------------------------------------------------------


@st.composite
def posteriors(draw: st.DrawFn, frames: int = 4) -> Tensor:
    """Log-probabilities `[1, T, V]` from flat to certain, with zeros among them."""
    sharpness = draw(st.sampled_from([0.0, 1.0, 20.0, 3000.0]))
    rows = draw(st.lists(st.lists(st.floats(-1, 1), min_size=LABELS, max_size=LABELS), min_size=frames, max_size=frames))
    log_probs = (sharpness * torch.tensor([rows], dtype=torch.float64)).log_softmax(-1)
    return torch.where(log_probs < -700, -math.inf, log_probs)


@QUICK
@given(posteriors(), posteriors(), st.integers(0, 4))
def test_l2_is_at_most_two_a_frame(student: Tensor, teacher: Tensor, length: int) -> None:
    mask = losses.frame_mask(torch.tensor([length]), 4)
    value = losses.skd_l2(student, teacher, mask).item()
    assert 0 <= value <= 2 * length * (1 + 1e-12)


def test_l2_of_certain_networks_that_disagree_reaches_the_bound() -> None:
    batch = EDGES["sure of different labels"]()
    assert skd_of("l2", "all")(batch).tolist() == [2.0 * length for length in LENGTHS]


@QUICK
@given(posteriors(), posteriors(), st.sampled_from([0.5, 1.0, 3.0]))
def test_kl_is_not_negative(student: Tensor, teacher: Tensor, temperature: float) -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert losses.skd_kl(student, teacher, mask, temperature).item() >= -1e-9


@QUICK
@given(posteriors(), posteriors(), st.integers(0, 4))
def test_guided_ctc_lies_between_minus_the_spikes_and_zero(student: Tensor, teacher: Tensor, length: int) -> None:
    mask = losses.frame_mask(torch.tensor([length]), 4)
    spikes = sum(row.argmax() != BLANK for row in teacher[0, :length])
    assert -float(spikes) * (1 + 1e-12) <= losses.skd_guided(student, teacher, mask).item() <= 0


def test_guided_ctc_of_an_all_blank_teacher_is_zero() -> None:
    batch = EDGES["teacher is sure it is all blank"]()
    assert (skd_of("guided", "all")(batch) == 0).all()


@QUICK
@given(
    st.sampled_from(list(losses.FRAME_WEIGHTING)),
    st.lists(st.integers(0, FRAMES), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_frame_weights_have_mean_one_over_valid_frames(
    weighting: str, lengths: List[int], seed: int, loudness: float, dtype: torch.dtype
) -> None:
    batch = fill_padding(make_batch(lengths=lengths, seed=seed), 2, math.nan)
    batch = batch.with_(teacher_hidden=batch.teacher_hidden * loudness).to(dtype)
    weights = losses.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
    assert (weights >= 0).all()
    assert (weights[~batch.mask] == 0).all()
    for row, length in zip(weights.tolist(), lengths, strict=True):
        if length:
            assert sum(row[:length]) / length == pytest.approx(1.0, rel=1e-6)


def test_nonblank_weights_favour_the_teachers_spikes() -> None:
    teacher = extreme([2], 2, [0, BLANK], -math.inf)
    weights = losses.weigh_nonblank(teacher, torch.zeros(1, WIDTH, 2), torch.ones(1, 2, dtype=torch.bool))
    assert (weights[0, 0] / weights[0, 1]).item() == pytest.approx(1.05 / 0.05, rel=1e-5)


def test_a_silent_utterance_is_weighted_uniformly() -> None:
    batch = EDGES["silent hidden layers"]()
    assert torch.equal(losses.weigh_energy(None, batch.teacher_hidden, batch.mask), batch.mask.double())


@QUICK
@given(st.integers(0, 1000), st.integers(0, 4))
def test_frame_selections_are_nested(seed: int, around: int) -> None:
    batch = make_batch(seed=seed)
    chosen = {name: select(batch.teacher, batch.mask, around) for name, select in losses.FRAME_SELECTION.items()}
    assert torch.equal(chosen["all"], batch.mask)
    assert not (chosen["nonblank"] & ~chosen["symmetric"]).any()
    assert not (chosen["symmetric"] & ~batch.mask).any()
    if around == 0:
        assert torch.equal(chosen["symmetric"], chosen["nonblank"])


def test_a_spike_in_padding_brings_in_no_neighbour() -> None:
    teacher = extreme([3], 6, [BLANK, BLANK, BLANK, 0], -math.inf)
    mask = losses.frame_mask(torch.tensor([3]), 6)
    assert not losses.select_symmetric(teacher, mask, 2).any()


def test_the_tables_are_those_of_the_config() -> None:
    assert ("auto", *losses.FRAME_WEIGHTING) == config.FRAME_WEIGHTINGS
    assert tuple(losses.DIVERGENCE) == config.DIVERGENCES
    assert tuple(losses.FRAME_SELECTION) == config.FRAME_SELECTIONS


# --- Several teachers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_mixed_posteriors_agree_with_loops(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(3)
    teachers = [torch.randn(2, 3, 4, dtype=dtype).log_softmax(dim=-1) for _ in range(3)]
    teachers[0][0, 0] = torch.tensor([0.0, -math.inf, -math.inf, -math.inf], dtype=dtype)  # sure beyond what floats hold
    weights = [1.0, 0.5, 3.0]
    mixed = losses.mix_posteriors(teachers, weights).exp()
    for b, t, v in itertools.product(range(2), range(3), range(4)):
        expected = sum(w * math.exp(float(p[b, t, v])) for w, p in zip(weights, teachers, strict=True)) / sum(weights)
        assert float(mixed[b, t, v]) == pytest.approx(expected, rel=10 * tolerance, abs=tolerance)
    assert torch.allclose(mixed.sum(dim=-1), torch.ones(2, 3, dtype=dtype))


def test_one_teacher_is_not_mixed() -> None:
    posteriors = torch.randn(1, 2, 3)
    assert losses.mix_posteriors([posteriors], [0.3]) is posteriors
