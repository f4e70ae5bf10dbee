# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over the ranks of a distributed training."""

from __future__ import annotations

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Tells whether several ranks train together."""
    available = torch.distributed.is_available() and torch.distributed.is_initialized()
    return available and torch.distributed.get_world_size() > 1


def mean_over_ranks(count: Tensor) -> Tensor:
    """Returns the mean of a number over all ranks; the number itself in a single process.

    DDP averages the gradients of the ranks. A sum that each rank divides by the mean count, and not by its
    own, therefore has the gradient of the same sum over one batch of all ranks:

        mean_r (s_r / mean_r n_r) = sum_r s_r / sum_r n_r

    Every rank must call this equally often.

    Args:
        count: of this rank, scalar.

    Returns:
        Scalar, fp32, detached.

    Example:
        >>> mean_over_ranks(torch.tensor(3))
        tensor(3.)
    """
    count = count.detach().float()
    if is_distributed():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
