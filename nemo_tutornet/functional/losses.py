# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses of TutorNet (Yoon et al., IEEE/ACM TASLP 2021, arXiv 2008.00671) as pure functions.

The paper's published abstract fixes the two losses, their order, and frame weighting. Where it is silent, the
docstrings say "ours". All losses are computed in fp32 at least. Gradients reach only the student's argument.
The values of padded frames never matter.

Legend: `B` utterances, `T` frames of the student, `D` width of the hint layer, `V` labels with the blank
last, m the mask of valid frames, p_S and p_T the posteriors of student and teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


# --- Representation-level distillation (RKD)


def rkd(student: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Computes representation-level distillation with frame weighting (TutorNet's RKD).

    The mean over `D` is ours: the loss does not grow with the width.

        e[b, t] = mean_d (teacher[b, d, t] - student[b, d, t])^2      loss = sum_bt m w e / sum_bt m

    Args:
        student: the projected guided layer f(h_S) `[B, D, T]`; gradients reach this argument only.
        teacher: the hint layer on the student's frames `[B, D, T]`.
        weights: frame weights w `[B, T]`, with mean 1 over the valid frames of each utterance.
        mask: valid frames `[B, T]`, bool.

    Returns:
        Scalar; 0 for a batch without a valid frame.

    Example:
        >>> student, teacher = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])
        >>> mask = torch.tensor([[True, True]])
        >>> rkd(student, teacher, weights=torch.ones(1, 2), mask=mask)
        tensor(2.)
    """
    difference = _masked(_wide(student) - _wide(teacher.detach()), mask[:, None])
    error = difference.square().mean(dim=1)
    return (error * _masked(_wide(weights.detach()), mask)).sum() / mask.sum().clamp(min=1)


def weigh_nonblank(log_probs: Tensor | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Weighs each frame by the teacher's posterior of not being blank (ours).

        w ~ 1 - p_T(blank) + 0.05

    Args:
        log_probs: log-probabilities of the teacher on the student's frames `[B, T, V]`.
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
    return _mean_one(1.0 + BLANK_FLOOR - _wide(log_probs[..., -1]).exp(), mask)


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
    return _mean_one(_wide(hidden).square().mean(dim=1), mask)


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
    raw = _masked(raw.detach(), mask)
    total = raw.sum(dim=1, keepdim=True)
    count = mask.sum(dim=1, keepdim=True)
    # Raw weights that are all 0 (silence under `energy`) would divide by 0, so they become uniform.
    tiny = torch.finfo(raw.dtype).tiny
    return torch.where(total >= tiny, raw * count / total.clamp(min=tiny), mask.to(raw.dtype))


# --- Softmax-level distillation (SKD)


def mix_posteriors(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Averages the posteriors of several teachers (an ensemble as teacher: Hinton et al., arXiv 1503.02531).

        log p = log( sum_i w_i p_i / sum_i w_i )

    Args:
        log_probs: log-probabilities of each teacher, on the student's frames and labels `[B, T, V]`.
        weights: weight w_i of each teacher, above 0.

    Returns:
        Log-probabilities `[B, T, V]`. A single teacher's tensor is returned as it is.

    Example:
        >>> first, second = torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([[[0.5, 0.5]]]).log()
        >>> mix_posteriors([first, second], weights=[3.0, 1.0]).exp()
        tensor([[[0.8000, 0.2000]]])
    """
    if len(log_probs) == 1:
        return log_probs[0]
    total = sum(weights)
    return torch.stack(
        [_wide(p) + math.log(w / total) for p, w in zip(log_probs, weights, strict=True)]
    ).logsumexp(dim=0)


def skd_l2(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation with the squared error between posteriors (TutorNet's SKD).

        d[b, t] = sum_v (p_S[b, t, v] - p_T[b, t, v])^2               loss[b] = sum_t m d

    Unlike `skd_kl`, it is bounded on a misplaced spike. Its gradient vanishes where the student is
    confidently wrong. At random initialisation its gradient also shrinks as the label set grows, so for a
    large label set use the decoder warm start of RKD, or `skd_kl`.

    Args:
        student: log-probabilities of the student `[B, T, V]`; gradients reach this argument only.
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: frames to sum over `[B, T]`, bool.
        temperature: not used; the config accepts only 1 for this divergence.

    Returns:
        `[B]`, each at most twice the number of frames in the mask.

    Example:
        >>> student, teacher = torch.tensor([[[0.2, 0.8]]]).log(), torch.tensor([[[0.7, 0.3]]]).log()
        >>> skd_l2(student, teacher, mask=torch.tensor([[True]]))
        tensor([0.5000])
    """
    p = _masked(_wide(student), mask[..., None]).exp()
    q = _masked(_wide(teacher.detach()), mask[..., None]).exp()
    return (p - q).square().sum(dim=-1).sum(dim=1)


def skd_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation with the KL divergence (Hinton et al., arXiv 1503.02531).

        d[b, t] = tau^2 sum_v p_T^tau (log p_T^tau - log p_S^tau)     loss[b] = sum_t m d

    Softmax is shift-invariant, so the tempered posterior p^tau is softmax(log p / tau).

    Args:
        student: log-probabilities of the student `[B, T, V]`; gradients reach this argument only.
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: frames to sum over `[B, T]`, bool.
        temperature: tau, above 0.

    Returns:
        `[B]`, each at least 0 and without an upper bound.

    Example:
        >>> student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.8, 0.2]]]).log()
        >>> skd_kl(student, teacher, mask=torch.tensor([[True]]))
        tensor([0.1927])
    """
    log_p = _masked(_wide(student), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_q = _masked(_wide(teacher.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_p, log_q = F.log_softmax(log_p / temperature, dim=-1), F.log_softmax(log_q / temperature, dim=-1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=-1).sum(dim=1)


def skd_guided_ctc(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation as guided CTC (Kurata and Audhkhasi, arXiv 1904.08311).

        d[b, t] = - p_S[b, t, argmax_v p_T] where that argmax is not blank, else 0      loss[b] = sum_t m d

    Args:
        student: log-probabilities of the student `[B, T, V]`; gradients reach this argument only.
        teacher: log-probabilities of the teacher on the student's frames and labels `[B, T, V]`.
        mask: frames to sum over `[B, T]`, bool.
        temperature: not used; the config accepts only 1 for this divergence.

    Returns:
        `[B]`, each at most 0 and at least minus the number of frames on which the teacher's best label is not
        blank.

    Example:
        >>> student = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
        >>> teacher = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]).log()  # a label, then the blank
        >>> skd_guided_ctc(student, teacher, mask=torch.tensor([[True, True]]))
        tensor([-0.4000])
    """
    best = teacher.detach().argmax(dim=-1)
    spikes = mask & (best != teacher.shape[-1] - 1)
    log_p = _wide(student).gather(dim=-1, index=best[..., None])[..., 0]
    # Masked twice: before exp, so that padding cannot overflow; after exp, because exp(0) is 1.
    return -_masked(_masked(log_p, spikes).exp(), spikes).sum(dim=1)


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
    log_p = _masked(_wide(student.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    q = _masked(_wide(teacher.detach()), mask[..., None]).exp()
    frames = student.shape[1]
    index = torch.arange(frames, device=student.device)
    best = -(q * log_p).sum(dim=-1)
    match = index.expand_as(mask)
    for offset in (sign * far for far in range(1, min(window, frames - 1) + 1) for sign in (1, -1)):
        shifted = (index + offset).clamp(0, frames - 1)
        cost = -(q * log_p[:, shifted]).sum(dim=-1)
        better = mask & mask[:, shifted] & (shifted == index + offset) & (cost < best)
        best, match = torch.where(better, cost, best), torch.where(better, shifted, match)
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


def reduce_like_ctc(per_utterance: Tensor, target_lengths: Tensor, reduction: str) -> Tensor:
    """Reduces SKD as NeMo's `CTCLoss` reduces CTC (ours).

    With the same reduction, a weight between the two losses means the same for every student.

    Args:
        per_utterance: sum of the loss over the frames of each utterance `[B]`.
        target_lengths: labels of each transcript `[B]`; without a transcript, those of the teacher's greedy
            hypothesis.
        reduction: the student's `ctc_reduction`: `mean_batch`, `mean_volume`, `mean` or `sum`.

    Returns:
        Scalar.

    Example:
        >>> reduce_like_ctc(torch.tensor([2.0, 6.0]), torch.tensor([1, 3]), "mean_volume")
        tensor(2.)
        >>> reduce_like_ctc(torch.tensor([2.0, 6.0]), torch.tensor([1, 3]), "mean_batch")
        tensor(4.)
    """
    if reduction == "mean_volume":
        return per_utterance.sum() / target_lengths.sum().clamp(min=1)
    if reduction == "mean":
        return (per_utterance / target_lengths.clamp(min=1)).mean()
    if reduction == "sum":
        return per_utterance.sum()
    return per_utterance.mean()


# The config chooses the functions by these names; config.py has its own lists of them, to load without torch.
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
