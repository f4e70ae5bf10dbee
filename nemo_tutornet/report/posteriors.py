# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Teacher and student on one utterance: posteriors over time, spikes, and the weights of RKD's frames.

Legend: `N` samples, `T` frames, `V` labels with the blank last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nemo_tutornet.config import RKDConfig, TeacherConfig, TutorConfig
from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.distill.matching import ModelMatch, layer_lengths, match_models
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.transcribe import time_fastest
from nemo_tutornet.functional.frame_weighting import FRAME_WEIGHTING, frame_mask
from nemo_tutornet.functional.spikes import greedy_spikes, shared_spikes
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.layers import ENCODER
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.decode import decode
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets


@dataclass(frozen=True)
class Spike:
    """The beginning of a label of the best path.

    Attributes:
        label: the label.
        time: middle of its first frame, in seconds.
    """

    label: str
    time: float


@dataclass(frozen=True)
class Posteriors:
    """The posteriors of one model on one utterance.

    Attributes:
        labels: the labels, without the blank.
        probabilities: `[T, V]`, the blank last.
        frame: seconds from one frame to the next.
        spikes: of the best path, in order.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    frame: float
    spikes: tuple[Spike, ...]


@dataclass(frozen=True)
class FrameWeights:
    """The weights of RKD on one utterance.

    Attributes:
        kind: `nonblank`, `energy` or `uniform`.
        values: weight of each frame of the guided layer `[T]`, with mean 1.
        frame: seconds from one frame to the next.
    """

    kind: str
    values: np.ndarray
    frame: float


@dataclass(frozen=True)
class UtteranceFrames:
    """What teacher and student compute for one utterance.

    Attributes:
        student: the student's posteriors.
        teacher: the teacher's; None without a teacher, or where it has none.
        weights: the teacher's weights of the student's frames; None without a teacher.
    """

    student: Posteriors
    teacher: Posteriors | None
    weights: FrameWeights | None


class FrameReader:
    """Computes the posteriors of a student and its teacher.

    Args:
        student: archive of a NeMo CTC model.
        teacher: the teacher's section of a config; None for none.
        rkd: layers and frame weighting of RKD.

    Attributes:
        teacher: the restored teacher; None without one.
        note: why teacher and student cannot be compared frame by frame; None if they can.
        same_labels: whether teacher and student have the same labels, so that their spikes can be paired.

    Raises:
        TutorError: a file cannot be read or restored, or the teacher's class cannot be a teacher.
    """

    def __init__(self, student: NemoArchive, teacher: TeacherConfig | None, rkd: RKDConfig) -> None:
        model = restore_ctc(student)
        self._student = LiveTeacher(model, "fp32", rkd.guided_layer or ENCODER)
        self.teacher: LiveTeacher | None = None
        self.note: str | None = None
        self.same_labels = False
        self._match: ModelMatch | None = None
        if teacher is None:
            return
        # On a CPU, as everything here; bf16 would only be another teacher than the training's there.
        self.teacher = LiveTeacher.from_config(
            replace(teacher, precision="fp32"), rkd.hint_layer, "--teacher"
        )
        config = TutorConfig(rkd=replace(rkd, pairs=[]), pool_frames=True)
        try:
            self._match = match_models(model, self.teacher, config)
        except TutorError as error:
            self.note = str(error)
        self.same_labels = set(self._student.labels) == set(self.teacher.labels)

    def transcribe(
        self, rows: Sequence[Utterance], batch_size: int, adapted: bool, passes: int = 1
    ) -> tuple[list[str], float]:
        """Transcribes with the teacher as it is in the training, and measures the time.

        Args:
            rows: the utterances.
            batch_size: number of utterances that are transcribed together.
            adapted: whether to decode the adapter's posteriors; else the teacher decodes by itself.
            passes: how often the computing is timed; the fastest counts.

        Returns:
            The hypotheses in the order of the rows, and the computing time in seconds.

        Raises:
            TutorError: audio cannot be read, or a slot of an attention model's prompt has no value.
        """
        assert self.teacher is not None
        request = TargetRequest(posteriors=adapted, hypotheses=not adapted)
        self.teacher.check(request, None)
        hypotheses, seconds = [""] * len(rows), 0.0
        order = sorted(range(len(rows)), key=lambda i: rows[i].duration)
        # The first call includes warm-up, so it is not timed.
        self._decode(_batch([rows[i] for i in order[-1:]], self.teacher.sample_rate), request)
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            batch = _batch([rows[i] for i in indices], self.teacher.sample_rate)
            texts, fastest = time_fastest(partial(self._decode, batch, request), passes)
            seconds += fastest
            for i, text in zip(indices, texts, strict=True):
                hypotheses[i] = text
        return hypotheses, seconds

    def teacher_parameters(self, adapted: bool) -> int:
        """Returns the number of the teacher's parameters, with those of its adapter if `adapted`."""
        assert self.teacher is not None
        parameters = list(self.teacher.model.parameters())
        if adapted and self.teacher.adapter_head is not None:
            parameters += self.teacher.adapter_head.parameters()
        return sum(parameter.numel() for parameter in parameters)

    def _decode(self, batch: TrainingBatch, request: TargetRequest) -> list[str]:
        assert self.teacher is not None
        targets = self.teacher.targets(batch, request)
        found = targets.hypotheses
        if found is None:  # an adapter has the student's labels, so the student's decoding reads them
            log_probs = targets.log_probs
            assert log_probs is not None
            if self._match is not None:
                log_probs = self._match.in_students_order(log_probs)
            found = decode(self._student.model, log_probs, targets.lengths, log_probs)
        return [hypothesis.text for hypothesis in found]

    def read(self, row: Utterance) -> UtteranceFrames:
        """Runs both models on an utterance.

        Args:
            row: the utterance.

        Returns:
            Posteriors and weights.

        Raises:
            TutorError: the audio cannot be read.
        """
        student_targets = _run(self._student, row, TargetRequest(hidden=True, posteriors=True))
        student = posteriors_of(self._student, student_targets)
        if self.teacher is None:
            return UtteranceFrames(student, None, None)
        request = TargetRequest(hidden=True, posteriors=self.teacher.has_posteriors)
        targets = _run(self.teacher, row, request)
        teacher = posteriors_of(self.teacher, targets) if self.teacher.has_posteriors else None
        weights = None if self._match is None else _frame_weights(self._match, student_targets, targets)
        return UtteranceFrames(student, teacher, weights)


def read_posteriors(model: LiveTeacher, row: Utterance) -> Posteriors:
    """Runs a model on an utterance, and returns its posteriors and spikes.

    Args:
        model: a model with a CTC head.
        row: the utterance.

    Returns:
        The posteriors.

    Raises:
        TutorError: the audio cannot be read.
    """
    return posteriors_of(model, _run(model, row, TargetRequest(posteriors=True)))


def posteriors_of(model: LiveTeacher, targets: TeacherTargets) -> Posteriors:
    """Returns the posteriors of the first utterance of a batch, and their spikes.

    Args:
        model: gives the labels and the length of a frame.
        targets: the model's targets, with posteriors.

    Returns:
        The posteriors on the valid frames.
    """
    assert targets.log_probs is not None
    log_probs = targets.log_probs[0, : int(targets.lengths[0])].float().cpu()
    labels, frame = tuple(model.labels), model.encoder_layer.frame_ms / 1000
    spikes = tuple(Spike(labels[label], (t + 0.5) * frame) for label, t in greedy_spikes(log_probs))
    return Posteriors(labels, log_probs.exp().numpy(), frame, spikes)


def pair_spikes(teacher: Posteriors, student: Posteriors) -> list[tuple[Spike, Spike]]:
    """Pairs the spikes of the labels that both hypotheses share.

    Args:
        teacher: the teacher's posteriors.
        student: the student's.

    Returns:
        The teacher's and the student's spike of each pair, in order.
    """
    first, second = ([spike.label for spike in one.spikes] for one in (teacher, student))
    return [(teacher.spikes[i], student.spikes[j]) for i, j in shared_spikes(first, second)]


def spike_offsets(teacher: Posteriors, student: Posteriors) -> list[float]:
    """Returns the student's time minus the teacher's of each pair of spikes, in milliseconds."""
    return [1000 * (late.time - early.time) for early, late in pair_spikes(teacher, student)]


def _run(model: LiveTeacher, row: Utterance, request: TargetRequest) -> TeacherTargets:
    return model.targets(_batch([row], model.sample_rate), request)


def _batch(rows: Sequence[Utterance], sample_rate: int) -> TrainingBatch:
    signals = [torch.from_numpy(read_samples(row, sample_rate)) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    return TrainingBatch(padded, torch.tensor([len(signal) for signal in signals]))


def _frame_weights(match: ModelMatch, student: TeacherTargets, teacher: TeacherTargets) -> FrameWeights:
    """Computes the weights of RKD as `RKDLoss` does."""
    assert student.hidden is not None and teacher.hidden is not None
    frames = student.hidden.shape[2]
    hidden = match.align_hidden(teacher.hidden, teacher.lengths, frames)
    lengths = layer_lengths(student.lengths, match.student_encoder, match.guided, frames)
    log_probs: Tensor | None = teacher.log_probs
    if log_probs is not None:
        log_probs = match.align_posteriors(log_probs, teacher.lengths, frames, match.guided)
    mask = frame_mask(lengths, frames)
    weights = FRAME_WEIGHTING[match.frame_weighting](log_probs, hidden.float(), mask)
    return FrameWeights(
        match.frame_weighting, weights[0, : int(lengths[0])].numpy(), match.guided.frame_ms / 1000
    )
