# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The text of a teacher with an adapter, which the student's decoding writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.report.posteriors import FrameReader
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets

LABELS = ["a", "b", "c"]  # of the student
LAYER = Layer("encoder", 4, 2, 20.0)


def written(decoder_outputs: torch.Tensor, decoder_lengths: torch.Tensor) -> list[str]:
    """What the student's decoding makes of posteriors."""
    rows = zip(decoder_outputs.argmax(dim=2).tolist(), decoder_lengths.tolist(), strict=True)
    return ["".join(LABELS[i] for i in row[:length]) for row, length in rows]


@pytest.mark.parametrize("order", [None, (2, 0, 1, 3)])
def test_the_labels_of_an_adapter_may_be_in_another_order(order: tuple[int, ...] | None) -> None:
    match = ModelMatch(LAYER, LAYER, (), LAYER, LAYER, order, "uniform", None)
    said = torch.tensor([[0, 1, 2, 1]])  # of the student's labels
    of_adapter = said if order is None else torch.tensor(order)[said]
    log_probs = torch.nn.functional.one_hot(of_adapter, 4).float().log()
    reader: Any = FrameReader.__new__(FrameReader)
    reader._match = match
    reader.teacher = SimpleNamespace(targets=lambda *_: TeacherTargets(torch.tensor([4]), log_probs))
    decoding = SimpleNamespace(ctc_decoder_predictions_tensor=written)
    reader._student = SimpleNamespace(model=SimpleNamespace(decoding=decoding, ctc_decoding=None))
    assert reader._decode(None, TargetRequest(posteriors=True)) == ["abcb"]
