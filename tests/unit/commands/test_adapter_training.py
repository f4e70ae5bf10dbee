# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The training of an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.commands.adapter_batches import EncodedBatch
from nemo_tutornet.commands.adapter_training import EpochResult, Settings, train_head, word_error_rate
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.teachers.adapter_head import AdapterHead
from tests.unit.teachers.adapters import INFO, head_of


class Utterances:
    """Four utterances in two batches; a frame's largest channel is its label."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, 3, (4, 3), generator=generator)
        encoded = torch.nn.functional.one_hot(labels.repeat_interleave(2, 1), 6).float().transpose(1, 2)
        self.encoded, self.labels = encoded, labels

    def batches_in_epoch(self) -> int:
        return 2

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        rows = torch.randperm(4, generator=torch.Generator().manual_seed(epoch))
        for part in (rows[:2], rows[2:]):
            lengths = torch.tensor([3, 3])
            if epoch == 2:  # an utterance without a text counts nothing
                lengths[0] = 0
            yield EncodedBatch(self.encoded[part], torch.tensor([6, 6]), self.labels[part], lengths)

    def in_order(self) -> list[EncodedBatch]:
        return [EncodedBatch(self.encoded, torch.full((4,), 6), self.labels, torch.full((4,), 3))]


def spell(labels: list[int]) -> str:
    """A word for each label."""
    return " ".join("abc"[i] for i in labels)


SETTINGS = Settings(epochs=12, learning_rate=0.05, batch_size=2, dropout=0.2, seed=5, about="x")


def trained(
    state: Path, settings: Settings = SETTINGS, stop: int | None = None
) -> tuple[AdapterHead, list[EpochResult]]:
    """Trains on these utterances; `stop` interrupts after an epoch."""
    data, results = Utterances(), []
    references = [spell(row) for row in data.labels.tolist()]

    def validate(head: AdapterHead) -> float:
        return word_error_rate(head, data.in_order(), references, spell, torch.device("cpu"))

    def report(result: EpochResult) -> None:
        results.append(result)
        if result.epoch == stop:
            raise KeyboardInterrupt

    head = head_of(replace(INFO, upsampling=1), seed=settings.seed, dropout=settings.dropout)
    try:
        train_head(head, data, validate, settings, state, report, torch.device("cpu"))
    except KeyboardInterrupt:
        assert stop is not None
    return head, results


@pytest.mark.parametrize("stop", [1, 4, 11, 12])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(stop, tmp_path):
    whole, results = trained(tmp_path / "whole.pt")
    assert [result.epoch for result in results] == list(range(1, 13))
    assert results[-1].loss < 0.75 * results[0].loss
    _, before = trained(tmp_path / "state.pt", stop=stop)
    resumed, after = trained(tmp_path / "state.pt")
    assert [*before, *after] == results
    for mine, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_of_an_older_version_continues(tmp_path):
    """It does not say how many epochs the training has."""
    _, results = trained(tmp_path / "whole.pt")
    trained(tmp_path / "state.pt", stop=4)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["progress"]["epochs"]
    torch.save(state, tmp_path / "state.pt")
    assert trained(tmp_path / "state.pt")[1] == results[4:] and results[-1].epochs == 12


def test_the_best_epoch_is_kept(tmp_path):
    """A training with a ruinous learning rate in its middle leaves the weights from before."""
    head, results = trained(tmp_path / "state.pt", replace(SETTINGS, learning_rate=0.5))
    best = min(results, key=lambda result: result.wer)
    assert (results[-1].best_epoch, results[-1].best_wer) == (best.epoch, best.wer)
    data = Utterances()
    references = [spell(row) for row in data.labels.tolist()]
    assert word_error_rate(head, data.in_order(), references, spell, torch.device("cpu")) == best.wer


def test_a_teacher_in_bf16_may_encode_in_every_epoch(tmp_path, monkeypatch):
    whole = trained(tmp_path / "fp32.pt")[1]
    batches = Utterances.batches

    def in_bf16(self: Utterances, epoch: int) -> Iterator[EncodedBatch]:
        for batch in batches(self, epoch):
            yield replace(batch, encoded=batch.encoded.bfloat16())

    monkeypatch.setattr(Utterances, "batches", in_bf16)
    assert trained(tmp_path / "bf16.pt")[1] == whole  # ones and zeros are the same in both


def test_a_training_that_diverges_stops_and_keeps_its_last_epoch(tmp_path, monkeypatch):
    batches = Utterances.batches

    def broken(self: Utterances, epoch: int) -> Iterator[EncodedBatch]:
        for batch in batches(self, epoch):
            yield replace(batch, encoded=batch.encoded * (float("nan") if epoch == 4 else 1.0))

    whole, results = trained(tmp_path / "whole.pt")
    monkeypatch.setattr(Utterances, "batches", broken)
    with pytest.raises(TutorError, match=r"^epoch 4, step 7: the adapter's loss or gradient is not finite"):
        trained(tmp_path / "state.pt")
    monkeypatch.undo()
    resumed, after = trained(tmp_path / "state.pt")
    assert after == results[3:]
    for mine, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("state", ["other settings", "damaged"])
def test_a_state_that_does_not_fit_begins_again(state, tmp_path):
    whole, _ = trained(tmp_path / "whole.pt")
    if state == "damaged":
        (tmp_path / "state.pt").write_bytes(b"PK\3\4 nothing")
    else:
        trained(tmp_path / "state.pt", replace(SETTINGS, about="another teacher"), stop=3)
    fresh, results = trained(tmp_path / "state.pt")
    assert len(results) == 12
    assert torch.equal(fresh.decoder.weight, whole.decoder.weight)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 12))
def test_greedy_decoding_merges_and_drops_blanks(best, length):
    length = min(length, len(best))
    expected, before = [], None
    for label in best[:length]:
        if label != before and label != 3:
            expected.append(label)
        before = label
    frames = torch.tensor(best, dtype=torch.long).reshape(1, -1)
    log_probs = torch.nn.functional.one_hot(frames, 4).float()
    assert greedy_labels(log_probs, torch.tensor([length])) == [expected]
