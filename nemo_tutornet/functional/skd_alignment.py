# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""SKD between networks of different frame rates without repeated frames (ours).

Where a student's frames are shorter than its teacher's, SKD frame by frame repeats the teacher's frames. The
student then learns to repeat its labels, although CTC wants one spike. Two other alignments:

- `pool_student` puts the student's frames together to the teacher's rate, and compares there.
- `occurrences` compares what both networks write around each label of the teacher's best path, wherever in
  that span each has its spike.

Legend: `B` utterances, `S` frames of the student, `T` frames of the teacher, `V` labels with the blank last,
`K` occurrences, the most of an utterance of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_tutornet.functional.frame_weighting import masked, to_float

# The largest posterior whose complement has a logarithm with a useful gradient in fp32.
_MOST = 1.0 - 1e-6
_LEAST = 1e-8


def pool_student(log_probs: Tensor, index: Tensor, mask: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Computes the student's posteriors on the teacher's frames: is a label anywhere in the window?

    A window is the student frames in which one teacher frame is repeated. The frames of a window are taken
    as independent:

        p(blank | window) = prod_s p[s, blank]
        p(v | window)     ~ 1 - prod_s (1 - p[s, v])

    and the posteriors are divided by their sum.

    Args:
        log_probs: log-probabilities of the student `[B, S, V]`.
        index: teacher frame of each student frame `[B, S]`, from `alignment.teacher_frames`.
        mask: valid student frames `[B, S]`, bool.
        frames: `T`.

    Returns:
        Log-probabilities `[B, T, V]`, and the teacher frames that have a window `[B, T]`, bool. Where there
        is none, the log-probabilities are those of a blank.

    Example:
        >>> student = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]]).log()  # one label and the blank
        >>> index, mask = torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]])
        >>> log_probs, found = pool_student(student, index, mask, frames=3)
        >>> log_probs[:, :2].exp(), found
        (tensor([[[0.9200, 0.0800],
                 [0.1000, 0.9000]]]), tensor([[ True,  True, False]]))
    """
    log_probs = masked(to_float(log_probs), mask[..., None])
    blank = masked(log_probs[..., -1], mask)
    absent = masked(torch.log1p(-log_probs[..., :-1].exp().clamp(max=_MOST)), mask[..., None])
    labels = log_probs.shape[2] - 1
    blank = blank.new_zeros(len(index), frames).scatter_add(1, index, blank)
    absent = absent.new_zeros(len(index), frames, labels).scatter_add(
        1, index[..., None].expand(-1, -1, labels), absent
    )
    pooled = torch.cat([-torch.expm1(absent), blank.exp()[..., None]], dim=2)
    found = torch.zeros_like(blank).scatter_add(1, index, mask.to(blank.dtype)) > 0
    return (pooled / pooled.sum(dim=2, keepdim=True)).clamp(min=_LEAST).log(), found


def occurrence_of_frames(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Assigns each frame to an occurrence of a label on the best path: the nearest one in time.

    An occurrence is a run of frames with one best label that is no blank. A blank frame belongs to the
    nearest run, between two equally near ones to the earlier.

    Args:
        log_probs: log-probabilities of the teacher `[B, T, V]`.
        mask: valid frames `[B, T]`, bool.

    Returns:
        Number of the occurrence of each frame `[B, T]`, int64, from 0; -1 in an utterance without any, and
        where a frame is not valid.

    Example:
        >>> best = torch.tensor([[2, 0, 0, 2, 2, 2, 1, 2]])  # blank a a blank blank blank b blank
        >>> log_probs = torch.nn.functional.one_hot(best, 3).float().log()
        >>> occurrence_of_frames(log_probs, torch.ones(1, 8, dtype=torch.bool))
        tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    """
    best = log_probs.argmax(dim=2)
    blank = log_probs.shape[2] - 1
    spoken = (best != blank) & mask
    begins = spoken & ~((best == best.roll(1, 1)) & spoken.roll(1, 1))
    begins[:, 0] = spoken[:, 0]
    run = begins.long().cumsum(dim=1) - 1  # of frames with a label
    frames = best.shape[1]
    time = torch.arange(frames, device=best.device).expand_as(best)
    before = time.masked_fill(~spoken, -1).cummax(dim=1).values
    after = time.masked_fill(~spoken, frames).flip(1).cummin(dim=1).values.flip(1)
    to_before = torch.where(before >= 0, time - before, 2 * frames)
    to_after = torch.where(after < frames, after - time, 2 * frames)
    nearest = torch.where(to_before <= to_after, before, after).clamp(0, frames - 1)
    found = run.gather(1, nearest)
    return found.masked_fill(~mask | ~spoken.any(dim=1, keepdim=True), -1)


def skd_occurrences(
    student: Tensor, teacher: Tensor, index: Tensor, student_mask: Tensor, teacher_mask: Tensor
) -> Tensor:
    """Computes SKD on the occurrences of the teacher's labels.

    In each occurrence, the posteriors without the blank are summed over its frames and divided by their sum,
    and the blank's posterior is averaged:

        P[k, v] = sum_t p[t, v] / sum_t (1 - p[t, blank]),   b[k] = mean_t p[t, blank]
        loss[b] = sum_k  KL(P_T || P_S) + KL(b_T || b_S)

    where the last is between two outcomes, blank or not.

    Args:
        student: log-probabilities of the student `[B, S, V]`; gradients reach this argument only.
        teacher: log-probabilities of the teacher on its own frames `[B, T, V]`.
        index: teacher frame of each student frame `[B, S]`, from `alignment.teacher_frames`.
        student_mask: valid frames of the student `[B, S]`, bool.
        teacher_mask: valid frames of the teacher `[B, T]`, bool.

    Returns:
        `[B]`, each at least 0; 0 for an utterance in which the teacher writes nothing.

    Example:
        >>> teacher = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]).log()
        >>> student = torch.tensor([[[0.1, 0.9], [0.1, 0.9], [0.8, 0.2], [0.8, 0.2]]]).log()
        >>> index = torch.tensor([[0, 0, 1, 1]])
        >>> skd_occurrences(student, teacher, index, index >= 0, torch.tensor([[True, True]])).abs() < 1e-6
        tensor([True])
    """
    occurrences = occurrence_of_frames(teacher, teacher_mask)
    count = int(occurrences.max()) + 1
    if count <= 0:
        return student[..., 0].sum(dim=1) * 0.0
    expected, expected_blank, _ = _occurrence_posteriors(teacher.detach(), occurrences, teacher_mask, count)
    of_student = occurrences.gather(1, index).masked_fill(~student_mask, -1)
    found, found_blank, frames = _occurrence_posteriors(student, of_student, student_mask, count)
    labels = (expected * (expected.log() - found.log())).sum(dim=2)
    blanks = torch.stack([expected_blank, 1.0 - expected_blank], dim=2)
    outcomes = torch.stack([found_blank, 1.0 - found_blank], dim=2)
    blank = (blanks * (blanks.log() - outcomes.log())).sum(dim=2)
    return masked(labels + blank, frames > 0).sum(dim=1)


def _occurrence_posteriors(
    log_probs: Tensor, occurrences: Tensor, mask: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The posteriors of each occurrence without the blank `[B, K, V - 1]`, its mean blank posterior `[B, K]`,
    and its number of frames `[B, K]`.
    """
    counted = mask & (occurrences >= 0)
    probs = masked(to_float(log_probs), counted[..., None]).exp() * counted[..., None]
    place = occurrences.clamp(min=0)
    sums = probs.new_zeros(len(probs), count, probs.shape[2]).scatter_add(
        1, place[..., None].expand_as(probs), probs
    )
    frames = probs.new_zeros(len(probs), count).scatter_add(1, place, counted.to(probs.dtype))
    labels = sums[..., :-1].clamp(min=_LEAST)
    blank = (sums[..., -1] / frames.clamp(min=1.0)).clamp(_LEAST, _MOST)
    return labels / labels.sum(dim=2, keepdim=True), blank, frames
