# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Captures what the losses read of a student.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.distill.untranscribed import ctc_on_transcribed_only
from nemo_tutornet.nemo_io.layers import ENCODER, Capture


class StudentCapture:
    """Captures what the losses read of a student; rows without a transcript do not count in its CTC
    meanwhile.

    Args:
        student: a NeMo CTC model.
        pairing: names the layers.
        reduction: the student's `ctc_reduction`.
        batch: signal, its lengths, transcripts and theirs.
    """

    def __init__(self, student: Any, pairing: ModelMatch, reduction: str, batch: Sequence[Tensor]) -> None:
        self._student, self._pairing, self._reduction, self._batch = student, pairing, reduction, batch
        self._stack = ExitStack()

    def __enter__(self) -> StudentCapture:
        enter = self._stack.enter_context
        enter(ctc_on_transcribed_only(self._student.loss, self._reduction))
        self._encoder, self._decoder = (
            enter(Capture(self._student, ENCODER)),
            enter(Capture(self._student, "decoder")),
        )
        self._guided = enter(Capture(self._student, self._pairing.guided.path))
        self._inside = [enter(Capture(self._student, layer.path)) for layer in self._pairing.heads]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def outputs(self) -> StudentOutputs:
        """What the student gave, once it has run."""
        return StudentOutputs(
            log_probs=self._decoder.output,
            lengths=self._encoder.output[1],
            guided=self._guided.tensor(self._pairing.guided.time_axis),
            inside=tuple(
                capture.tensor(layer.time_axis)
                for capture, layer in zip(self._inside, self._pairing.heads, strict=True)
            ),
            transcripts=self._batch[2],
            target_lengths=self._batch[3],
        )

    def ctc(self, log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
        """The student's own CTC loss."""
        return self._student.loss(
            log_probs=log_probs, targets=labels, input_lengths=lengths, target_lengths=label_lengths
        )


@dataclass(frozen=True)
class StudentOutputs:
    """What the student gave for a batch, and what it should have given.

    Attributes:
        log_probs: `[B, S, V]`.
        lengths: valid frames `[B]` of the encoder's output.
        guided: the guided layer `[B, D, S']`.
        inside: the layers with heads, each `[B, D, S']`.
        transcripts: labels `[B, L]`.
        target_lengths: labels of each transcript `[B]`, 0 where there is none.
    """

    log_probs: Tensor
    lengths: Tensor
    guided: Tensor
    inside: tuple[Tensor, ...]
    transcripts: Tensor
    target_lengths: Tensor
