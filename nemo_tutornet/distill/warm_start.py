# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoder's warm start."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def compose_decoder(
    teacher: nn.Conv1d, projection: nn.Conv1d, order: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """The student's decoder after RKD (ours): teacher_decoder o f, a 1x1 convolution again because f is one.

        W = W_T W_f        b = W_T b_f + b_T

    Args:
        teacher: decoder of the teacher, `D_T` to `V`.
        projection: f, `D_S` to `D_T`.
        order: teacher output of each student output, None where equal.

    Returns:
        Weight `[V, D_S, 1]` and bias `[V]`, rows in the student's order.
    """
    with torch.no_grad():
        device = projection.weight.device  # the teacher may not have followed the student to its device yet
        outer = teacher.weight[..., 0].to(device, torch.float64)
        weight = outer @ projection.weight.double()[..., 0]
        assert projection.bias is not None, "f has a bias"
        bias = outer @ projection.bias.double()
        if teacher.bias is not None:
            bias = bias + teacher.bias.to(device, torch.float64)
        if order is not None:
            weight, bias = weight[list(order)], bias[list(order)]
        return weight[..., None].to(projection.weight.dtype), bias.to(projection.weight.dtype)
