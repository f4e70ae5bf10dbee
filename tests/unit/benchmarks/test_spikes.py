# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a best path's tokens begin."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import torch

from nemo_tutornet.teachers.targets import TeacherTargets

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "spikes.py"


def test_repeats_are_one_token_and_padding_is_none() -> None:
    spec = importlib.util.spec_from_file_location("spikes", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = torch.tensor([[0, 0, 2, 0, 1, 1, 2, 1]])  # a a - a b b - | b, which is padding

    class Speaker(SimpleNamespace):
        def targets(self, *_: object) -> TeacherTargets:
            return TeacherTargets(torch.tensor([7]), torch.nn.functional.one_hot(path, 3).float().log())

    speaker = Speaker(labels=["a", "b"], encoder_layer=SimpleNamespace(frame_ms=40.0))
    assert module.spikes(speaker, torch.zeros(1000)) == [("a", 20.0), ("a", 140.0), ("b", 180.0)]
