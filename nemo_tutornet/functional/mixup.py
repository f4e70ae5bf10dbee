# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixtures of two waveforms of a batch (mixup, Zhang et al., arXiv 1710.09412), here for a teacher to label.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_mixtures(rows: int, share: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Draws which rows of a batch are mixed, with which other row, and how much of each.

    The numbers are drawn on the CPU from PyTorch's generator, whose state a checkpoint keeps.

    Args:
        rows: of the batch, `B`, at least 2.
        share: probability that a row is mixed.
        alpha: of the distribution Beta(alpha, alpha), from which the weight of a mixed row is drawn; 1 is the
            uniform one.

    Returns:
        The partner of each row `[B]`, which is another row, and the row's own weight `[B]`, 1 where it is not
        mixed.
    """
    mixed = torch.rand(rows) < share
    weights = torch.distributions.Beta(alpha, alpha).sample((rows,))
    partners = (torch.arange(rows) + torch.randint(1, rows, ())) % rows
    return partners, torch.where(mixed, weights, 1.0)


def mix_waveforms(
    signal: Tensor, lengths: Tensor, partners: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds its partner to each row.

        x[b] = w[b] x[b] + (1 - w[b]) x[partners[b]]

    Args:
        signal: waveforms `[B, N]`.
        lengths: valid samples `[B]`; what is behind them counts as silence in a mixture.
        partners: row `[B]` that is added to each row.
        weights: `w` `[B]`, 0 to 1.

    Returns:
        The mixtures `[B, N]`, and their lengths `[B]`, each that of the longer of both. Rows of weight 1 are
        as they were.

    Example:
        >>> signal, lengths = torch.tensor([[2.0, 2.0], [4.0, 0.0]]), torch.tensor([2, 1])
        >>> mix_waveforms(signal, lengths, torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
        (tensor([[2., 2.],
                [3., 1.]]), tensor([2, 2]))
    """
    mixed = weights < 1
    valid = torch.arange(signal.shape[1], device=signal.device)[None] < lengths[:, None]
    speech = torch.where(valid, signal, 0.0)
    own = weights[:, None].to(signal.dtype)
    mixtures = own * speech + (1 - own) * speech[partners]
    longer = torch.maximum(lengths, lengths[partners])
    return torch.where(mixed[:, None], mixtures, signal), torch.where(mixed, longer, lengths)
