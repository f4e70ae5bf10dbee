# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Captures the layers of a student that the losses read.

Legend: `B` utterances, `S` frames of the student, `L` labels, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.matching import ModelMatch
from nemo_tutornet.distill.projections import Head
from nemo_tutornet.distill.untranscribed import ctc_on_transcribed_only
from nemo_tutornet.nemo_io.layers import ENCODER, Capture

# CTC of log-probabilities `[B, S, V]` with lengths `[B]` against labels `[B, L]` with lengths `[B]`.
CTC = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StudentOutputs:
    """A student's outputs for a batch, and the transcripts.

    Attributes:
        log_probs: of the student's output `[B, S, V]`; None in a stage that does not train the decoder.
        lengths: valid frames `[B]` of the encoder's output.
        guided: the guided layer `[B, D, S']`.
        intermediate: the layers with heads, each `[B, D, S']`.
        transcripts: labels `[B, L]`.
        target_lengths: labels of each transcript `[B]`, 0 where there is none.
        ctc_loss: the student's own CTC loss.
        ctc: its value for this batch, as NeMo computed it; None in a stage without CTC.
        heads: of the intermediate layers.
        further_guided: the guided layers of the further pairs, each `[B, D, S']`.
        views: 2 where the rows are two views of each utterance, the second after the first; else 1.
    """

    log_probs: Tensor | None
    lengths: Tensor
    guided: Tensor
    intermediate: tuple[Tensor, ...]
    transcripts: Tensor
    target_lengths: Tensor
    ctc_loss: CTC
    ctc: Tensor | None = None
    heads: tuple[Head, ...] = ()
    further_guided: tuple[Tensor, ...] = ()
    views: int = 1

    @cached_property
    def intermediate_log_probs(self) -> tuple[Tensor, ...]:
        """Log-probabilities of each head `[B, S', V]`, computed once."""
        return tuple(head(layer) for head, layer in zip(self.heads, self.intermediate, strict=True))


class _DecoderReached(Exception):
    """Raised before the decoder runs, to skip it."""


def run_without_decoder(student: Any, batch: TrainingBatch) -> None:
    """Runs NeMo's forward of a student up to its decoder, for a stage in which nothing reads posteriors.

    Args:
        student: a NeMo CTC model.
        batch: a batch of the training set.
    """
    hook = student.decoder.register_forward_pre_hook(_stop)
    try:
        with suppress(_DecoderReached):
            student.forward(input_signal=batch.signal, input_signal_length=batch.signal_lengths)
    finally:
        hook.remove()


def _stop(module: Any, args: Any) -> None:
    raise _DecoderReached


class StudentCapture:
    """A context in which a student runs once on a batch; afterwards `outputs` has what the losses read.

    Inside, rows without a transcript do not count in the student's CTC loss.

    Args:
        student: a NeMo CTC model.
        match: names the layers.
        heads: of the intermediate layers.
        reduction: the student's `ctc_reduction`.
        batch: the batch on which the student runs.
        views: 2 where the student sees two views of each row, whose transcripts `batch` has both; else 1.
    """

    def __init__(
        self,
        student: Any,
        match: ModelMatch,
        heads: Sequence[Head],
        reduction: str,
        batch: TrainingBatch,
        views: int = 1,
    ) -> None:
        self._student, self._match, self.batch = student, match, batch
        self._heads, self._reduction = tuple(heads), reduction
        self._stack = ExitStack()
        self.views = views

    def __enter__(self) -> StudentCapture:
        def capture(path: str) -> Capture:
            return self._stack.enter_context(Capture(self._student, path))

        self._stack.enter_context(ctc_on_transcribed_only(self._student.loss, self._reduction))
        self._encoder, self._decoder = capture(ENCODER), capture("decoder")
        self._guided = [capture(pair.guided.path) for pair in self._match.pairs]
        self._intermediate = [capture(layer.path) for layer in self._match.heads]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def outputs(self, ctc: Tensor | None = None) -> StudentOutputs:
        """Returns the student's outputs, once it has run.

        Args:
            ctc: NeMo's CTC loss of the batch, in a stage that uses it.
        """
        layers = zip(self._intermediate, self._match.heads, strict=True)
        pairs = zip(self._guided, self._match.pairs, strict=True)
        guided, *further_guided = (captured.tensor(pair.guided.time_axis) for captured, pair in pairs)
        return StudentOutputs(
            log_probs=self._decoder.output,
            lengths=self._encoder.output[1],
            guided=guided,
            intermediate=tuple(captured.tensor(layer.time_axis) for captured, layer in layers),
            transcripts=self.batch.transcripts,
            target_lengths=self.batch.transcript_lengths,
            ctc_loss=self.ctc_loss,
            ctc=ctc,
            heads=self._heads,
            further_guided=tuple(further_guided),
            views=self.views,
        )

    def ctc_loss(self, log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
        """Computes the student's own CTC loss.

        Args:
            log_probs: `[B, S, V]`.
            lengths: valid frames `[B]`.
            labels: `[B, L]`.
            label_lengths: `[B]`.
        """
        return self._student.loss(
            log_probs=log_probs, targets=labels, input_lengths=lengths, target_lengths=label_lengths
        )
