# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Frame-rate and label alignment between two networks that saw the same audio.

Padded sizes differ between NeMo's encoders, and even true lengths are not in an exact ratio (a 1.5 s
utterance has 76 frames of 20 ms but 38 or 37 of 40 ms), so frames are matched by time and clamped to each
utterance's own length.

Legend: `B` utterances, `S` frames of the student's grid, `T` frames of the teacher's, `K` teacher frames
under a student frame, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError

# Two encoders may each round an utterance's length by one frame of their own grid.
TOLERANCE = 1.0


def teacher_frames(student_frames: int, teacher_lengths: Tensor, rate: float) -> Tensor:
    """For each student frame, the index of the teacher frame that covers it.

    A faster student repeats the teacher's frames, which CTC reads alike because repeats collapse.

    Args:
        student_frames: padded size of the student's grid, `S`.
        teacher_lengths: the teacher's valid frames of each utterance `[B]`.
        rate: teacher frames per student frame, e.g. 0.5 for 40 ms against 20 ms.

    Returns:
        `[B, S]`, int64, each within its utterance's valid teacher frames (0 for an empty utterance).
    """
    # Frame t covers the time from t to t + 1; its middle decides.
    middle = torch.arange(student_frames, device=teacher_lengths.device, dtype=torch.float64) + 0.5
    index = (middle * rate).floor().long()[None, :]
    return torch.minimum(index, (teacher_lengths.long() - 1)[:, None]).clamp(min=0)


def repeat_frames(teacher: Tensor, index: Tensor, dim: int) -> Tensor:
    """Puts a teacher tensor on the student's frames.

    Args:
        teacher: `[B, T, V]` with `dim` 1, or `[B, D, T]` with `dim` 2.
        index: teacher frame of each student frame `[B, S]`.
        dim: the axis of time.

    Returns:
        `[B, S, V]` or `[B, D, S]`.
    """
    if dim == 1:
        return teacher.gather(1, index[:, :, None].expand(-1, -1, teacher.shape[2]))
    return teacher.gather(2, index[:, None, :].expand(-1, teacher.shape[1], -1))


def covered_frames(student_frames: int, teacher_lengths: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """For each frame of a slower student, the teacher frames whose middle it covers; each belongs to one
    student frame.

    Args:
        student_frames: padded size of the student's grid, `S`.
        teacher_lengths: the teacher's valid frames of each utterance `[B]`.
        rate: teacher frames per student frame, above 1.

    Returns:
        Index `[B, S, K]`, int64, within the utterance's valid frames, and which of the `K` count, bool. Every
        student frame
        has at least one: past the teacher's end it is the last one.
    """
    edges = torch.arange(student_frames + 1, device=teacher_lengths.device, dtype=torch.float64) * rate - 0.5
    edges = edges.ceil().long()
    last = (teacher_lengths.long() - 1).clamp(min=0)[:, None]
    start, end = torch.minimum(edges[:-1][None], last), edges[1:][None]
    index = start[:, :, None] + torch.arange(math.ceil(rate), device=teacher_lengths.device)
    counts = (index < end[:, :, None]) & (index <= last[:, :, None])
    return torch.minimum(index, last[:, :, None]), counts


def pool_posteriors(log_probs: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Of the teacher frames under each student frame, the one that is the least blank (ours): an average
    would drown spikes.

    Two spikes under one student frame cannot both stay.

    Args:
        log_probs: the teacher's `[B, T, V]`, the blank last.
        index: teacher frames of each student frame `[B, S, K]`.
        counts: which of them count `[B, S, K]`.

    Returns:
        `[B, S, V]`.
    """
    blank = log_probs[..., -1].gather(1, index.flatten(1)).view(index.shape)
    best = blank.masked_fill(~counts, float("inf")).argmin(dim=2, keepdim=True)
    return repeat_frames(log_probs, index.gather(2, best)[..., 0], dim=1)


def pool_hidden(hidden: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """The mean of the teacher frames under each student frame (ours).

    Args:
        hidden: `[B, D, T]`.
        index: teacher frames of each student frame `[B, S, K]`.
        counts: which of them count `[B, S, K]`.

    Returns:
        `[B, D, S]`.
    """
    frames = repeat_frames(hidden, index.flatten(1), dim=2).unflatten(2, index.shape[1:])
    return (frames * counts[:, None]).sum(dim=3) / counts.sum(dim=2)[:, None]


def check_lengths(student: Sequence[int], teacher: Sequence[int], rate: float) -> None:
    """Refuses two encoders whose lengths for the same audio disagree by more than rounding.

    Args:
        student: lengths in student frames of some utterances.
        teacher: lengths in teacher frames of the same utterances.
        rate: teacher frames per student frame.

    Raises:
        TutorError: with the first pair of lengths that disagrees.
    """
    for s, t in zip(student, teacher, strict=True):
        if abs(s * rate - t) > max(1.0, rate) + TOLERANCE:
            raise TutorError(
                f"the student has {s} frames and the teacher {t} for the same audio, but {s * rate:.1f} were "
                "expected of the "
                f"teacher at {rate:g} teacher frames per student frame; such encoders cannot be aligned in "
                "time."
            )


def label_order(student: Sequence[str], teacher: Sequence[str]) -> tuple[int, ...] | None:
    """Matches two label sets.

    Args:
        student: the student's labels without the blank.
        teacher: the teacher's labels without the blank.

    Returns:
        For each of the student's `V` outputs (the blank included, last) the teacher's output; None where they
        are equal.

    Raises:
        TutorError: the sets differ; both are shown.
    """
    student, teacher = list(student), list(teacher)
    if student == teacher:
        return None
    twice = sorted(label for label, count in Counter(teacher).items() if count > 1)
    if Counter(student) == Counter(teacher) and twice:
        raise TutorError(
            f"the labels are in another order and {_shown(twice)} stand twice, so they cannot be told apart."
        )
    if Counter(student) != Counter(teacher):
        raise TutorError(
            f"the label sets differ: the student has {len(student)} labels {_shown(student)}, the teacher "
            "has "
            f"{len(teacher)} {_shown(teacher)}; only the student's: "
            f"{_shown(sorted(set(student) - set(teacher)))}, "
            f"only the teacher's: {_shown(sorted(set(teacher) - set(student)))}."
        )
    place = {label: i for i, label in enumerate(teacher)}
    return (*(place[label] for label in student), len(teacher))


def _shown(labels: Sequence[str], most: int = 40) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return "[" + shown + (f", ... and {len(labels) - most} more]" if len(labels) > most else "]")
