# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches that an adapter is trained on: the output of a teacher's encoder, with labels.

Legend: `B` utterances, `T` frames of the teacher's encoder, `D` its width, `L` labels of a transcript.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import Kinds

# Utterances of similar length form a batch: as many batches as this are drawn and sorted together.
_SORTED_BATCHES = 20


@dataclass(frozen=True)
class EncodedBatch:
    """A batch for the adapter.

    Attributes:
        encoded: output of the teacher's encoder `[B, D, T]`.
        lengths: valid frames `[B]`.
        labels: the student's labels of the transcripts `[B, L]`.
        label_lengths: valid labels `[B]`; 0 for an utterance that has no usable text.
    """

    encoded: Tensor
    lengths: Tensor
    labels: Tensor
    label_lengths: Tensor


class TrainingSet(Protocol):
    """The training utterances, encoded by the teacher."""

    def batches(self, epoch: int) -> Iterable[EncodedBatch]:
        """Returns the batches of an epoch, in an order that only the epoch's number decides."""

    def batches_in_epoch(self) -> int:
        """Returns the number of batches of an epoch."""


class StoredUtterances:
    """Utterances whose encoder output is in a cache.

    Args:
        reader: the cache, with the encoder's output as its hint layer.
        examples: each utterance with its labels.
        batch_size: utterances in a batch.
    """

    def __init__(
        self, reader: CacheReader, examples: Sequence[tuple[Utterance, list[int]]], batch_size: int
    ) -> None:
        self._reader, self._examples, self._batch_size = reader, list(examples), batch_size

    def __len__(self) -> int:
        return len(self._examples)

    def batches_in_epoch(self) -> int:
        """Returns the number of batches of an epoch."""
        return math.ceil(len(self._examples) / self._batch_size)

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        """Yields batches of utterances of similar length, in a random order that the epoch's number gives."""
        generator = random.Random(epoch)
        order = list(self._examples)
        generator.shuffle(order)
        pool = self._batch_size * _SORTED_BATCHES
        pools = [
            sorted(order[i : i + pool], key=lambda example: example[0].duration or 0.0)
            for i in range(0, len(order), pool)
        ]
        batches = [
            part[i : i + self._batch_size] for part in pools for i in range(0, len(part), self._batch_size)
        ]
        generator.shuffle(batches)
        yield from map(self._read, batches)

    def in_order(self) -> Iterator[EncodedBatch]:
        """Yields batches in the order of the examples, for validation."""
        for i in range(0, len(self._examples), self._batch_size):
            yield self._read(self._examples[i : i + self._batch_size])

    def _read(self, examples: Sequence[tuple[Utterance, list[int]]]) -> EncodedBatch:
        stored = self._reader.read([utterance for utterance, _ in examples], Kinds(hidden=True))
        assert stored.hidden is not None, "the cache was built with the encoder's output"
        return EncodedBatch(stored.hidden, stored.lengths, *padded([labels for _, labels in examples]))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pads lists of labels to `[B, L]`, and returns it with their lengths `[B]`.

    Example:
        >>> padded([[1, 2], [3]])
        (tensor([[1, 2],
                [3, 0]]), tensor([2, 1]))
    """
    labels = torch.zeros(len(rows), max(1, *map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        labels[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return labels, torch.tensor([len(row) for row in rows])
