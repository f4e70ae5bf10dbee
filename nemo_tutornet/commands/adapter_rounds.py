# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which text an adapter learns for an utterance without a transcript: the teacher's, or its own.

A teacher of another domain writes worse text than a head that has learned a few transcripts of this one.
With NVIDIA's QuartzNet 15x5 and a quarter of AN4's transcripts, the teacher's text for the others made an
adapter of 4.0 % WER, and the transcripts alone one of 1.5 % (docs/adapter.md). The method is self-training;
its use here is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nemo_tutornet.commands.adapter_batches import StoredUtterances
from nemo_tutornet.commands.adapter_training import EpochResult
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.adapter_head import AdapterHead

Example = tuple[Utterance, list[int]]
Source = Literal["", "teacher", "adapter"]
# Trains a new head on examples, and returns it with its last epoch. The word tells the rounds' states apart.
Train = Callable[[Sequence[Example], str], tuple[AdapterHead, EpochResult]]


@dataclass(frozen=True)
class Examples:
    """A training set.

    Attributes:
        transcribed: utterances with the labels of their transcripts.
        hypothesised: utterances without a transcript, with the labels of the teacher's usable hypothesis.
        silent: all utterances without a transcript, in the order of the set.
    """

    transcribed: list[Example]
    hypothesised: list[Example]
    silent: list[Utterance]


@dataclass(frozen=True)
class Rounds:
    """What the rounds ended with.

    Attributes:
        head: the head with the lowest word error rate on validation.
        last: the last epoch of its round, and its best one.
        examples: what it was trained on.
        source: whose text the utterances without transcripts had; empty where none of them was used.
        untranscribed: how many of the examples these were.
    """

    head: AdapterHead
    last: EpochResult
    examples: list[Example]
    source: Source
    untranscribed: int


def train_rounds(
    found: Examples, teacher_wer: float, train: Train, transcribe: Callable[[AdapterHead], list[Example]]
) -> Rounds:
    """Trains a head on the transcripts, and another with the better text for the other utterances.

    That text is the first head's where its word error rate on validation is below the teacher's, and the
    teacher's otherwise. The head with the lower rate is kept; the first one where they are equal.

    Args:
        found: the training set.
        teacher_wer: the teacher's own word error rate on the validation set, as a fraction.
        train: trains a new head.
        transcribe: writes the utterances without transcripts with a head.

    Returns:
        The better round.
    """
    if not (found.transcribed and found.silent):
        examples = found.transcribed + found.hypothesised
        source: Source = "teacher" if found.hypothesised else ""
        return Rounds(*train(examples, ""), examples, source, len(found.hypothesised))
    head, last = train(found.transcribed, "transcribed")
    first = Rounds(head, last, found.transcribed, "", 0)
    source = "adapter" if last.best_wer < teacher_wer else "teacher"
    written = transcribe(head) if source == "adapter" else found.hypothesised
    if not written:
        return first
    examples = found.transcribed + written
    second = Rounds(*train(examples, source), examples, source, len(written))
    return second if second.last.best_wer < last.best_wer else first


@torch.no_grad()
def written_by(
    head: AdapterHead, reader: CacheReader, utterances: Sequence[Utterance], batch_size: int
) -> list[Example]:
    """Writes utterances with a head's greedy decoding, and leaves out those in which it finds no label.

    Args:
        head: in eval mode.
        reader: of the encoder's output.
        utterances: the utterances.
        batch_size: utterances in a batch.
    """
    device = next(head.parameters()).device
    stored = StoredUtterances(reader, [(utterance, []) for utterance in utterances], batch_size)
    rows: list[list[int]] = []
    for batch in stored.in_order():
        log_probs = head(batch.encoded.to(device), batch.lengths.to(device)).cpu()
        rows += greedy_labels(log_probs, batch.lengths * head.upsampling)
    return [(utterance, row) for utterance, row in zip(utterances, rows, strict=True) if row]
