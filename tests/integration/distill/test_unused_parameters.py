# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What no loss reaches stays as it is, in one process and under DDP alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed

from nemo_tutornet import models
from nemo_tutornet.distill.unused_parameters import _Touched, parameters_with_grad
from tests.conftest import ACCELERATOR, student_config
from tests.integration.recorder import RKD, SKD, same, state_of
from tests.operators import Operators

BEHIND = ("encoder.encoder.2.", "decoder.")  # of a guided layer encoder.encoder.1


@pytest.fixture(autouse=True)
def no_group_left_behind() -> Iterator[None]:
    """Lightning's DDP leaves its process group and its ranks' names in the environment."""
    environment = dict(os.environ)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


def trained(make_student: Any, config: dict[str, Any], **trainer: Any) -> tuple[dict, dict]:
    """The student's state before and after a training; the same batches, whatever the strategy."""
    model = make_student(config, use_distributed_sampler=False, **trainer)
    before = state_of(model)
    model.trainer.limit_val_batches = 0
    torch.manual_seed(3)
    model.trainer.fit(model)
    assert distributed.is_initialized() == (trainer.get("strategy") == "ddp")
    return before, state_of(model)


@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_ddp_trains_the_same_student_with_a_guided_layer_in_the_middle(
    corpus, teacher_file, make_student, more
):
    config = student_config(
        corpus, teacher_file, [RKD | {"epochs": 1}, SKD], rkd={"guided_layer": "encoder.encoder.1"}
    )
    config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
    config["optim"]["weight_decay"] = 0.5
    for epochs in (1, 2):
        _, alone = trained(make_student, config, max_epochs=epochs, **more)
        before, parallel = trained(make_student, config, max_epochs=epochs, strategy="ddp", **more)
        distributed.destroy_process_group()
        if ACCELERATOR == "cpu":  # a GPU's sums differ from run to run, and Adam makes whole steps of that
            assert same(alone, parallel), [
                name for name in alone if not torch.equal(alone[name], parallel[name])
            ]
        # RKD leaves what lies behind the guided layer alone; the next stage trains it.
        weights = [name for name in before if name.startswith(BEHIND) and name.endswith(("weight", "bias"))]
        assert len(weights) > 2
        assert all(torch.equal(before[name], parallel[name]) == (epochs == 1) for name in weights), weights


def test_rkd_alone_trains_the_same_student_without_its_decoder(
    corpus, teacher_file, make_student, monkeypatch
):
    config = student_config(corpus, teacher_file, [RKD | {"epochs": 1}, SKD])
    config.pop("spec_augment")
    runs = []

    def count(module: Any, *_: Any) -> None:
        runs[-1] += module.training

    def train() -> dict[str, torch.Tensor]:
        model = make_student(config, max_epochs=2)
        model.trainer.limit_val_batches = 0
        model.decoder.register_forward_hook(count)
        runs.append(0)
        torch.manual_seed(3)
        model.trainer.fit(model)
        return state_of(model)

    without = train()

    def whole(student: Any, batch: Any) -> None:
        student.forward(input_signal=batch.signal, input_signal_length=batch.signal_lengths)

    monkeypatch.setattr(models, "run_without_decoder", whole)
    assert same(without, train())
    assert 0 < 2 * runs[0] == runs[1]


def test_touched_parameters_are_reached_and_cost_no_operator():
    torch.manual_seed(0)
    used, unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    parameters = [*used.parameters(), *unused.parameters()]
    loss = used(torch.ones(2, 3)).square().sum()
    expected = torch.autograd.grad(loss, list(used.parameters()), retain_graph=True)
    with Operators() as ran:
        touched = _Touched.apply(loss, *parameters)
    assert torch.equal(touched, loss) and parameters_with_grad(touched) == set(parameters)
    touched.backward()
    assert all(parameter.grad is None for parameter in unused.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(used.parameters(), expected, strict=True))
    assert ran.counts == {"clone.default": 1}


def test_reached_by_agrees_with_a_backward():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3))
    layers[0].bias.requires_grad_(False)
    middle = layers[1](layers[0](torch.ones(2, 3)).relu())
    layers[2](middle)
    loss = middle.square().sum() + middle.mean()
    reached = parameters_with_grad(loss)
    loss.backward()
    assert reached == {p for p in layers.parameters() if p.grad is not None}
    assert len(reached) == 3
