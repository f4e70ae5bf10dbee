# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters that no loss of a stage reaches: DDP wants a gradient for them, and the optimizer must not move
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class UnusedParameters:
    """Gives DDP the gradients that it waits for, and takes them away before the optimizer's step.

    A stage leaves some parameters out: the decoder during RKD, the projection after it, and what lies behind
    a guided layer in the middle of the encoder. With weight decay or momentum, a gradient of zero would still
    move them.
    """

    def __init__(self) -> None:
        self._by_stage: dict[str, list[nn.Parameter]] = {}

    def touch(self, loss: Tensor, parameters: Iterable[nn.Parameter], stage: str, find: bool) -> Tensor:
        """Returns the loss, on which every parameter now depends, where there is a process group.

        Args:
            loss: of a step.
            parameters: of the student and of what trains with it.
            stage: the stage's name.
            find: look once in each stage for the parameters that the loss does not reach.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return loss
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if find and stage not in self._by_stage:
            reached = parameters_with_grad(loss)
            self._by_stage[stage] = [parameter for parameter in trained if parameter not in reached]
        touched: Tensor = _Touched.apply(loss, *trained)
        return touched

    def drop_gradients(self, stage: str, modules: Iterable[nn.Module]) -> None:
        """Removes the gradients of the parameters that a stage does not train.

        Args:
            stage: the stage's name.
            modules: training-only modules that no loss of the stage uses.
        """
        for module in modules:
            for parameter in module.parameters():
                parameter.grad = None
        for parameter in self._by_stage.get(stage, []):
            parameter.grad = None


class _Touched(torch.autograd.Function):
    """Returns a loss whose graph leads to some parameters; no gradient flows to them on this way.

    DDP takes a missing gradient for one of zero. Nothing is computed for a parameter, so a step with hundreds
    of them takes hardly longer.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None] * ctx.parameters


def parameters_with_grad(loss: Tensor) -> set[Tensor]:
    """Returns the parameters to which a backward of `loss` gives a gradient: the leaves of its graph.

    Nothing is computed.
    """
    reached: set[Tensor] = set()
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the end of a path, where a gradient is accumulated
            reached.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return reached
