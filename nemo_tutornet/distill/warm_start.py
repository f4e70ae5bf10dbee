# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoder's warm start: after RKD the student's decoder is the teacher's after the projection (ours).

The projection f is a linear 1x1 convolution, and so is the teacher's decoder, so that the two are one again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.nemo_io.restore import pointwise_decoder
from nemo_tutornet.teachers.targets import Teacher


class DecoderWarmStart:
    """Composes a student's decoder from its teacher's, while no loss has trained it.

    Args:
        match: says whether the decoder can be composed, and the order of the labels.
        teacher: the teacher.
        projection: f, trained by RKD.
        wanted: `tutor.rkd.warm_start_decoder`.
    """

    def __init__(self, match: ModelMatch, teacher: Teacher, projection: nn.Conv1d, wanted: bool) -> None:
        self._match, self._teacher, self._projection = match, teacher, projection
        self._possible = wanted and match.no_warm_start is None

    def apply(self, decoder: Any) -> None:
        """Overwrites a NeMo CTC decoder with the composed one; does nothing where there is none."""
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
