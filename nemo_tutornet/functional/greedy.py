# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Greedy CTC decoding.

Legend: `B` utterances, `T` frames, `V` labels with the blank last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_path(log_probs: Tensor) -> list[int]:
    """Decodes an utterance: the best label of each frame, repetitions merged, without blanks.

    Args:
        log_probs: of the valid frames `[T, V]`.

    Returns:
        Its labels.

    Example:
        >>> greedy_path(torch.eye(3)[[0, 0, 2, 0, 1]])
        [0, 0, 1]
    """
    best = torch.unique_consecutive(log_probs.argmax(dim=1))
    path: list[int] = best[best != log_probs.shape[1] - 1].tolist()
    return path


def greedy_labels(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """Decodes each utterance of a batch with `greedy_path`.

    Args:
        log_probs: `[B, T, V]`.
        lengths: valid frames `[B]`.

    Returns:
        The labels of each utterance.

    Example:
        >>> best = torch.tensor([[0, 0, 2, 0, 1, 1]])
        >>> greedy_labels(torch.eye(3)[best], torch.tensor([5]))
        [[0, 0, 1]]
    """
    return [greedy_path(row[:length]) for row, length in zip(log_probs, lengths.tolist(), strict=True)]
