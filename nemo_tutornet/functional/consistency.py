# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Consistency of a student on two augmented views of each utterance (CR-CTC, Yao et al., arXiv 2410.05101).

Legend: `B` utterances, `T` frames of the student, `V` labels with the blank last. A batch of views has `2 B`
rows: first view of every utterance, then the second of every utterance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_tutornet.functional.losses import skd_kl


def consistency(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Computes the symmetric KL divergence between the posteriors of two views, with stopped gradients.

    Each view learns from the other, which is constant meanwhile (sg).

        d[b, t] = 1/2 KL( sg(p_2[b, t]) || p_1[b, t] ) + 1/2 KL( sg(p_1[b, t]) || p_2[b, t] )
        loss[b] = sum_t m d

    Args:
        log_probs: log-probabilities of the student on both views `[2 B, T, V]`.
        mask: valid frames of both `[2 B, T]`, bool; the two views of an utterance are equally long.

    Returns:
        `[B]`, each at least 0, and 0 for equal views.

    Example:
        >>> views = torch.tensor([[[0.5, 0.5]], [[0.8, 0.2]]]).log()
        >>> consistency(views, mask=torch.tensor([[True], [True]]))
        tensor([0.2079])
    """
    first, second = log_probs.chunk(2)
    valid = mask[: len(first)] & mask[len(first) :]
    return 0.5 * (skd_kl(first, second, valid) + skd_kl(second, first, valid))


def warmup_factor(step: int, warmup: int) -> float:
    """Returns the share of the weight that counts after so many optimizer steps.

    Args:
        step: optimizer steps so far.
        warmup: steps in which the share grows from 0 to 1; 0 for none.

    Returns:
        0 to 1.

    Example:
        >>> warmup_factor(50, 200), warmup_factor(900, 200), warmup_factor(0, 0)
        (0.25, 1.0, 1.0)
    """
    return 1.0 if step >= warmup else step / warmup


def twice(tensor: Tensor) -> Tensor:
    """Returns the rows of a tensor `[B, ...]` twice, `[2 B, ...]`."""
    return torch.cat([tensor, tensor])
