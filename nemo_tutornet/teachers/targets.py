# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a teacher is (`Teacher`), what can be asked of it (`TargetRequest`), and its answer
(`TeacherTargets`).

Legend: `B` utterances, `T` frames of the teacher, `D` width of the hint layer, `V` labels with the blank
last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.functional.consistency import twice
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.teachers.adapter import AdapterInfo


@dataclass(frozen=True)
class TargetRequest:
    """The targets that some losses read. A teacher computes nothing else.

    Requests are combined with `|`, and a request for nothing is false.

    Attributes:
        hidden: the hint layer.
        posteriors: the log-probabilities of the CTC head.
        hypotheses: the decoded texts.
        small_posteriors: posteriors of every size, which a temperature above 1 raises. A cache of many labels
            drops the smallest ones otherwise.

    Example:
        >>> TargetRequest(hidden=True) | TargetRequest(posteriors=True)
        TargetRequest(hidden=True, posteriors=True, hypotheses=False, small_posteriors=False)
        >>> bool(TargetRequest())
        False
    """

    hidden: bool = False
    posteriors: bool = False
    hypotheses: bool = False
    small_posteriors: bool = False

    def __or__(self, other: TargetRequest) -> TargetRequest:
        return TargetRequest(
            self.hidden or other.hidden,
            self.posteriors or other.posteriors,
            self.hypotheses or other.hypotheses,
            self.small_posteriors or other.small_posteriors,
        )

    def __bool__(self) -> bool:
        return self.hidden or self.posteriors or self.hypotheses


@dataclass(frozen=True)
class Hypothesis:
    """A teacher's transcript of an utterance.

    Attributes:
        text: the transcript.
        confidence: 0 to 1 (`functional.frame_weighting.confidence`); None for a teacher without a CTC head.
    """

    text: str
    confidence: float | None


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's outputs for a batch, on the teacher's own frames, detached.

    Attributes:
        lengths: valid frames `[B]` of the encoder's output.
        log_probs: log-probabilities `[B, T, V]`; None where they were not requested.
        hidden: the hint layer `[B, D, T']`; None where it was not requested.
        hypotheses: one for each utterance; None where they were not requested.
        further_hidden: the further hint layers, each `[B, D, T']`; none where `hidden` was not requested.
        others: the targets of each of the other teachers, on their own frames.
    """

    lengths: Tensor
    log_probs: Tensor | None = None
    hidden: Tensor | None = None
    hypotheses: list[Hypothesis] | None = None
    further_hidden: tuple[Tensor, ...] = ()
    others: tuple[TeacherTargets, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        """Yields every tensor, those of the other teachers included."""
        yield from (value for value in vars(self).values() if isinstance(value, Tensor))
        yield from self.further_hidden
        for other in self.others:
            yield from other.tensors()

    def for_two_views(self) -> TeacherTargets:
        """Returns the targets for a batch in which each row is there twice, `[2 B, ...]`."""
        return TeacherTargets(
            lengths=twice(self.lengths),
            log_probs=None if self.log_probs is None else twice(self.log_probs),
            hidden=None if self.hidden is None else twice(self.hidden),
            hypotheses=None if self.hypotheses is None else 2 * self.hypotheses,
            further_hidden=tuple(map(twice, self.further_hidden)),
            others=tuple(other.for_two_views() for other in self.others),
        )


class Teacher(Protocol):
    """A source of targets. `LiveTeacher` runs a model; `CachedTeacher` reads what one gave before.

    Attributes:
        from_cache: the targets are looked up by utterance, so batches must say which utterances they hold.
        encoder_layer: the layer with the frames of the posteriors: the encoder's output, or the adapter's.
        hint_layer: the layer that RKD matches.
        further_hint_layers: the hint layers of `tutor.rkd.pairs`.
    """

    from_cache: bool
    encoder_layer: Layer
    hint_layer: Layer
    further_hint_layers: tuple[Layer, ...]

    def add_hint_layers(self, paths: Sequence[str]) -> None:
        """Adds the hint layers of `tutor.rkd.pairs`; raises a `TutorError` where one is not there."""

    @property
    def sha256(self) -> str | None:
        """sha256 of the teacher's file; None where it was a folder."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio that the teacher takes."""

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the posteriors, without the blank, which is last; none without a CTC
        head.
        """

    @property
    def has_posteriors(self) -> bool:
        """False for a teacher with neither a CTC head nor an adapter: a transducer or an attention model."""

    @property
    def adapter(self) -> AdapterInfo | None:
        """What the adapter is; None for a teacher without one."""

    @property
    def ends_in_layer_norm(self) -> bool:
        """True where the hint layer's output is layer-normalised, so that its energy is nearly constant."""

    def frames_of(self, seconds: float) -> int:
        """Returns the number of frames of `encoder_layer` for one of `layers.CHECKED_SECONDS`."""

    def targets(self, batch: TrainingBatch, request: TargetRequest) -> TeacherTargets:
        """Returns the requested targets of a batch, on the device of its audio."""

    def ctc_projection(self) -> nn.Conv1d | None:
        """Returns the CTC head where it is a single 1x1 convolution, for the decoder's warm start."""

    def check(self, request: TargetRequest, train_data: UtteranceResolver | None) -> None:
        """Refuses a training that the teacher cannot serve.

        Args:
            request: what all stages together read.
            train_data: the training set's utterances; None where they are not known.

        Raises:
            TutorError: says what is missing.
        """

    def describe(self) -> dict[str, str]:
        """Returns what the teacher is, in words, for `nemo-tutornet check`."""
