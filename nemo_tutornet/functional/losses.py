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

from nemo_tutornet.functional.frame_weighting import MIN_LOG_PROB, masked, to_float

# --- Representation-level distillation (RKD)


def rkd_of_utterances(student: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Computes representation-level distillation with frame weighting (TutorNet's RKD) of each utterance.

    The mean over `D` is ours: the loss does not grow with the width.

        e[b, t] = mean_d (teacher[b, d, t] - student[b, d, t])^2
        loss[b] = sum_t m w e

    Args:
        student: the projected guided layer f(h_S) `[B, D, T]`; gradients reach this argument only.
        teacher: the hint layer on the student's frames `[B, D, T]`.
        weights: frame weights w `[B, T]`, with mean 1 over the valid frames of each utterance.
        mask: valid frames `[B, T]`, bool.

    Returns:
        `[B]`; 0 for an utterance without a valid frame.

    Example:
        >>> student, teacher = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])
        >>> rkd_of_utterances(student, teacher, torch.ones(1, 2), mask=torch.tensor([[True, True]]))
        tensor([4.])
    """
    difference = masked(to_float(student) - to_float(teacher.detach()), mask[:, None])
    error = difference.square().mean(dim=1)
    return (error * masked(to_float(weights.detach()), mask)).sum(dim=1)


def rkd(
    student: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor, frames: Tensor | None = None
) -> Tensor:
    """Computes RKD as the mean over all frames of the batch (`rkd.reduction: frame_mean`).

    A long utterance counts more than a short one, and next to CTC, which is a sum over an utterance's frames,
    the same weight counts less the longer the utterances are. `reduce_over_time` has no such dependence.

    With several ranks, give the mean over the ranks of `sum_bt m` (`ranks.mean_over_ranks`) as `frames`. Then
    the mean of the ranks' gradients is the gradient of one batch that holds all their utterances, however
    many frames each rank has.

        loss = sum_b rkd_of_utterances[b] / sum_bt m

    Args:
        student: see `rkd_of_utterances`; so are the next three.
        teacher: the hint layer `[B, D, T]`.
        weights: frame weights `[B, T]`.
        mask: valid frames `[B, T]`, bool.
        frames: what the sum is divided by, scalar; None for the valid frames of this batch.

    Returns:
        Scalar; 0 for a batch without a valid frame.

    Example:
        >>> student, teacher = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])
        >>> mask = torch.tensor([[True, True]])
        >>> rkd(student, teacher, weights=torch.ones(1, 2), mask=mask)
        tensor(2.)
    """
    sums = rkd_of_utterances(student, teacher, weights, mask)
    return mean_over_frames(sums, mask.sum() if frames is None else frames)


def mean_over_frames(per_utterance: Tensor, frames: Tensor) -> Tensor:
    """Divides the sum of a batch by a number of frames.

    Args:
        per_utterance: sum over the frames of each utterance `[B]`.
        frames: scalar; 0 for a batch without a valid frame.

    Returns:
        Scalar; 0 if `frames` is 0.

    Example:
        >>> mean_over_frames(torch.tensor([3.0, 5.0]), torch.tensor(4))
        tensor(2.)
    """
    return per_utterance.sum() / torch.where(frames > 0, frames, 1)


@torch.no_grad()
def explained_variance(errors: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Computes the share of the hint layer's variance that the projected guided layer explains (R^2; ours).

    The value of RKD depends on the scale of the hint layer, so it does not show whether RKD has done its
    work. R^2 does: 1 is a perfect copy, and 0 is no better than each channel's mean. It may be negative. Mean
    and variance are those of the batch, with the frame weights of RKD.

        mean[d] = sum_bt m w h_T[b, d, t] / sum_bt m w
        R^2 = 1 - sum_bt m w e / sum_bt m w mean_d (h_T[b, d, t] - mean[d])^2

    Args:
        errors: sum_t m w e of each utterance `[B]` (`rkd_of_utterances`).
        teacher: the hint layer h_T on the student's frames `[B, D, T]`.
        weights: frame weights w `[B, T]`.
        mask: valid frames `[B, T]`, bool.

    Returns:
        Scalar; 0 if the hint layer is constant, or the batch has no valid frame.

    Example:
        >>> teacher, mask = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[True, True]])
        >>> errors = rkd_of_utterances(torch.tensor([[[1.5, 2.5]]]), teacher, torch.ones(1, 2), mask)
        >>> explained_variance(errors, teacher, torch.ones(1, 2), mask)
        tensor(0.7500)
    """
    hidden = masked(to_float(teacher), mask[:, None])
    frame_weights = masked(weights, mask).to(hidden.dtype)
    total = frame_weights.sum()
    mean = torch.einsum("bdt,bt->d", hidden, frame_weights) / torch.where(total > 0, total, 1)
    # The mean is subtracted first: the squares of a channel far from 0 would lose its variance.
    square = (hidden - mean[:, None]).square().mean(dim=1)
    variance = (square * frame_weights).sum()
    share = 1 - errors.sum() / torch.where(variance > 0, variance, 1)
    return torch.where(variance > 0, share, torch.zeros_like(share))


# Labels that stand for a second of speech without a transcript.
LABELS_PER_SECOND = 10.0


def reduce_over_time(
    per_utterance: Tensor,
    frames: Tensor,
    frame_seconds: float,
    target_lengths: Tensor,
    reduction: str,
    mean_over_ranks: Callable[[Tensor], Tensor] = lambda count: count,
) -> Tensor:
    """Reduces RKD so that the same weight is the same balance with CTC for utterances of every length (ours).

    With `mean_batch`, NeMo's default, each utterance's sum over frames is multiplied by a frame's seconds and
    averaged over the utterances: the loss is an integral over time, as CTC and SKD are sums over time. The
    seconds make the weight independent of the student's frame rate and of a pair's layers. Other values of
    `ctc_reduction` divide as they divide CTC: `mean_volume` by the labels of the batch, `mean` by those of
    each utterance, and `sum` not at all.

        mean_batch: loss = mean_b seconds * per_utterance[b]

    Args:
        per_utterance: sum over the frames of each utterance `[B]`.
        frames: valid frames of each `[B]`.
        frame_seconds: seconds of a frame.
        target_lengths: labels of each transcript `[B]`; 0 where there is none: then
            `LABELS_PER_SECOND` stand for it.
        reduction: the student's `ctc_reduction`.
        mean_over_ranks: averages a count over the ranks of a distributed training
            (`ranks.mean_over_ranks`), so that the gradient is that of one batch with all utterances.

    Returns:
        Scalar.

    Example:
        >>> sums, frames, labels = torch.tensor([100.0, 300.0]), torch.tensor([50, 150]), torch.tensor([1, 3])
        >>> reduce_over_time(sums, frames, 0.02, labels, "mean_batch")
        tensor(4.)
        >>> reduce_over_time(sums, frames, 0.02, labels, "mean_volume")
        tensor(2.)
    """
    integral = per_utterance * frame_seconds
    if reduction == "sum":
        return integral.sum()
    labels = torch.where(
        target_lengths > 0, target_lengths, frames * frame_seconds * LABELS_PER_SECOND
    ).clamp(min=1.0)
    if reduction == "mean_volume":
        return integral.sum() / mean_over_ranks(labels.sum()).clamp(min=1.0)
    if reduction == "mean":
        integral = integral / labels
    count = torch.tensor(float(len(integral)), device=integral.device)
    return integral.sum() / mean_over_ranks(count).clamp(min=1.0)


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
        [to_float(p) + math.log(w / total) for p, w in zip(log_probs, weights, strict=True)]
    ).logsumexp(dim=0)


def skd_l2(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation with the squared error between posteriors (TutorNet's SKD).

        d[b, t] = sum_v (p_S[b, t, v] - p_T[b, t, v])^2
        loss[b] = sum_t m d

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
    p = masked(to_float(student), mask[..., None]).exp()
    q = masked(to_float(teacher.detach()), mask[..., None]).exp()
    return (p - q).square().sum(dim=-1).sum(dim=1)


def skd_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation with the KL divergence (Hinton et al., arXiv 1503.02531).

        d[b, t] = tau^2 sum_v p_T^tau (log p_T^tau - log p_S^tau)
        loss[b] = sum_t m d

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
    log_p = masked(to_float(student), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_q = masked(to_float(teacher.detach()), mask[..., None]).clamp(min=MIN_LOG_PROB)
    log_p, log_q = F.log_softmax(log_p / temperature, dim=-1), F.log_softmax(log_q / temperature, dim=-1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=-1).sum(dim=1)


def skd_guided_ctc(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes softmax-level distillation as guided CTC (Kurata and Audhkhasi, arXiv 1904.08311).

        d[b, t] = - p_S[b, t, argmax_v p_T] where that argmax is not blank, else 0
        loss[b] = sum_t m d

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
    log_p = to_float(student).gather(dim=-1, index=best[..., None])[..., 0]
    # Masked twice: before exp, so that padding cannot overflow; after exp, because exp(0) is 1.
    return -masked(masked(log_p, spikes).exp(), spikes).sum(dim=1)


def reduce_like_ctc(per_utterance: Tensor, target_lengths: Tensor, reduction: str) -> Tensor:
    """Reduces SKD as NeMo's `CTCLoss` reduces CTC (ours).

    With the same reduction, a weight between the two losses means the same for every student. With several
    ranks, each rank reduces its own utterances, as it does for CTC, and DDP averages the gradients. That is
    the gradient of one batch of all utterances for `mean_batch` and `mean`, where every rank has equally
    many. For `mean_volume` each rank counts the same, however many labels it has, and `sum` is divided by the
    number of ranks.

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


DIVERGENCE: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "l2": skd_l2,
    "kl": skd_kl,
    "guided_ctc": skd_guided_ctc,
}
