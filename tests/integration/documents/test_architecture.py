# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The example of docs/architecture.md adds a loss that trains."""

from __future__ import annotations

import re
from typing import Any

import torch

from nemo_tutornet.distill import losses, objective
from tests.conftest import student_config
from tests.integration.documents.test_readme import ROOT, blocks
from tests.integration.recorder import Recorder, state_of

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_example_adds_a_loss(corpus, teacher_file, make_student, monkeypatch):
    table = dict(losses.LOSSES)
    for module in (losses, objective):
        monkeypatch.setattr(module, "LOSSES", table)
    (example,) = blocks("python", PAGE)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/architecture.md", "exec"), names)
    recorder = Recorder()
    config = student_config(corpus, teacher_file, [{"name": "a", "weights": {"cosine": 1.0}}])
    model = make_student(config, max_epochs=2, callbacks=[recorder])
    before = state_of(model.decoder)
    model.trainer.fit(model)
    values = [step["train_cosine"] for step in recorder.steps]
    assert len(values) == 8 and all(0 < value < 2 for value in values) and values[-1] < values[0]
    assert all(step["train_loss"] == step["train_cosine"] for step in recorder.steps)
    assert "cosine projection" in model.distiller.state()
    assert not any("cosine" in key or "training_only" in key for key in model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in state_of(model.decoder).items())


def test_a_step_passes_through_few_files():
    """Every file that the page names for a step is there, and they are not more than the page promises."""
    step = PAGE[PAGE.index("## A training step") : PAGE.index("## An export")]
    files = set(re.findall(r"\]\(\.\./(nemo_tutornet/[\w/]+\.py)\)", step))
    assert all((ROOT / file).is_file() for file in files)
    # The warm start runs at the end of a stage only, one of the two teachers in each step; not every teacher
    # has an adapter, and two views of a batch and mixtures are off by default.
    rare = {"distill/warm_start.py", "distill/consistency.py", "distill/mixup.py"}
    rare |= {"teachers/cached.py", "teachers/adapter.py"}
    assert len(files - {f"nemo_tutornet/{name}" for name in rare}) <= 10
