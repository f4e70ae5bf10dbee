# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The utterances on which an encoder is trained: which rows of a batch, with which labels, and what reaches
the encoder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from nemo_tutornet.commands.adapter_tuning import TunedUtterances
from nemo_tutornet.data.utterances import Utterance

CPU = torch.device("cpu")


class Encoder(nn.Module):
    """Scales each second sample; counts what it has encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, audio_signal: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes.append(tuple(audio_signal.shape))
        return self.gain * audio_signal[..., ::2], length // 2


def teacher() -> Any:
    def features(input_signal: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return input_signal[:, None], length

    model = SimpleNamespace(
        preprocessor=features, encoder=Encoder(), spec_augmentation=lambda input_spec, length: 0 * input_spec
    )
    return SimpleNamespace(model=model, precision_on=lambda device: "fp32")


class Loader(list):
    """Batches of a data set whose sample ids are the rows of a manifest."""

    def __init__(self, *batches: Any) -> None:
        super().__init__(batches)
        entries = [SimpleNamespace(audio_file=f"{i}.wav", offset=0.0, duration=None) for i in range(4)]
        manifest = SimpleNamespace(collection=entries)
        self.dataset = Rows(manifest)


class Rows:
    return_sample_id = False

    def __init__(self, manifest: Any) -> None:
        self.manifest_processor = manifest

    def __len__(self) -> int:
        return 4


def batch(*ids: int) -> tuple[torch.Tensor, ...]:
    """Rows of `2 (i + 1)` samples, of which the odd ones have a transcript of the label `i`."""
    lengths = torch.tensor([2 * (i + 1) for i in ids])
    signal = torch.arange(1.0, 9.0).expand(len(ids), 8)[:, : int(lengths.max())]
    labels = torch.tensor([[i, 0] for i in ids])
    return signal, lengths, labels, torch.tensor([i % 2 for i in ids]), torch.tensor(ids)


def utterance(number: int) -> Utterance:
    return Utterance(f"{number}.wav")


def test_only_rows_with_labels_are_encoded():
    loader, model = Loader(batch(0, 3, 2), batch(1)), teacher()
    examples = [(utterance(0), [5, 6]), (utterance(2), [7]), (utterance(1), [8])]
    first, second = TunedUtterances(loader, model, examples, CPU).batches(0)
    assert first.labels.tolist() == [[5, 6], [7, 0]] and first.label_lengths.tolist() == [2, 1]
    # The longest row is left out, so nothing of its length is computed.
    assert model.model.encoder.shapes[0] == (2, 1, 6) and first.lengths.tolist() == [1, 3]
    assert first.encoded.tolist() == [[[2.0, 6.0, 10.0]]] * 2 and first.encoded.requires_grad
    assert second.labels.tolist() == [[8]]


def test_in_training_an_utterance_has_its_example_or_its_transcript():
    loader = Loader(batch(0, 3, 1, 2))
    examples = [(utterance(0), [5, 6]), (utterance(1), [7])]
    (found,) = TunedUtterances(loader, teacher(), examples, CPU, training=True).batches(0)
    assert found.labels.tolist() == [[5, 6], [3, 0], [7, 0]] and found.label_lengths.tolist() == [2, 1, 1]
    (found,) = TunedUtterances(Loader(batch(0, 3)), teacher(), examples, CPU).batches(0)
    assert found.labels.tolist() == [[5, 6]]


def test_a_batch_without_labels_is_a_step_all_the_same():
    loader, model = Loader(batch(2), batch(3)), teacher()
    utterances = TunedUtterances(loader, model, [(utterance(3), [1])], CPU)
    assert utterances.batches_in_epoch() == 2
    assert [found.label_lengths.tolist() for found in utterances.batches(0)] == [[0], [1]]
    assert [found.label_lengths.tolist() for found in utterances.in_order()] == [[1]]


def test_the_features_are_masked_in_training_alone():
    sums = []
    for training in (False, True):
        examples = [(utterance(1), [1])]
        (found,) = TunedUtterances(Loader(batch(1)), teacher(), examples, CPU, training).batches(0)
        sums.append(float(found.encoded.detach().sum()))
    assert sums == [8.0, 0.0]
