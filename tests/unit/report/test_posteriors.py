# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a best path's labels begin, and how far apart two models' are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nemo_tutornet.report.posteriors import Posteriors, Spike, pair_spikes, posteriors_of, spike_offsets
from nemo_tutornet.teachers.targets import TeacherTargets


def test_repeats_are_one_label_and_padding_is_none() -> None:
    path = torch.tensor([[0, 0, 2, 0, 1, 1, 2, 1]])  # a a - a b b - | b, which is padding
    targets = TeacherTargets(torch.tensor([7]), torch.nn.functional.one_hot(path, 3).float().log())
    model: Any = SimpleNamespace(labels=["a", "b"], encoder_layer=SimpleNamespace(frame_ms=40.0))
    found = posteriors_of(model, targets)
    assert [(spike.label, round(spike.time, 6)) for spike in found.spikes] == [
        ("a", 0.02),
        ("a", 0.14),
        ("b", 0.18),
    ]
    assert found.frame == 0.04 and found.probabilities.shape == (7, 3)
    assert found.probabilities[0].tolist() == [1.0, 0.0, 0.0]


def test_only_shared_labels_have_an_offset() -> None:
    def model(*spikes: tuple[str, float]) -> Posteriors:
        return Posteriors(("a", "b", "c"), np.zeros((1, 4)), 0.02, tuple(Spike(*spike) for spike in spikes))

    teacher, student = model(("a", 0.1), ("b", 0.3), ("c", 0.5)), model(("a", 0.14), ("c", 0.44))
    assert spike_offsets(teacher, student) == pytest.approx([40.0, -60.0])
    assert [early.label for early, _ in pair_spikes(teacher, student)] == ["a", "c"]
    assert spike_offsets(teacher, model()) == []
