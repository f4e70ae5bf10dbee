# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Alignment of the frames and the labels of two networks that process the same audio.

Padded sizes differ between NeMo's encoders. Even true lengths are not in an exact ratio: an utterance of 1.5
s has 76 frames of 20 ms, but 37 or 38 frames of 40 ms. So frames are matched by time, and every index is
clamped to the length of its own utterance.

Legend: `B` utterances, `S` frames of the student, `T` frames of the teacher, `K` teacher frames that one
student frame covers, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError

# Each of two encoders may round an utterance's length by one frame of its own.
TOLERANCE = 1.0
# NeMo's causal subsampling halves an utterance of n frames to floor(n / 2) + 1 of them. After three halvings
# that are up to 1 + 1/2 + 1/4 frames more than n / 8.
CAUSAL = 1.75


def teacher_frames(student_frames: int, teacher_lengths: Tensor, frame_ratio: float) -> Tensor:
    """Finds, for each student frame, the teacher frame that covers its middle (ours).

    A student with shorter frames than its teacher repeats the teacher's frames. CTC reads the repeats as one
    label.

    Args:
        student_frames: padded number of student frames, `S`.
        teacher_lengths: valid teacher frames of each utterance `[B]`.
        frame_ratio: teacher frames per student frame, e.g. 0.5 for a student frame of 20 ms and a teacher
            frame of 40 ms.

    Returns:
        Index `[B, S]`, int64, within the valid teacher frames of the utterance (0 for an empty utterance).

    Example:
        >>> teacher_frames(6, torch.tensor([3, 2]), frame_ratio=0.5).tolist()
        [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]]
    """
    # Frame t covers the time from t to t + 1, so its middle is at t + 0.5.
    middle = torch.arange(student_frames, device=teacher_lengths.device, dtype=torch.float64) + 0.5
    index = (middle * frame_ratio).floor().long()[None, :]
    return torch.minimum(index, (teacher_lengths.long() - 1)[:, None]).clamp(min=0)


def repeat_frames(teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gathers one teacher frame for each student frame.

    Args:
        teacher: `[B, T, V]` with `dim` 1, or `[B, D, T]` with `dim` 2.
        index: teacher frame of each student frame `[B, S]`.
        dim: the axis of time.

    Returns:
        `[B, S, V]` or `[B, D, S]`.

    Example:
        >>> hidden = torch.tensor([[[10.0, 20.0, 30.0]]])
        >>> repeat_frames(hidden, torch.tensor([[0, 0, 1, 2]]), dim=2)
        tensor([[[10., 10., 20., 30.]]])
    """
    if dim == 1:
        return teacher.gather(1, index[:, :, None].expand(-1, -1, teacher.shape[2]))
    return teacher.gather(2, index[:, None, :].expand(-1, teacher.shape[1], -1))


def covered_frames(student_frames: int, teacher_lengths: Tensor, frame_ratio: float) -> tuple[Tensor, Tensor]:
    """Finds the teacher frames whose middle each frame of a student with longer frames covers (ours).

    Each teacher frame belongs to one student frame.

    Args:
        student_frames: padded number of student frames, `S`.
        teacher_lengths: valid teacher frames of each utterance `[B]`.
        frame_ratio: teacher frames per student frame, above 1.

    Returns:
        Index `[B, S, K]`, int64, within the valid teacher frames of the utterance, and a mask `[B, S, K]`,
        bool, that is True where the index counts. At least one index counts for every student frame; past the
        teacher's end it is the last teacher frame.

    Example:
        >>> index, counts = covered_frames(2, torch.tensor([3]), frame_ratio=2.0)
        >>> index.tolist(), counts.tolist()
        ([[[0, 1], [2, 2]]], [[[True, True], [True, False]]])
    """
    edges = torch.arange(student_frames + 1, device=teacher_lengths.device, dtype=torch.float64)
    edges = (edges * frame_ratio - 0.5).ceil().long()
    last = (teacher_lengths.long() - 1).clamp(min=0)[:, None]
    start, end = torch.minimum(edges[:-1][None], last), edges[1:][None]
    index = start[:, :, None] + torch.arange(math.ceil(frame_ratio), device=teacher_lengths.device)
    counts = (index < end[:, :, None]) & (index <= last[:, :, None])
    return torch.minimum(index, last[:, :, None]), counts


def pool_posteriors(log_probs: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Selects, of the teacher frames under a student frame, the one with the lowest blank posterior (ours).

    Averaging would weaken the spikes of non-blank labels. Of two spikes under one student frame, one is lost.

    Args:
        log_probs: log-probabilities of the teacher `[B, T, V]`, the blank last.
        index: teacher frames of each student frame `[B, S, K]`, from `covered_frames`.
        counts: True where an index counts `[B, S, K]`.

    Returns:
        Log-probabilities `[B, S, V]`.

    Example:
        >>> log_probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]]).log()  # one label and the blank
        >>> index, counts = covered_frames(2, torch.tensor([3]), frame_ratio=2.0)
        >>> pool_posteriors(log_probs, index, counts).exp()
        tensor([[[0.8000, 0.2000],
                 [0.3000, 0.7000]]])
    """
    blank = log_probs[..., -1].gather(1, index.flatten(1)).view(index.shape)
    best = blank.masked_fill(~counts, float("inf")).argmin(dim=2, keepdim=True)
    return repeat_frames(log_probs, index.gather(2, best)[..., 0], dim=1)


def pool_hidden(hidden: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Averages the teacher frames that one student frame covers (ours).

    Args:
        hidden: hint layer of the teacher `[B, D, T]`.
        index: teacher frames of each student frame `[B, S, K]`, from `covered_frames`.
        counts: True where an index counts `[B, S, K]`.

    Returns:
        `[B, D, S]`.

    Example:
        >>> index, counts = covered_frames(2, torch.tensor([3]), frame_ratio=2.0)
        >>> pool_hidden(torch.tensor([[[10.0, 20.0, 30.0]]]), index, counts)
        tensor([[[15., 30.]]])
    """
    frames = repeat_frames(hidden, index.flatten(1), dim=2).unflatten(2, index.shape[1:])
    return (frames * counts[:, None]).sum(dim=3) / counts.sum(dim=2)[:, None]


def check_lengths(
    student: Sequence[int], teacher: Sequence[int], frame_ratio: float, upsampling: int = 1
) -> None:
    """Rejects two encoders whose lengths for the same audio differ by more than rounding explains.

    Args:
        student: lengths of some utterances, in student frames.
        teacher: lengths of the same utterances, in teacher frames.
        frame_ratio: teacher frames per student frame.
        upsampling: frames that an adapter makes of each frame of the teacher's encoder, which rounds first.

    Raises:
        TutorError: the lengths of an utterance disagree; the message shows the first such pair.

    Example:
        >>> check_lengths([75, 150], [38, 75], frame_ratio=0.5)
    """
    for s, t in zip(student, teacher, strict=True):
        longer = max(frame_ratio, upsampling)  # the coarser of both frames, in those that are compared
        rounding = CAUSAL * longer if longer > 1 else 1.0
        if abs(s * frame_ratio - t) > rounding + TOLERANCE:
            raise TutorError(
                f"the student has {s} frames and the teacher {t} for the same audio, but "
                f"{s * frame_ratio:.1f} were expected of the teacher at {frame_ratio:g} teacher frames per "
                "student frame; such encoders cannot be aligned in time."
            )


def label_order(student: Sequence[str], teacher: Sequence[str]) -> tuple[int, ...] | None:
    """Finds the permutation that puts the teacher's labels into the student's order.

    Args:
        student: the student's labels without the blank.
        teacher: the teacher's labels without the blank.

    Returns:
        The teacher's output for each of the student's `V` outputs, the blank last; None where both label
        lists are equal.

    Raises:
        TutorError: the label sets differ, or a label that occurs twice makes the order ambiguous.

    Example:
        >>> label_order(["a", "b", "c"], ["c", "a", "b"])
        (1, 2, 0, 3)
        >>> label_order(["a", "b"], ["a", "b"]) is None
        True
    """
    student, teacher = list(student), list(teacher)
    if student == teacher:
        return None
    repeated = sorted(label for label, count in Counter(teacher).items() if count > 1)
    if Counter(student) == Counter(teacher) and repeated:
        raise TutorError(
            f"the labels are in another order and {_shown(repeated)} occur twice, so the order is ambiguous."
        )
    if Counter(student) != Counter(teacher):
        raise TutorError(
            f"the label sets differ: the student has {len(student)} labels, the teacher has {len(teacher)}; "
            f"only the student's: {_shown(sorted(Counter(student) - Counter(teacher)))}, only the teacher's: "
            f"{_shown(sorted(Counter(teacher) - Counter(student)))}."
        )
    position = {label: i for i, label in enumerate(teacher)}
    return (*(position[label] for label in student), len(teacher))


def _shown(labels: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return "[" + shown + (f", ... and {len(labels) - most} more]" if len(labels) > most else "]")
