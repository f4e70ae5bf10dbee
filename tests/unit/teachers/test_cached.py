# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a teacher reads of its cache: only what a stage requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.target_cache.records import Kinds
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.targets import TargetRequest
from tests.unit.fuzz.test_caches import FACTS, LAYER
from tests.unit.target_cache.caches import RATE, targets, utterances

KEYS = utterances(2)
SCHEMA = CacheSchema(labels=6, min_posterior=1e-4, width=4, hypotheses=True, further_widths=(9, 7))
FURTHER = [{**LAYER, "path": f"encoder.layers.{width}", "width": width} for width in (9, 7)]


@pytest.fixture
def teacher(tmp_path: Path) -> CachedTeacher:
    facts = {**FACTS, "further_hints": FURTHER}
    with CacheWriter(tmp_path / "cache", facts, SCHEMA, RATE) as writer:
        for key in KEYS:
            writer.add(key, targets(key, SCHEMA))
        writer.finish()
    found = CachedTeacher(TeacherConfig(model_path="", cache=str(tmp_path / "cache")))
    found.add_hint_layers(["encoder.layers.7"])
    return found


@pytest.mark.parametrize(
    "request_of_stage, kinds",
    [
        (TargetRequest(hidden=True), Kinds(hidden=True, further=[1])),
        (TargetRequest(posteriors=True), Kinds(log_probs=True)),
        (TargetRequest(hypotheses=True), Kinds(texts=True)),
        (
            TargetRequest(hidden=True, posteriors=True, hypotheses=True),
            Kinds(log_probs=True, hidden=True, texts=True, further=[1]),
        ),
    ],
    ids=str,
)
def test_only_what_a_stage_requests_is_decoded(
    teacher: CachedTeacher, monkeypatch: pytest.MonkeyPatch, request_of_stage: TargetRequest, kinds: Kinds
) -> None:
    read, asked = teacher.reader.read, []

    def note(keys: Any, wanted: Kinds) -> Any:
        asked.append(wanted)
        return read(keys, wanted)

    monkeypatch.setattr(teacher.reader, "read", note)
    signal, lengths = torch.zeros(2, 3200), torch.tensor([3200, 3200])
    found = teacher.targets(TrainingBatch(signal, lengths, utterances=KEYS), request_of_stage)
    assert asked == [kinds]
    everything = read(KEYS)
    for name, wanted in (("log_probs", kinds.log_probs), ("hidden", kinds.hidden)):
        value = getattr(found, name)
        assert torch.equal(value, getattr(everything, name)) if wanted else value is None
    assert len(found.further_hidden) == len(kinds.further or ())
    assert all(torch.equal(layer, everything.further_hidden[1]) for layer in found.further_hidden)
    texts = None if found.hypotheses is None else [one.text for one in found.hypotheses]
    assert texts == (everything.texts if kinds.texts else None)
