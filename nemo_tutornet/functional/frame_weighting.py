# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which frames count in a loss, and how much: masks, weights, selections, and matches.

Legend: `B` utterances, `T` frames of the student's grid, `D` width of the hint layer, `V` labels with the
blank last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Keeps a frame in RKD where the teacher's blank posterior is 1.
BLANK_FLOOR = 0.05
# A posterior below exp(-1e4) is 0 in every float format; without the clamp, 0 * log 0 would be NaN.
MIN_LOG_PROB = -1e4


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Returns the mask of valid frames.

    Args:
        lengths: valid frames of each utterance `[B]`.
        frames: padded number of frames, `T`.

    Returns:
        `[B, T]`, bool.

    Example:
        >>> frame_mask(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def to_float(x: Tensor) -> Tensor:
    """Returns a tensor in fp32, or as it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """Returns a tensor with zeros outside a mask, whatever it holds there."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def weigh_nonblank(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Weighs each frame by the teacher's posterior of not being blank (ours).

        w ~ 1 - p_T(blank) + 0.05

    Args:
        log_probs: log-probabilities of the teacher on the student's frames `[B, T, V]`; those of the blank
            alone, `[B, T, 1]`, are enough.
        hidden: not read by this weighting.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B, T]`, with mean 1 over the valid frames of each utterance and 0 elsewhere.

    Example:
        >>> log_probs = torch.tensor([[[0.95, 0.05], [0.05, 0.95]]]).log()  # one label and the blank
        >>> weigh_nonblank(log_probs, torch.zeros(1, 4, 2), torch.tensor([[True, True]]))
        tensor([[1.8182, 0.1818]])
    """
    assert log_probs is not None, "this weighting reads the teacher's posteriors"
    return _mean_one(1.0 + BLANK_FLOOR - to_float(log_probs[..., -1]).exp(), mask)


def weigh_energy(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Weighs each frame by the energy of the hint layer (attention transfer, arXiv 1612.03928).

        w ~ mean_d h_T^2

    Args:
        log_probs: not read by this weighting.
        hidden: the hint layer h_T on the student's frames `[B, D, T]`.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B, T]`, with mean 1 over the valid frames of each utterance and 0 elsewhere. An utterance without
        energy gets equal weights.

    Example:
        >>> weigh_energy(None, torch.tensor([[[1.0, 3.0]]]), torch.tensor([[True, True]]))
        tensor([[0.2000, 1.8000]])
    """
    return _mean_one(to_float(hidden).square().mean(dim=1), mask)


def weigh_uniform(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Weighs all valid frames equally: hint training without frame weighting (FitNets, arXiv 1412.6550).

    Args:
        log_probs: not read by this weighting.
        hidden: not read by this weighting.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B, T]`: 1 for a valid frame and 0 elsewhere.

    Example:
        >>> weigh_uniform(None, torch.zeros(1, 4, 2), torch.tensor([[True, False]]))
        tensor([[1., 0.]])
    """
    return mask.float()


def _mean_one(raw: Tensor, mask: Tensor) -> Tensor:
    raw = masked(raw.detach(), mask)
    total = raw.sum(dim=1, keepdim=True)
    count = mask.sum(dim=1, keepdim=True)
    # Raw weights that are all 0 (silence under `energy`) would divide by 0, so they become uniform.
    tiny = torch.finfo(raw.dtype).tiny
    return torch.where(total >= tiny, raw * count / total.clamp(min=tiny), mask.to(raw.dtype))


def select_all(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """Selects every valid frame (the paper).

    Args:
        teacher: not read by this selection.
        mask: valid frames `[B, T]`, bool.
        around: not read by this selection.

    Returns:
        `[B, T]`, bool.

    Example:
        >>> select_all(torch.zeros(1, 2, 3), torch.tensor([[True, False]]), around=0)
        tensor([[ True, False]])
    """
    return mask


def select_nonblank(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """Selects the valid frames on which the teacher's best label is not blank.


    Args:
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: valid frames `[B, T]`, bool.
        around: not read by this selection.

    Returns:
        `[B, T]`, bool.

    Example:
        >>> teacher = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]]).log()  # one label and the blank
        >>> select_nonblank(teacher, torch.tensor([[True, True, True]]), around=0)
        tensor([[ True, False, False]])
    """
    return mask & (teacher.argmax(dim=-1) != teacher.shape[-1] - 1)


def select_symmetric(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """Selects the frames of `select_nonblank` and their neighbours on both sides (arXiv 2506.01503).

    Args:
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: valid frames `[B, T]`, bool.
        around: neighbours on each side, in frames of the student.

    Returns:
        `[B, T]`, bool; valid frames only.

    Example:
        >>> teacher = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]]).log()  # one label and the blank
        >>> select_symmetric(teacher, torch.tensor([[True, True, True]]), around=1)
        tensor([[ True,  True, False]])
    """
    spikes = select_nonblank(teacher, mask, around).float()
    widened = F.max_pool1d(spikes[:, None], kernel_size=2 * around + 1, stride=1, padding=around)[:, 0]
    return mask & (widened > 0)


def match_frames(student: Tensor, teacher: Tensor, mask: Tensor, window: int) -> Tensor:
    """Finds, for each teacher frame, the student frame with the most similar posteriors within a window.

        match[b, t] = argmin_s - sum_v p_T[b, t, v] log p_S[b, s, v]        |s - t| <= window, s valid

    The nearest of equally similar frames wins. CTC does not define where the spike of a label lies, so two
    networks may place it on different frames. SKD on matched frames does not penalise that. The idea is
    Delayed-KD's (arXiv 2505.22069), which looks ahead only. Looking both ways, and choosing by cross-entropy
    for every divergence, are ours.

    Args:
        student: log-probabilities of the student `[B, T, V]`.
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: valid frames `[B, T]`, bool.
        window: largest distance, in frames of the student; 0 matches every frame with itself.

    Returns:
        Student frame of each teacher frame `[B, T]`, int64. A padded frame is matched with itself.

    Example:
        >>> student = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.05, 0.95]]]).log()  # a spike on frame 1
        >>> teacher = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]]).log()  # a spike on frame 0
        >>> match_frames(student, teacher, torch.tensor([[True, True, True]]), window=1)
        tensor([[1, 0, 2]])
    """
    log_p = masked(to_float(student.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    q = masked(to_float(teacher.detach()), mask[..., None]).exp()
    frames = student.shape[1]
    index = torch.arange(frames, device=student.device)
    best = -(q * log_p).sum(dim=-1)
    match = index.repeat(len(mask), 1)
    for far in range(1, min(window, frames - 1) + 1):
        early, late = slice(0, frames - far), slice(far, frames)
        for at, other in ((early, late), (late, early)):  # views, because an index would copy [B, T, V]
            cost = -(q[:, at] * log_p[:, other]).sum(dim=-1)
            better = mask[:, at] & mask[:, other] & (cost < best[:, at])
            best[:, at] = torch.where(better, cost, best[:, at])
            match[:, at] = torch.where(better, index[other], match[:, at])
    return match


def greedy_lengths(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Counts the labels of each utterance's greedy CTC hypothesis: repeats merged, blanks removed.

    Args:
        log_probs: log-probabilities `[B, T, V]`, the blank last.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B]`, int64.

    Example:
        >>> best = torch.tensor([[0, 0, 2, 0, 1, 2]])  # a a blank a b blank
        >>> log_probs = torch.nn.functional.one_hot(best, 3).clamp(min=1e-9).log()
        >>> greedy_lengths(log_probs, mask=torch.ones(1, 6, dtype=torch.bool))
        tensor([3])
    """
    best = log_probs.argmax(dim=-1)
    changes = torch.ones_like(mask)
    changes[:, 1:] = best[:, 1:] != best[:, :-1]
    return (changes & mask & (best != log_probs.shape[-1] - 1)).sum(dim=1)


# The config chooses the functions by these names; config/schema.py lists them, too, to load without torch.
FRAME_WEIGHTING: dict[str, Callable[[Tensor | None, Tensor, Tensor], Tensor]] = {
    "nonblank": weigh_nonblank,
    "energy": weigh_energy,
    "uniform": weigh_uniform,
}
FRAME_SELECTION: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "all": select_all,
    "nonblank": select_nonblank,
    "symmetric": select_symmetric,
}


def confidence(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Computes a CTC teacher's confidence in its hypothesis of each utterance (ours).

    It is the geometric mean of the best label's posterior, over the valid frames on which the best label is
    not blank.

    Args:
        log_probs: log-probabilities of the teacher `[B, T, V]`, the blank last.
        lengths: valid frames of each utterance `[B]`.

    Returns:
        `[B]`, 0 to 1; 0 where every frame is blank.

    Example:
        >>> log_probs = torch.tensor([[[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]]]).log()  # one label and the blank
        >>> confidence(log_probs, lengths=torch.tensor([3]))
        tensor([0.9000])
    """
    best, label = log_probs.max(dim=-1)
    nonblank = frame_mask(lengths, log_probs.shape[1]) & (label != log_probs.shape[-1] - 1)
    count = nonblank.sum(dim=1)
    mean = (best.float() * nonblank).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, mean.exp(), torch.zeros_like(mean))
