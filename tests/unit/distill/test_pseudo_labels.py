# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hypotheses become targets or are dropped for a reason that is counted."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.config import PseudoLabelsConfig
from nemo_tutornet.distill import rank_agreement
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.functional.frame_weighting import confidence
from nemo_tutornet.teachers.targets import Hypothesis
from tests.operators import Operators
from tests.properties import examples

LABELS = "ab "


def encode(text: str) -> list[int] | None:
    return None if "!" in text else [LABELS.index(c) for c in text if c in LABELS]


def pseudo(**config: object) -> PseudoLabels:
    return PseudoLabels(PseudoLabelsConfig(**config), encode, lambda ids: "".join(LABELS[i] for i in ids))


def test_each_fate_and_its_count() -> None:
    labels = pseudo(min_confidence=0.5, max_wer=0.5)
    hypotheses = [
        Hypothesis("a b", 0.9),
        Hypothesis(" ", 0.9),
        Hypothesis("a", 0.4),
        Hypothesis("b b", 0.9),
        Hypothesis("xyz", 0.9),
        Hypothesis("!", 0.9),
        Hypothesis("b a b", None),
        Hypothesis("baab", None),
    ]
    transcripts = torch.tensor([[0, 2, 1, 0]] * 8)
    lengths = torch.tensor([3, 0, 0, 1, 0, 0, 0, 0])  # "a b", five without a transcript, "a" for the fourth
    frames = torch.tensor([5, 5, 5, 5, 5, 5, 5, 4])  # "baab" needs a fifth for the blank between its two "a"
    rows, counts = labels.targets(hypotheses, transcripts, lengths, frames)
    assert counts.tolist() == [3, 0, 0, 0, 0, 0, 5, 0]
    assert rows[0, :3].tolist() == [0, 2, 1] and rows[6].tolist() == [1, 2, 0, 2, 1]
    assert (
        labels.report()
        == "pseudo-labels: 2 of 8 hypotheses used, dropped: 1 empty, 1 low_confidence, 2 not_in_vocabulary, "
        "1 high_wer, 1 too_long."
    )
    assert not labels.counts


def test_labels_are_moved_to_the_device_together() -> None:
    """A copy for each row would wait for the device as often."""
    rows = 8
    zeros = torch.zeros(rows, dtype=torch.long)
    with Operators() as ran:
        found, _ = pseudo().targets([Hypothesis("a b", None)] * rows, zeros[:, None], zeros, zeros + 5)
    assert found.tolist() == [[0, 2, 1]] * rows
    assert ran.counts["copy_.default"] == 0 and ran.counts["_local_scalar_dense.default"] == 0


def test_counts_of_all_ranks_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """This rank has no hypothesis. The other has two, and one has a character without a label."""
    labels, others = pseudo(), iter((Counter(kept=1, not_in_vocabulary=1), Counter({"!": 1})))

    def gather(into: list[object], mine: object) -> None:
        into[:] = [mine, next(others)]

    monkeypatch.setattr(rank_agreement, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    labels.gather()
    assert labels.report() == (
        "pseudo-labels: 1 of 2 hypotheses used, dropped: 1 not_in_vocabulary (no labels for '!')."
    )


def test_the_error_rate_is_of_the_transcript() -> None:
    """`a b` for `a` is one error in one word, not in two; at the limit a hypothesis stays."""
    for text, transcript, fate in (("a b", [0], "high_wer"), ("a a", [0, 2, 1], "kept")):
        labels = pseudo(max_wer=0.5)
        labels.targets(
            [Hypothesis(text, 0.9)],
            torch.tensor([transcript]),
            torch.tensor([len(transcript)]),
            torch.tensor([9]),
        )
        assert dict(labels.counts) == {fate: 1}


def test_labels_of_spaces_alone_say_nothing() -> None:
    """What is left of `- -` or `12 3` where the student has no label for the rest."""
    labels = pseudo(max_wer=0.5)
    hypotheses = [Hypothesis("a b", 0.9), Hypothesis("x y", 0.9)]
    _, counts = labels.targets(
        hypotheses, torch.tensor([[2], [2]]), torch.tensor([1, 1]), torch.tensor([9, 9])
    )
    assert counts.tolist() == [3, 0] and dict(labels.counts) == {"kept": 1, "not_in_vocabulary": 1}


def test_without_filters_only_what_cannot_be_used_is_dropped() -> None:
    labels = pseudo()
    rows, counts = labels.targets(
        [Hypothesis("b", 0.0), Hypothesis("", 1.0)],
        torch.tensor([[0], [0]]),
        torch.tensor([1, 1]),
        torch.tensor([1, 1]),
    )
    assert counts.tolist() == [1, 0] and rows.shape == (2, 1)
    assert labels.report() == "pseudo-labels: 1 of 2 hypotheses used, dropped: 1 empty."


@examples(100)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 10_000))
def test_confidence_agrees_with_a_loop_and_ignores_padding(frames: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(1, 12, 4, generator=generator).mul(2).log_softmax(-1)
    length = min(length, frames)
    spoken = [float(row.max()) for row in log_probs[0, :length] if int(row.argmax()) != 3]
    expected = math.exp(sum(spoken) / len(spoken)) if spoken else 0.0
    found = float(confidence(log_probs[:, :frames], torch.tensor([length])))
    assert found == pytest.approx(expected, abs=1e-6) and 0 <= found <= 1
