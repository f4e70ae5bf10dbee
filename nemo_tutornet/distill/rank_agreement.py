# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What one rank of a distributed training found or was asked for becomes known to all ranks."""

from __future__ import annotations

from collections import Counter

import torch

from nemo_tutornet.functional.ranks import is_distributed


def agree(found: str | None, stop: int, device: torch.device) -> tuple[str | None, int]:
    """Exchanges two facts between all ranks, in one small message where nothing happened.

    All ranks call this function together. A training of one process returns what it gives.

    Args:
        found: what this rank found wrong; None where all is well.
        stop: number of the signal that asked this rank to stop, or 0.
        device: where the ranks exchange tensors.

    Returns:
        What this rank or another one found, and the signal that asked any rank to stop, or 0.

    Example:
        >>> agree("step 3: the loss is not finite", 0, torch.device("cpu"))
        ('step 3: the loss is not finite', 0)
    """
    if not is_distributed():
        return found, stop
    flags = torch.tensor([found is not None, stop], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    anything, stops = flags.tolist()
    if not anything:
        return None, int(stops)
    every: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, found)
    return next(sentence for sentence in every if sentence is not None), int(stops)


def sum_counts(counts: Counter[str]) -> Counter[str]:
    """Returns the sums of some counts over all ranks, whose keys may differ.

    All ranks call this function together. A training of one process returns what it gives.

    Example:
        >>> sum_counts(Counter(kept=2))
        Counter({'kept': 2})
    """
    if not is_distributed():
        return counts
    every: list[Counter[str] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, counts)
    total: Counter[str] = Counter()
    for one in every:
        total += one or Counter()
    return total
