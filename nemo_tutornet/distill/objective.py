# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The named losses of one training step: targets onto the student's frames and labels, then the pure
functions.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_tutornet.config import TutorConfig
from nemo_tutornet.distill.matching import ModelMatch, layer_lengths
from nemo_tutornet.distill.projections import Head, Projection
from nemo_tutornet.distill.student_capture import StudentOutputs
from nemo_tutornet.functional import losses
from nemo_tutornet.functional.schedule import Stage
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.teachers.targets import TeacherTargets

# CTC of log-probabilities `[B, S, V]` with lengths `[B]` against labels `[B, L]` with lengths `[B]`.
CTC = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def needs(stages: Sequence[Stage], pairing: ModelMatch) -> dict[str, bool]:
    """What some stages read of the teacher: its hint layer, its posteriors (for SKD or as frame weights), its
    hypotheses.
    """
    rkd = any(stage.uses("rkd") for stage in stages)
    return {
        "hidden": rkd,
        "posteriors": any(stage.uses("skd") for stage in stages)
        or (rkd and pairing.frame_weighting == "nonblank"),
        "hypotheses": any(stage.uses("pseudo") for stage in stages),
    }


class Objective:
    """Computes the teachers' losses of a stage; CTC of the student's output stays NeMo's.

    Args:
        config: the checked `tutor:` section.
        pairing: what is matched with what.
        others: the same for each of the other teachers.
        projection: f.
        heads: of the layers in `pairing.heads`.
        ctc_reduction: the student's, mirrored by SKD.
    """

    def __init__(
        self,
        config: TutorConfig,
        pairing: ModelMatch,
        others: Sequence[ModelMatch],
        projection: Projection,
        heads: Sequence[Head],
        ctc_reduction: str,
    ) -> None:
        self._skd = config.skd
        self._pairing, self._others = pairing, tuple(others)
        self._teacher_weights = [teacher.weight for teacher in (config.teacher, *config.other_teachers)]
        self._projection, self._heads = projection, tuple(heads)
        self._reduction = ctc_reduction

    def weights(self, stage: Stage) -> dict[str, float]:
        """The weight of each term; a head's losses count as those of the output do, times
        `tutor.skd.intermediate_weight`.
        """
        weights = dict(stage.weights)
        if self._heads and stage.uses("skd"):
            inside = {
                f"inter_{loss}": stage.weights.get(loss, 0.0) * self._skd.intermediate_weight
                for loss in ("ctc", "skd")
            }
            weights.update({loss: weight for loss, weight in inside.items() if weight > 0})
        return weights

    def terms(
        self, stage: Stage, student: StudentOutputs, teacher: TeacherTargets, ctc: CTC
    ) -> dict[str, Tensor]:
        """The stage's losses by name, not weighted yet; all but CTC of the student's output and
        pseudo-labels.
        """
        weights = self.weights(stage)
        with torch.autocast(student.lengths.device.type, enabled=False):
            terms = {}
            if stage.uses("rkd"):
                terms["rkd"] = self._rkd(student, teacher)
            if stage.uses("skd"):
                terms["skd"] = self._skd_loss(
                    student.log_probs,
                    student.lengths,
                    student.target_lengths,
                    teacher,
                    self._pairing.student_encoder,
                )
            if "inter_skd" in weights:
                terms.update(self._inter(student, teacher, ctc if "inter_ctc" in weights else None))
        return terms

    def _rkd(self, student: StudentOutputs, teacher: TeacherTargets) -> Tensor:
        pairing = self._pairing
        frames = student.guided.shape[2]
        assert teacher.hidden is not None
        hidden = pairing.hidden(teacher.hidden, teacher.lengths, frames)
        lengths = layer_lengths(student.lengths, pairing.student_encoder, pairing.guided, frames)
        mask = losses.frame_mask(lengths, frames) & (teacher.lengths > 0)[:, None]
        log_probs = teacher.log_probs
        if log_probs is not None:
            log_probs = pairing.posteriors(log_probs, teacher.lengths, frames, pairing.guided)
        weights = losses.FRAME_WEIGHTING[pairing.frame_weighting](log_probs, hidden, mask)
        return losses.rkd(self._projection(student.guided), hidden, weights, mask)

    def _skd_loss(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        target_lengths: Tensor,
        teacher: TeacherTargets,
        layer: Layer,
    ) -> Tensor:
        """SKD of posteriors `[B, S, V]` on the frames of a student's layer."""
        frames = log_probs.shape[1]
        mask = losses.frame_mask(lengths, frames)
        aligned = []
        for pairing, given in zip((self._pairing, *self._others), (teacher, *teacher.others), strict=True):
            assert given.log_probs is not None
            aligned.append(pairing.posteriors(given.log_probs, given.lengths, frames, layer))
            mask = mask & (given.lengths > 0)[:, None]
        posteriors = losses.mix_posteriors(aligned, self._teacher_weights)
        # Two of them divide by labels: where there is no transcript, by those that the teacher heard.
        if self._reduction in ("mean_volume", "mean"):
            target_lengths = torch.where(
                target_lengths > 0, target_lengths, losses.greedy_lengths(posteriors, mask)
            )
        if self._skd.match_window:
            match = losses.match_frames(log_probs, posteriors, mask, self._skd.match_window)
            log_probs = log_probs.gather(1, match[..., None].expand_as(log_probs))
        mask = losses.FRAME_SELECTION[self._skd.frames](posteriors, mask, self._skd.frames_around)
        distance = losses.DIVERGENCE[self._skd.divergence](log_probs, posteriors, mask, self._skd.temperature)
        return losses.reduce_like_ctc(distance, target_lengths, self._reduction)

    def _inter(self, student: StudentOutputs, teacher: TeacherTargets, ctc: CTC | None) -> dict[str, Tensor]:
        """The heads' SKD, and their CTC where it is asked for, each a mean over the heads (Inter-KD, arXiv
        2211.15075).
        """
        found: dict[str, list[Tensor]] = {}
        for head, layer, inside in zip(self._heads, self._pairing.heads, student.inside, strict=True):
            log_probs = head(inside)
            lengths = layer_lengths(student.lengths, self._pairing.student_encoder, layer, log_probs.shape[1])
            skd = self._skd_loss(log_probs, lengths, student.target_lengths, teacher, layer)
            found.setdefault("inter_skd", []).append(skd)
            if ctc is not None:
                found.setdefault("inter_ctc", []).append(
                    ctc(log_probs, lengths, student.transcripts, student.target_lengths)
                )
        return {name: torch.stack(terms).mean() for name, terms in found.items()}
