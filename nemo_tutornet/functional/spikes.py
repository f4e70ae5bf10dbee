# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Spikes of CTC posteriors: where the labels of the best path begin, and how far two networks' are apart."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence

from torch import Tensor


def greedy_spikes(log_probs: Tensor) -> list[tuple[int, int]]:
    """Finds the labels of the greedy CTC hypothesis of an utterance, and the frame in which each begins.

    Args:
        log_probs: log-probabilities of the valid frames `[T, V]`, the blank last.

    Returns:
        Label and frame of each spike, in order.

    Example:
        >>> import torch
        >>> best = torch.tensor([0, 0, 2, 0, 1, 1])  # a a blank a b b
        >>> greedy_spikes(torch.nn.functional.one_hot(best, 3).float().log())
        [(0, 0), (0, 3), (1, 4)]
    """
    blank = log_probs.shape[-1] - 1
    best = log_probs.argmax(dim=-1).tolist()
    return [(label, t) for t, label in enumerate(best) if label != blank and (t == 0 or best[t - 1] != label)]


def shared_spikes(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs the equal labels of two hypotheses, in order.

    Args:
        first: labels of one network's spikes.
        second: labels of the other's.

    Returns:
        Index in `first` and index in `second` of each pair.

    Example:
        >>> shared_spikes("abcd", "abed")
        [(0, 0), (1, 1), (3, 3)]
    """
    blocks = difflib.SequenceMatcher(a=first, b=second, autojunk=False).get_matching_blocks()
    return [(i + k, j + k) for i, j, size in blocks for k in range(size)]
