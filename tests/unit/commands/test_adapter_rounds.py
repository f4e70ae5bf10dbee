# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Whose text an adapter learns for utterances without transcripts, and which of two adapters is kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_tutornet.commands.adapter_rounds import Example, Examples, Rounds, train_rounds, written_by
from nemo_tutornet.commands.adapter_training import EpochResult
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.teachers.adapter_head import AdapterHead


def utterance(name: str) -> Utterance:
    return Utterance(audio=name, offset=0.0, duration=1.0)


SPOKEN = [(utterance("a"), [1, 2]), (utterance("b"), [2])]
SILENT = [utterance("c"), utterance("d")]
THEIRS = [(SILENT[0], [3])]
OWN = [(SILENT[0], [4]), (SILENT[1], [5])]


def rounds(found: Examples, wers: dict[str, float], teacher_wer: float = 0.1) -> tuple[Rounds, list[Any]]:
    """Runs them with heads that have these word error rates, and returns the trainings as well."""
    trainings: list[Any] = []

    def train(examples: Any, part: str) -> tuple[Any, EpochResult]:
        trainings.append((part, list(examples)))
        return part, EpochResult(2, 0.0, wers[part], 1, wers[part], 2)

    def transcribe(head: Any) -> list[Example]:
        assert head == "transcribed"
        return OWN

    return train_rounds(found, teacher_wer, train, transcribe), trainings


@pytest.mark.parametrize(
    ("first", "second", "text", "kept"),
    [
        (0.05, 0.04, "adapter", "adapter"),
        (0.05, 0.05, "adapter", "transcribed"),
        (0.05, 0.06, "adapter", "transcribed"),
        (0.10, 0.08, "teacher", "teacher"),  # level with the teacher, whose text is no worse then
        (0.20, 0.30, "teacher", "transcribed"),
    ],
)
def test_the_better_text_and_the_better_head(first, second, text, kept):
    found = Examples(SPOKEN, THEIRS, SILENT)
    best, trainings = rounds(found, {"transcribed": first, "adapter": second, "teacher": second})
    written = OWN if text == "adapter" else THEIRS
    assert trainings == [("transcribed", SPOKEN), (text, SPOKEN + written)]
    assert best.head == kept and best.last.best_wer == min(first, second)
    if kept == "transcribed":
        assert (best.examples, best.source, best.untranscribed) == (SPOKEN, "", 0)
    else:
        assert (best.examples, best.source, best.untranscribed) == (SPOKEN + written, text, len(written))


@pytest.mark.parametrize(
    ("found", "source"), [(Examples(SPOKEN, [], []), ""), (Examples([], THEIRS, SILENT), "teacher")]
)
def test_one_round_where_all_or_none_have_transcripts(found, source):
    best, trainings = rounds(found, {"": 0.5})
    assert trainings == [("", found.transcribed + found.hypothesised)]
    assert (best.source, best.untranscribed) == (source, len(found.hypothesised))


def test_nothing_to_write_ends_after_the_first_round():
    best, trainings = rounds(Examples(SPOKEN, [], SILENT), {"transcribed": 0.2})
    assert [part for part, _ in trainings] == ["transcribed"] and best.untranscribed == 0


def test_a_head_writes_what_it_decodes():
    """Frames of one utterance each: labels, or the blank alone, which writes nothing."""
    head = AdapterHead(3, 3, 1, 3, kernel=1, second_kernel=0).eval()
    with torch.no_grad():
        head.expand.weight.copy_(torch.eye(3)[:, :, None])
        head.decoder.weight.copy_(10 * torch.eye(3).reshape(head.decoder.weight.shape))
        head.decoder.bias.zero_()
    frames = {"c": [0, 0, 2, 1], "d": [2, 2], "e": [1, 2, 1]}

    def read(utterances: list[Utterance], kinds: Any) -> Any:
        rows = [torch.eye(3)[frames[one.audio]] for one in utterances]
        hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2)
        return SimpleNamespace(hidden=hidden, lengths=torch.tensor([len(row) for row in rows]))

    reader: Any = SimpleNamespace(read=read)
    utterances = [utterance(name) for name in frames]
    assert written_by(head, reader, utterances, batch_size=2) == [
        (utterances[0], [0, 1]),
        (utterances[2], [1, 1]),
    ]
