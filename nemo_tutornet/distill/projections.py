# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Modules that train with a student and are never exported.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class TrainingOnlyConv1d(nn.Conv1d):
    """A 1x1 convolution used during training only; never part of an exported student.

    The student registers it, so that the optimizer, DDP and device moves see it. It stays out of
    `state_dict()`, so whatever writes or loads a student sees the keys of the stock model and no others. The
    `.ckpt` stores its parameters beside the state (`TutorMixin.on_save_checkpoint`).

    Args:
        width_in: channels of the layer that it reads.
        width_out: channels of its output.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, kernel_size=1)

    def forward(self, layer: Tensor) -> Tensor:
        """Maps `[B, width_in, S]` to `[B, width_out, S]`, in fp32 whatever the student trains in."""
        assert self.bias is not None
        return F.conv1d(layer.float(), self.weight.float(), self.bias.float())

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        """Saves nothing: see the class."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Loads nothing: see the class."""


class Projection(TrainingOnlyConv1d):
    """f, the learned linear map from the guided layer's width `D_S` to the hint layer's `D_T` (TutorNet)."""


class Head(TrainingOnlyConv1d):
    """Posteriors from an intermediate layer of the student (Inter-KD, arXiv 2211.15075)."""

    def forward(self, layer: Tensor) -> Tensor:
        """Maps the layer `[B, D, S]` to log-probabilities `[B, S, V]`, in fp32."""
        return super().forward(layer).transpose(1, 2).log_softmax(dim=-1)
