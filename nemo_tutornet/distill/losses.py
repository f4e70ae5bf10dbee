# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses: one class each on a pure function of `functional.losses`, and one table.

To add a loss, write a class here and enter it in `LOSSES`; docs/architecture.md shows how.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_tutornet.config import RKD_REDUCTIONS, TutorConfig
from nemo_tutornet.distill.consistency import consistency_loss, is_consistent
from nemo_tutornet.distill.matching import LayerPair, ModelMatch, layer_lengths
from nemo_tutornet.distill.projections import Head, Projection, TrainingOnlyConv1d
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.distill.student_capture import StudentOutputs
from nemo_tutornet.functional import frame_weighting, losses
from nemo_tutornet.functional.alignment import teacher_frames
from nemo_tutornet.functional.consistency import twice, warmup_factor
from nemo_tutornet.functional.ranks import mean_over_ranks
from nemo_tutornet.functional.schedule import Stage
from nemo_tutornet.functional.skd_alignment import pool_student, skd_occurrences
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets


@dataclass(frozen=True)
class LossContext:
    """What a loss is built from.

    Attributes:
        config: the checked `tutor:` section.
        match: the student matched with its teacher.
        other_matches: the student matched with each of the other teachers.
        outputs: outputs `V` of the student.
        ctc_reduction: the student's, which SKD mirrors.
        pseudo_labels: turns hypotheses into the student's labels; None where no loss needs that.
    """

    config: TutorConfig
    match: ModelMatch
    other_matches: tuple[ModelMatch, ...]
    outputs: int
    ctc_reduction: str
    pseudo_labels: PseudoLabels | None = None


class Loss:
    """One term of the objective.

    A subclass states its name and what it reads of the teacher, and computes its value when it is called.

    Args:
        context: what it is built from.

    Attributes:
        name: its key in `stages[].weights`, and, after `train_`, in the log.
        trains_decoder: the loss gives the student's decoder a gradient.
        request: what it reads of the teacher.
        diagnostics: scalars of the last batch that are logged beside the loss, by name; no part of it.
        modules: what trains with it and is never exported, by the names under which a `.ckpt` stores them.
    """

    name: ClassVar[str]
    trains_decoder: ClassVar[bool] = True
    request: TargetRequest = TargetRequest()

    def __init__(self, context: LossContext) -> None:
        self.context = context
        self.modules: dict[str, TrainingOnlyConv1d] = {}
        self.diagnostics: dict[str, Tensor] = {}

    def weight(self, stage: Stage) -> float:
        """Returns the loss's weight in a stage, 0 where it does not count."""
        return stage.weights.get(self.name, 0.0)

    def share(self, steps: int) -> float:
        """Returns the share of the weight that counts; 1 for most losses.

        Args:
            steps: optimizer steps since the first stage with consistency began.
        """
        return 1.0

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Returns the loss of a batch, a scalar, not weighted.

        Args:
            student: the student's outputs.
            targets: the teacher's; None where no loss of the stage requests any.
        """
        raise NotImplementedError


class CTCLoss(Loss):
    """CTC against the transcripts, as NeMo computed it (Graves et al., 2006)."""

    name = "ctc"

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Returns NeMo's value."""
        assert student.ctc is not None, "a stage with CTC runs NeMo's training step"
        return student.ctc


class RKDLoss(Loss):
    """Representation-level distillation with frame weighting (TutorNet's RKD, arXiv 2008.00671)."""

    name = "rkd"
    trains_decoder = False

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.request = TargetRequest(hidden=True, posteriors=context.match.frame_weighting == "nonblank")
        pairs = context.match.pairs
        self.projections = [Projection(pair.guided.width, pair.hint.width) for pair in pairs]
        further = [f"projection {pair.guided.path} to {pair.hint.path}" for pair in pairs[1:]]
        self.modules = dict(zip(["projection", *further], self.projections, strict=True))
        self.reduction = context.config.rkd.reduction or RKD_REDUCTIONS[0]

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Compares each projected guided layer with its hint layer; returns the mean over the pairs.

        `rkd.reduction` says how the frames are summed. `rkd_r2` among the diagnostics is the mean R^2.
        """
        assert targets is not None and targets.hidden is not None
        guided, hidden = (student.guided, *student.further_guided), (targets.hidden, *targets.further_hidden)
        values = [
            self._of_pair(*pair, student, targets)
            for pair in zip(self.context.match.pairs, self.projections, guided, hidden, strict=True)
        ]
        terms, explained = (torch.stack(part) for part in zip(*values, strict=True))
        self.diagnostics = {"rkd_r2": explained.mean().detach()}
        return terms.mean()

    def _of_pair(
        self,
        pair: LayerPair,
        projection: Projection,
        guided: Tensor,
        hidden: Tensor,
        student: StudentOutputs,
        targets: TeacherTargets,
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss of a pair of layers, and its R^2."""
        match, frames = self.context.match, guided.shape[2]
        hidden = match.align_hidden(hidden, targets.lengths, frames, pair)
        lengths = layer_lengths(student.lengths, match.student_encoder, pair.guided, frames)
        mask = frame_weighting.frame_mask(lengths, frames) & (targets.lengths > 0)[:, None]
        blank = None
        if match.frame_weighting == "nonblank":
            assert targets.log_probs is not None, "the loss requests them"
            blank = match.align_blank(targets.log_probs, targets.lengths, frames, pair.guided)
        weights = frame_weighting.FRAME_WEIGHTING[match.frame_weighting](blank, hidden, mask)
        errors = losses.rkd_of_utterances(projection(guided), hidden, weights, mask)
        explained = losses.explained_variance(errors, hidden, weights, mask)
        if self.reduction == "frame_mean":
            return losses.mean_over_frames(errors, mean_over_ranks(mask.sum())), explained
        loss = losses.reduce_over_time(
            errors,
            mask.sum(dim=1),
            pair.guided.frame_ms / 1000,
            student.target_lengths,
            self.context.ctc_reduction,
            mean_over_ranks,
        )
        return loss, explained


class SKDLoss(Loss):
    """Softmax-level distillation (TutorNet's SKD, arXiv 2008.00671)."""

    name = "skd"

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.request = TargetRequest(posteriors=True, small_posteriors=context.config.skd.temperature > 1)

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Compares the posteriors of the student's output with the teachers'."""
        assert targets is not None and student.log_probs is not None
        encoder = self.context.match.student_encoder
        return self.divergence(student.log_probs, student.lengths, encoder, student, targets)

    def divergence(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        layer: Layer,
        student: StudentOutputs,
        targets: TeacherTargets,
    ) -> Tensor:
        """Returns SKD of the log-probabilities `[B, S, V]` that a layer of the student gives.

        Args:
            log_probs: on the layer's own frames.
            lengths: valid frames `[B]` of them.
            layer: of the student.
            student: gives the transcripts' lengths.
            targets: the teachers' posteriors.
        """
        skd, frames = self.context.config.skd, log_probs.shape[1]
        mask = frame_weighting.frame_mask(lengths, frames)
        if skd.alignment != "frames":
            return self._without_repeats(
                log_probs, mask & (targets.lengths > 0)[:, None], layer, student, targets
            )
        aligned = []
        matches = (self.context.match, *self.context.other_matches)
        for match, given in zip(matches, (targets, *targets.others), strict=True):
            assert given.log_probs is not None
            aligned.append(match.align_posteriors(given.log_probs, given.lengths, frames, layer))
            mask = mask & (given.lengths > 0)[:, None]
        teachers = (self.context.config.teacher, *self.context.config.other_teachers)
        posteriors = losses.mix_posteriors(aligned, [teacher.weight for teacher in teachers])
        target_lengths = self._target_lengths(student, posteriors, mask)
        if skd.match_window:
            matched = frame_weighting.match_frames(log_probs, posteriors, mask, skd.match_window)
            log_probs = log_probs.gather(1, matched[..., None].expand_as(log_probs))
        mask = frame_weighting.FRAME_SELECTION[skd.frames](posteriors, mask, skd.frames_around)
        distance = losses.DIVERGENCE[skd.divergence](log_probs, posteriors, mask, skd.temperature)
        return losses.reduce_like_ctc(distance, target_lengths, self.context.ctc_reduction)

    def _without_repeats(
        self, log_probs: Tensor, mask: Tensor, layer: Layer, student: StudentOutputs, targets: TeacherTargets
    ) -> Tensor:
        """Compares on the teacher's frames, or on the spans around its labels (`tutor.skd.alignment`)."""
        assert targets.log_probs is not None
        skd, match = self.context.config.skd, self.context.match
        posteriors = match.in_students_order(targets.log_probs)
        frames = posteriors.shape[1]
        of_teacher = frame_weighting.frame_mask(targets.lengths, frames)
        ratio = layer.frame_ms / match.teacher_encoder.frame_ms
        index = teacher_frames(log_probs.shape[1], targets.lengths, ratio)
        if skd.alignment == "occurrences":
            distance = skd_occurrences(log_probs, posteriors, index, mask, of_teacher)
        else:
            pooled, found = pool_student(log_probs, index, mask, frames)
            both = found & of_teacher
            distance = losses.DIVERGENCE[skd.divergence](pooled, posteriors, both, skd.temperature)
        target_lengths = self._target_lengths(student, posteriors, of_teacher)
        return losses.reduce_like_ctc(distance, target_lengths, self.context.ctc_reduction)

    def _target_lengths(self, student: StudentOutputs, posteriors: Tensor, mask: Tensor) -> Tensor:
        """The lengths `[B]` by which `mean` and `mean_volume` divide: the transcript's, and without a
        transcript that of the teacher's greedy hypothesis.
        """
        if self.context.ctc_reduction not in ("mean_volume", "mean"):
            return student.target_lengths
        hypothesis_lengths = frame_weighting.greedy_lengths(posteriors, mask)
        return torch.where(student.target_lengths > 0, student.target_lengths, hypothesis_lengths)


class IntermediateSKDLoss(SKDLoss):
    """SKD of the heads at intermediate layers, averaged over the heads (Inter-KD, arXiv 2211.15075)."""

    name = "inter_skd"
    trains_decoder = False

    def __init__(self, context: LossContext) -> None:
        super().__init__(context)
        self.heads = [Head(layer.width, context.outputs) for layer in context.match.heads]
        paths = [layer.path for layer in context.match.heads]
        self.modules = {f"head {path}": head for path, head in zip(paths, self.heads, strict=True)}

    def weight(self, stage: Stage) -> float:
        """Follows SKD's weight, times `tutor.skd.intermediate_weight`."""
        skd = self.context.config.skd
        return stage.weights.get("skd", 0.0) * skd.intermediate_weight if self.context.match.heads else 0.0

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Compares the posteriors of each head with the teachers'."""
        assert targets is not None
        values = []
        for log_probs, layer in zip(student.intermediate_log_probs, self.context.match.heads, strict=True):
            lengths = _head_lengths(self.context.match, student, layer, log_probs)
            values.append(self.divergence(log_probs, lengths, layer, student, targets))
        return torch.stack(values).mean()


class IntermediateCTCLoss(Loss):
    """CTC of the heads at intermediate layers, averaged over the heads (Inter-KD, arXiv 2211.15075)."""

    name = "inter_ctc"
    trains_decoder = False

    def weight(self, stage: Stage) -> float:
        """Follows CTC's weight in a stage with SKD, times `tutor.skd.intermediate_weight`."""
        if not (self.context.match.heads and stage.uses("skd")):
            return 0.0
        return stage.weights.get("ctc", 0.0) * self.context.config.skd.intermediate_weight

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Computes CTC of each head against the transcripts."""
        values = []
        for log_probs, layer in zip(student.intermediate_log_probs, self.context.match.heads, strict=True):
            lengths = _head_lengths(self.context.match, student, layer, log_probs)
            values.append(student.ctc_loss(log_probs, lengths, student.transcripts, student.target_lengths))
        return torch.stack(values).mean()


class PseudoLabelLoss(Loss):
    """CTC against the teacher's hypotheses (pseudo-labels, filtered as in Distil-Whisper, arXiv
    2311.00430).
    """

    name = "pseudo"
    request = TargetRequest(hypotheses=True)

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Computes CTC against the hypotheses that pass the filters."""
        assert targets is not None and targets.hypotheses is not None
        assert self.context.pseudo_labels is not None and student.log_probs is not None
        rows = len(student.lengths) // student.views  # both views have the same labels, which count once
        labels, lengths = self.context.pseudo_labels.targets(
            targets.hypotheses[:rows],
            student.transcripts[:rows],
            student.target_lengths[:rows],
            student.lengths[:rows],
        )
        if student.views > 1:
            labels, lengths = twice(labels), twice(lengths)
        return student.ctc_loss(student.log_probs.float(), student.lengths, labels, lengths)


class ConsistencyLoss(Loss):
    """Consistency of two augmented views of each utterance (CR-CTC, arXiv 2410.05101)."""

    name = "consistency"

    def weight(self, stage: Stage) -> float:
        """Is `tutor.consistency.weight` in a stage that trains the decoder."""
        config = self.context.config.consistency
        return config.weight if is_consistent(config, stage) else 0.0

    def share(self, steps: int) -> float:
        """Grows from 0 to 1 in `tutor.consistency.warmup` steps."""
        return warmup_factor(steps, self.context.config.consistency.warmup)

    def __call__(self, student: StudentOutputs, targets: TeacherTargets | None) -> Tensor:
        """Compares the posteriors of both views."""
        assert student.log_probs is not None
        return consistency_loss(
            student.log_probs, student.lengths, student.target_lengths, self.context.ctc_reduction
        )


def _head_lengths(match: ModelMatch, student: StudentOutputs, layer: Layer, log_probs: Tensor) -> Tensor:
    return layer_lengths(student.lengths, match.student_encoder, layer, log_probs.shape[1])


# The losses by the names of `stages[].weights`, in the order in which they are summed.
LOSSES: dict[str, type[Loss]] = {
    "rkd": RKDLoss,
    "skd": SKDLoss,
    "inter_skd": IntermediateSKDLoss,
    "inter_ctc": IntermediateCTCLoss,
    "pseudo": PseudoLabelLoss,
    "ctc": CTCLoss,
    "consistency": ConsistencyLoss,
}
# Their weights follow from those of SKD and CTC, or are keys of their own, and no stage names them.
DERIVED = ("inter_skd", "inter_ctc", "consistency")
