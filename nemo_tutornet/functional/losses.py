# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses of TutorNet (Yoon et al., IEEE/ACM TASLP 2021, arXiv 2008.00671) as pure functions.

The paper's published abstract fixes the two losses, their order and frame weighting; where it is silent,
these are our documented choices. Everything is computed in fp32 at least, gradients flow to the student's
argument only, and padding counts nowhere, whatever it holds.

Legend: `B` utterances, `T` frames of the student's grid, `D` width of the hint layer, `V` labels with the
blank last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Keeps a frame that the teacher is sure is blank from dropping out of RKD altogether.
BLANK_FLOOR = 0.05
# A posterior below exp(-1e4) is 0 in every float format; without the clamp, 0 * log 0 would be NaN.
MIN_LOG_PROB = -1e4


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Valid frames `[B, T]` (bool) for lengths `[B]` and a padded size of `frames`."""
    return torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


# --- Representation-level distillation (RKD)


def rkd(student: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Representation-level distillation with frame weighting (TutorNet's RKD; the mean over `D` is ours).

        e[b, t] = mean_d (teacher[b, d, t] - student[b, d, t])^2      loss = sum_bt m w e / sum_bt m

    Args:
        student: the projected guided layer f(h_S) `[B, D, T]`; gradients flow here only.
        teacher: the hint layer on the student's frames `[B, D, T]`.
        weights: frame weights `[B, T]`, mean 1 over each utterance's valid frames.
        mask: valid frames `[B, T]`, bool.

    Returns:
        Scalar; 0 for a batch without a valid frame.
    """
    difference = _masked(_wide(student) - _wide(teacher.detach()), mask[:, None])
    error = difference.square().mean(dim=1)
    return (error * _masked(_wide(weights.detach()), mask)).sum() / mask.sum().clamp(min=1)


def weigh_nonblank(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Frame weights `[B, T]` in proportion to 1 - p_T(blank) + 0.05 (ours), from log-probabilities `[B, T,
    V]`.
    """
    assert log_probs is not None, "this weighting reads the teacher's posteriors"
    return _mean_one(1.0 + BLANK_FLOOR - _wide(log_probs[..., -1]).exp(), mask)


def weigh_energy(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Frame weights `[B, T]` in proportion to mean_d h_T^2 (attention transfer, arXiv 1612.03928), from `[B,
    D, T]`.
    """
    return _mean_one(_wide(hidden).square().mean(dim=1), mask)


def weigh_uniform(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Frame weights `[B, T]` of 1: plain hint training (FitNets, arXiv 1412.6550)."""
    return mask.float()


def _mean_one(raw: Tensor, mask: Tensor) -> Tensor:
    raw = _masked(raw.detach(), mask)
    total = raw.sum(dim=1, keepdim=True)
    count = mask.sum(dim=1, keepdim=True)
    # An utterance whose raw weights are all 0 (silence under `energy`) is weighted uniformly, not divided by
    # 0.
    tiny = torch.finfo(raw.dtype).tiny
    return torch.where(total >= tiny, raw * count / total.clamp(min=tiny), mask.to(raw.dtype))


# --- Softmax-level distillation (SKD)


def mix_posteriors(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of several teachers' posteriors (an ensemble as teacher: Hinton et al., arXiv
    1503.02531).

        log p = log( sum_i w_i p_i / sum_i w_i )

    Args:
        log_probs: of each teacher, on the student's frames and labels `[B, T, V]`.
        weights: of each teacher, above 0.

    Returns:
        `[B, T, V]`; the one teacher's own where there is one.
    """
    if len(log_probs) == 1:
        return log_probs[0]
    total = sum(weights)
    return torch.stack(
        [_wide(p) + math.log(w / total) for p, w in zip(log_probs, weights, strict=True)]
    ).logsumexp(dim=0)


def skd_l2(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax-level distillation, squared error between posteriors (TutorNet's SKD).

        d[b, t] = sum_v (p_S[b, t, v] - p_T[b, t, v])^2               loss[b] = sum_t m d

    Bounded on a misplaced spike, unlike `skd_kl`; but its gradient vanishes where the student is confidently
    wrong, and at random initialisation it shrinks with the label set, so a large one wants the RKD warm start
    or `skd_kl`.

    Args:
        student: log-probabilities of the student `[B, T, V]`; gradients flow here only.
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: the frames that count `[B, T]`, bool.
        temperature: must be 1; the config refuses any other for this divergence.

    Returns:
        `[B]`. At most twice the number of frames that count, whatever the networks say.
    """
    p = _masked(_wide(student), mask[..., None]).exp()
    q = _masked(_wide(teacher.detach()), mask[..., None]).exp()
    return (p - q).square().sum(dim=-1).sum(dim=1)


def skd_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax-level distillation, Kullback-Leibler divergence (Hinton et al., arXiv 1503.02531).

        d[b, t] = tau^2 sum_v p_T^tau (log p_T^tau - log p_S^tau)     loss[b] = sum_t m d

    Softmax is shift-invariant, so softmax(log p / tau) is the tempered posterior. Arguments and result as
    `skd_l2`, but not bounded.
    """
    log_p = _masked(_wide(student), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_q = _masked(_wide(teacher.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_p, log_q = F.log_softmax(log_p / temperature, dim=-1), F.log_softmax(log_q / temperature, dim=-1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=-1).sum(dim=1)


def skd_guided_ctc(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax-level distillation, guided CTC (Kurata and Audhkhasi, arXiv 1904.08311).

        d[b, t] = - p_S[b, t, argmax_v p_T] where that argmax is not blank, else 0      loss[b] = sum_t m d

    Arguments and result as `skd_l2`; it lies between minus the number of the teacher's non-blank frames and
    0.
    """
    best = teacher.detach().argmax(dim=-1)
    spikes = mask & (best != teacher.shape[-1] - 1)
    log_p = _wide(student).gather(dim=-1, index=best[..., None])[..., 0]
    # Masked twice: before exp, so that padding may hold anything; after it, so that exp(0) does not count.
    return -_masked(_masked(log_p, spikes).exp(), spikes).sum(dim=1)


def select_all(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """Every valid frame `[B, T]` (the paper)."""
    return mask


def select_nonblank(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """The valid frames `[B, T]` on which the teacher's best label is not blank, from log-probabilities `[B,
    T, V]`.
    """
    return mask & (teacher.argmax(dim=-1) != teacher.shape[-1] - 1)


def select_symmetric(teacher: Tensor, mask: Tensor, around: int) -> Tensor:
    """`select_nonblank` and its `around` neighbours on each side (arXiv 2506.01503), valid frames only."""
    spikes = select_nonblank(teacher, mask, around).float()
    widened = F.max_pool1d(spikes[:, None], kernel_size=2 * around + 1, stride=1, padding=around)[:, 0]
    return mask & (widened > 0)


def match_frames(student: Tensor, teacher: Tensor, mask: Tensor, window: int) -> Tensor:
    """For each frame of the teacher, the student's frame that says most nearly the same, at most `window`
    frames away.

        match[b, t] = argmin_s - sum_v p_T[b, t, v] log p_S[b, s, v]        |s - t| <= window, s valid; the
        nearest among equals

    CTC does not say where a label's spike lies, and two networks place it differently; SKD on matched frames
    does not punish that. After Delayed-KD (arXiv 2505.22069), which looks ahead only; looking both ways and
    choosing by cross-entropy whatever the divergence are ours.

    Args:
        student: log-probabilities of the student `[B, T, V]`.
        teacher: of the teacher, on the student's frames and labels `[B, T, V]`.
        mask: valid frames `[B, T]`, bool.
        window: 0 or more frames of the student.

    Returns:
        Frames of the student `[B, T]`, int64; a frame of padding is matched with itself.
    """
    log_p = _masked(_wide(student.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    q = _masked(_wide(teacher.detach()), mask[..., None]).exp()
    frames = student.shape[1]
    here = torch.arange(frames, device=student.device)
    best = -(q * log_p).sum(dim=-1)
    match = here.expand_as(mask)
    for step in (sign * far for far in range(1, min(window, frames - 1) + 1) for sign in (1, -1)):
        there = (here + step).clamp(0, frames - 1)
        cost = -(q * log_p[:, there]).sum(dim=-1)
        nearer = mask & mask[:, there] & (there == here + step) & (cost < best)
        best, match = torch.where(nearer, cost, best), torch.where(nearer, there, match)
    return match


def greedy_lengths(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Labels of each utterance's best path, repeats merged and blanks removed: what a transcript's length
    would be.

    Args:
        log_probs: `[B, T, V]`, the blank last.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B]`, int64.
    """
    best = log_probs.argmax(dim=-1)
    begins = torch.ones_like(mask)
    begins[:, 1:] = best[:, 1:] != best[:, :-1]
    return (begins & mask & (best != log_probs.shape[-1] - 1)).sum(dim=1)


def reduce_like_ctc(per_utterance: Tensor, target_lengths: Tensor, reduction: str) -> Tensor:
    """Reduces SKD as NeMo's `CTCLoss` reduces CTC, so that a weight between the two means the same everywhere
    (ours).

    Args:
        per_utterance: `[B]`, each a sum over an utterance's frames.
        target_lengths: labels of each transcript, or of what the teacher heard where there is none, `[B]`.
        reduction: the student's `ctc_reduction`: `mean_batch`, `mean_volume`, `mean` or `sum`.

    Returns:
        Scalar.
    """
    if reduction == "mean_volume":
        return per_utterance.sum() / target_lengths.sum().clamp(min=1)
    if reduction == "mean":
        return (per_utterance / target_lengths.clamp(min=1)).mean()
    if reduction == "sum":
        return per_utterance.sum()
    return per_utterance.mean()


# What varies is chosen by name in these tables; their keys are the config's (`nemo_tutornet.config` checks
# them against its own lists).
FRAME_WEIGHTING: dict[str, Callable[[Tensor | None, Tensor, Tensor], Tensor]] = {
    "nonblank": weigh_nonblank,
    "energy": weigh_energy,
    "uniform": weigh_uniform,
}
DIVERGENCE: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "l2": skd_l2,
    "kl": skd_kl,
    "guided_ctc": skd_guided_ctc,
}
FRAME_SELECTION: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "all": select_all,
    "nonblank": select_nonblank,
    "symmetric": select_symmetric,
}


def confidence(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """How sure a CTC teacher is of each utterance (ours): the geometric mean of its best label's posterior
    where it is no blank.

    Args:
        log_probs: `[B, T, V]`, the blank last.
        lengths: valid frames `[B]`.

    Returns:
        `[B]`, 0 to 1; 0 where every frame is blank.
    """
    best, label = log_probs.max(dim=-1)
    spoken = frame_mask(lengths, log_probs.shape[1]) & (label != log_probs.shape[-1] - 1)
    count = spoken.sum(dim=1)
    mean = (best.float() * spoken).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, mean.exp(), torch.zeros_like(mean))
