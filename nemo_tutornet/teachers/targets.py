# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a teacher gives for a batch of audio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """What a teacher heard in an utterance.

    Attributes:
        text: its words.
        confidence: 0 to 1 (`pseudo.confidence`), None for a transducer.
    """

    text: str
    confidence: float | None


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's outputs, on its own frames, detached.

    Legend: `B` utterances, `T` frames, `D` width of the hint layer, `V` labels with the blank last.

    Attributes:
        lengths: valid frames `[B]` of the encoder's output.
        log_probs: `[B, T, V]`, or None when nobody asked.
        hidden: the hint layer `[B, D, T']`, or None when nobody asked.
        hypotheses: one an utterance, or None when nobody asked.
        others: what each of the other teachers gave, on its own frames.
    """

    lengths: Tensor
    log_probs: Tensor | None = None
    hidden: Tensor | None = None
    hypotheses: list[Hypothesis] | None = None
    others: tuple[TeacherTargets, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor in it, those of the other teachers included."""
        yield from (value for value in vars(self).values() if isinstance(value, Tensor))
        for other in self.others:
            yield from other.tensors()
