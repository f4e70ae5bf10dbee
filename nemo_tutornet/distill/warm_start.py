# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Warm start: after RKD, the student's decoder is the projection followed by the teacher's decoder (ours).

The projection f and the teacher's decoder are both linear 1x1 convolutions, so their composition is one, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.nemo_io.restore import pointwise_decoder
from nemo_tutornet.teachers.targets import Teacher


class DecoderWarmStart:
    """Initialisation of a student's decoder from its teacher's, while no loss has trained the decoder.

    Args:
        match: contains the order of the labels, and whether the decoder can be composed.
        teacher: the teacher, live or cached.
        projection: f, trained by RKD.
        wanted: value of `tutor.rkd.warm_start_decoder`.
    """

    def __init__(self, match: ModelMatch, teacher: Teacher, projection: nn.Conv1d, wanted: bool) -> None:
        self._match, self._teacher, self._projection = match, teacher, projection
        self._possible = wanted and match.no_warm_start is None

    @property
    def is_possible(self) -> bool:
        """Whether the decoder is composed: it is wanted, and the teacher's decoder and labels allow it."""
        return self._possible

    def apply(self, decoder: Any) -> None:
        """Overwrites a NeMo CTC decoder with the composed one, if that is possible and wanted."""
        if not self._possible:
            return
        student, teacher = pointwise_decoder(decoder), self._teacher.ctc_projection()
        assert student is not None and teacher is not None and student.bias is not None
        weight, bias = compose_decoder(teacher, self._projection, self._match.label_order)
        with torch.no_grad():
            student.weight.copy_(weight)
            student.bias.copy_(bias)


def compose_decoder(
    teacher: nn.Conv1d, projection: nn.Conv1d, order: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """Composes the projection f and the teacher's decoder into the student's decoder after RKD (ours).

    The result, teacher_decoder o f, is a 1x1 convolution because f is one.

        W = W_T W_f        b = W_T b_f + b_T

    Args:
        teacher: decoder of the teacher, `D_T` to `V`.
        projection: f, `D_S` to `D_T`.
        order: index of the teacher's output for each of the student's outputs; None if the orders are equal.

    Returns:
        Weight `[V, D_S, 1]` and bias `[V]`, rows in the student's order.
    """
    with torch.no_grad():
        device = projection.weight.device  # the teacher may still be on another device than the student
        outer = teacher.weight[..., 0].to(device, torch.float64)
        weight = outer @ projection.weight.double()[..., 0]
        assert projection.bias is not None, "f has a bias"
        bias = outer @ projection.bias.double()
        if teacher.bias is not None:
            bias = bias + teacher.bias.to(device, torch.float64)
        if order is not None:
            weight, bias = weight[list(order)], bias[list(order)]
        return weight[..., None].to(projection.weight.dtype), bias.to(projection.weight.dtype)
