# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Slow references of the losses, batches for their tests, and the losses by name.

The references are plain Python (`math`, loops over b, t, v), written from the formulas of the docstrings and
from nothing else.

Legend: `B` utterances, `T` frames, `D` width of the hint layer, `V` labels with the blank last.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nemo_tutornet.functional import frame_weighting, losses
from tests.properties import examples

LENGTHS = (7, 0, 1, 5, 7)
FRAMES, WIDTH, LABELS = 7, 3, 5
BLANK = LABELS - 1
QUICK = examples(80)

# --- Slow references


def slow_mask(lengths: Sequence[int], frames: int) -> list[list[bool]]:
    return [[t < length for t in range(frames)] for length in lengths]


def slow_rkd(student: list, teacher: list, weights: list, mask: list) -> float:
    total, count = 0.0, 0
    for b in range(len(mask)):
        for t in range(len(mask[b])):
            if mask[b][t]:
                error = sum((teacher[b][d][t] - student[b][d][t]) ** 2 for d in range(len(teacher[b]))) / len(
                    teacher[b]
                )
                total += weights[b][t] * error
                count += 1
    return total / count if count else 0.0


def slow_rkd_sums(student: list, teacher: list, weights: list, mask: list) -> list[float]:
    """The sum over the frames of each utterance."""
    return [
        slow_rkd([student[b]], [teacher[b]], [weights[b]], [mask[b]]) * sum(mask[b]) for b in range(len(mask))
    ]


def slow_reduce_over_time(
    sums: list[float], frames: list[int], seconds: float, labels: list[int], reduction: str
) -> float:
    guessed = [
        labels[b] if labels[b] > 0 else max(1.0, 10.0 * seconds * frames[b]) for b in range(len(labels))
    ]
    total = 0.0
    for b in range(len(sums)):
        total += seconds * sums[b] / (guessed[b] if reduction == "mean" else 1.0)
    divisor = {"sum": 1.0, "mean_volume": sum(guessed)}.get(reduction, float(len(sums)))
    return total / divisor


def slow_mean_one(raw: Callable[[int, int], float], mask: list) -> list[list[float]]:
    rows = []
    for b in range(len(mask)):
        valid = [t for t in range(len(mask[b])) if mask[b][t]]
        mean = sum(raw(b, t) for t in valid) / len(valid) if valid else 1.0
        rows.append([raw(b, t) / mean if t in valid else 0.0 for t in range(len(mask[b]))])
    return rows


def slow_weights(weighting: str, log_probs: list, hidden: list, mask: list) -> list[list[float]]:
    if weighting == "nonblank":
        return slow_mean_one(lambda b, t: 1 - math.exp(log_probs[b][t][-1]) + 0.05, mask)
    if weighting == "energy":
        return slow_mean_one(lambda b, t: sum(row[t] ** 2 for row in hidden[b]) / len(hidden[b]), mask)
    return slow_mean_one(lambda b, t: 1.0, mask)


def slow_tempered(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def slow_best(row: list[float]) -> int:
    best = 0
    for v in range(1, len(row)):
        if row[v] > row[best]:
            best = v
    return best


def slow_distance(divergence: str, student: list[float], teacher: list[float], temperature: float) -> float:
    if divergence == "l2":
        return sum((math.exp(s) - math.exp(t)) ** 2 for s, t in zip(student, teacher, strict=True))
    if divergence == "kl":
        p, q = slow_tempered(student, temperature), slow_tempered(teacher, temperature)
        return temperature**2 * sum(
            b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b > 0
        )
    best = slow_best(teacher)
    return -math.exp(student[best]) if best != len(teacher) - 1 else 0.0


def slow_skd(
    divergence: str, student: list, teacher: list, mask: list, temperature: float = 1.0
) -> list[float]:
    sums = []
    for b in range(len(mask)):
        total = 0.0
        for t in range(len(mask[b])):
            if mask[b][t]:
                total += slow_distance(divergence, student[b][t], teacher[b][t], temperature)
        sums.append(total)
    return sums


def slow_select(frames: str, teacher: list, mask: list, around: int) -> list[list[bool]]:
    chosen = []
    for b in range(len(mask)):
        row = []
        for t in range(len(mask[b])):
            keep = mask[b][t]
            if frames != "all":
                reach = range(t - around, t + around + 1) if frames == "symmetric" else [t]
                keep = keep and any(
                    0 <= n < len(mask[b])
                    and mask[b][n]
                    and slow_best(teacher[b][n]) != len(teacher[b][n]) - 1
                    for n in reach
                )
            row.append(keep)
        chosen.append(row)
    return chosen


def slow_match(student: list, teacher: list, mask: list, shift: int) -> list[list[int]]:
    matched = []
    for p, q, valid in zip(student, teacher, mask, strict=True):
        row = []
        for t in range(len(valid)):
            near = [s for s in range(len(valid)) if abs(s - t) <= shift and valid[s]] if valid[t] else [t]
            costs = {s: -sum(math.exp(q[t][v]) * p[s][v] for v in range(len(q[t]))) for s in near}
            row.append(min(near, key=lambda s: (costs[s], abs(s - t), t - s)))
        matched.append(row)
    return matched


# --- Batches and the losses by name


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
        return frame_weighting.frame_mask(self.lengths, self.teacher.shape[1])

    def with_(self, **changes: Tensor) -> Batch:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(*(t.to(dtype) for t in self.tensors()), self.lengths)

    def tensors(self) -> list[Tensor]:
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


def fill_padding(batch: Batch, extra: int, value: float | None) -> Batch:
    """The batch with `extra` more frames, and `value` (None: large random numbers) in every frame beyond a
    length.
    """
    generator = torch.Generator().manual_seed(99)
    frames = batch.mask.shape[1]
    valid = frame_weighting.frame_mask(batch.lengths, frames + extra)

    def filled(tensor: Tensor, time_axis: int) -> Tensor:
        shape = list(tensor.shape)
        shape[time_axis] = frames + extra
        garbage = 50 * torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        garbage = garbage if value is None else torch.full_like(garbage, value)
        garbage.narrow(time_axis, 0, frames).copy_(
            torch.where(
                valid[:, :frames].unsqueeze(3 - time_axis), tensor, garbage.narrow(time_axis, 0, frames)
            )
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
        weights = frame_weighting.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
        return losses.rkd(batch.student_hidden, batch.teacher_hidden, weights, batch.mask)

    return run


def rkd_sums_of(weighting: str) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        weights = frame_weighting.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
        return losses.rkd_of_utterances(batch.student_hidden, batch.teacher_hidden, weights, batch.mask)

    return run


def skd_of(divergence: str, frames: str, temperature: float = 1.0) -> Callable[[Batch], Tensor]:
    def run(batch: Batch) -> Tensor:
        mask = frame_weighting.FRAME_SELECTION[frames](batch.teacher, batch.mask, 1)
        return losses.DIVERGENCE[divergence](batch.student, batch.teacher, mask, temperature)

    return run


SKD: dict[str, Callable[[Batch], Tensor]] = {
    f"skd-{divergence}-{frames}": skd_of(divergence, frames)
    for divergence in losses.DIVERGENCE
    for frames in frame_weighting.FRAME_SELECTION
}
SKD["skd-kl-all-tempered"] = skd_of("kl", "all", 2.5)
RKD = {f"rkd-{weighting}": rkd_of(weighting) for weighting in frame_weighting.FRAME_WEIGHTING}
RKD |= {f"rkd-sum-{weighting}": rkd_sums_of(weighting) for weighting in frame_weighting.FRAME_WEIGHTING}
LOSSES = {**RKD, **SKD}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_skd = pytest.mark.parametrize("name", SKD)

FRAME_SECONDS = 0.02


def scalar(name: str, batch: Batch) -> Tensor:
    """The loss as training sees it."""
    value = LOSSES[name](batch)
    if name.startswith("rkd-sum"):
        value = value * FRAME_SECONDS  # `reduce_over_time`; without it, fp16 has no gradient of large errors
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
