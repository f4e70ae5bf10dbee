# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The named losses of one training step: targets onto the student's frames and labels, then the pure functions.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_tutornet import losses
from nemo_tutornet.capture import Layer
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.pairing import Pairing, layer_lengths
from nemo_tutornet.schedule import Stage
from nemo_tutornet.targets import TeacherTargets

# CTC of log-probabilities `[B, S, V]` with lengths `[B]` against labels `[B, L]` with lengths `[B]`.
CTC = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class TrainingOnly(nn.Conv1d):
    """A linear 1x1 convolution that a student has in training and loses when it leaves.

    A registered module of the student, so that the optimizer, DDP and device moves see it; but it keeps itself out of
    `state_dict()`, so that whatever writes or loads a student sees the stock model's keys and no others. The `.ckpt`
    carries it beside the state (`TutorMixin.on_save_checkpoint`).
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, kernel_size=1)

    def forward(self, layer: Tensor) -> Tensor:
        """Maps `[B, width_in, S]` to `[B, width_out, S]`, in fp32 whatever the student trains in."""
        assert self.bias is not None
        return F.conv1d(layer.float(), self.weight.float(), self.bias.float())

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        """Nothing: see the class."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Nothing: see the class."""


class Projection(TrainingOnly):
    """f, the learned linear map from the guided layer's width `D_S` to the hint layer's `D_T` (student side; TutorNet)."""


class Head(TrainingOnly):
    """Posteriors from a layer inside the student (Inter-KD, arXiv 2211.15075)."""

    def forward(self, layer: Tensor) -> Tensor:
        """Log-probabilities `[B, S, V]` from the layer `[B, D, S]`, in fp32."""
        return super().forward(layer).transpose(1, 2).log_softmax(dim=-1)


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
    inside: Tuple[Tensor, ...]
    transcripts: Tensor
    target_lengths: Tensor


def needs(stages: Sequence[Stage], pairing: Pairing) -> Dict[str, bool]:
    """What some stages read of the teacher: its hint layer, its posteriors (for SKD or as frame weights), its hypotheses."""
    rkd = any(stage.uses("rkd") for stage in stages)
    return {
        "hidden": rkd,
        "posteriors": any(stage.uses("skd") for stage in stages) or (rkd and pairing.frame_weighting == "nonblank"),
        "hypotheses": any(stage.uses("pseudo") for stage in stages),
    }


def reached_by(loss: Tensor) -> Set[Tensor]:
    """The parameters that a backward of `loss` gives a gradient: the leaves of its graph. Nothing is computed."""
    reached: Set[Tensor] = set()
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the end of a path, where a gradient is accumulated
            reached.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return reached


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
        self, config: TutorConfig, pairing: Pairing, others: Sequence[Pairing], projection: Projection, heads: Sequence[Head],
        ctc_reduction: str,
    ) -> None:  # fmt: skip
        self._skd = config.skd
        self._pairing, self._others = pairing, tuple(others)
        self._teacher_weights = [teacher.weight for teacher in (config.teacher, *config.other_teachers)]
        self._projection, self._heads = projection, tuple(heads)
        self._reduction = ctc_reduction

    def weights(self, stage: Stage) -> Dict[str, float]:
        """The weight of each term; a head's losses count as those of the output do, times `tutor.skd.at_layers_weight`."""
        weights = dict(stage.weights)
        if self._heads and stage.uses("skd"):
            inside = {f"inter_{loss}": stage.weights.get(loss, 0.0) * self._skd.at_layers_weight for loss in ("ctc", "skd")}
            weights.update({loss: weight for loss, weight in inside.items() if weight > 0})
        return weights

    def terms(self, stage: Stage, student: StudentOutputs, teacher: TeacherTargets, ctc: CTC) -> Dict[str, Tensor]:
        """The stage's losses by name, not weighted yet; all but CTC of the student's output and pseudo-labels."""
        weights = self.weights(stage)
        with torch.autocast(student.lengths.device.type, enabled=False):
            terms = {}
            if stage.uses("rkd"):
                terms["rkd"] = self._rkd(student, teacher)
            if stage.uses("skd"):
                terms["skd"] = self._skd_loss(
                    student.log_probs, student.lengths, student.target_lengths, teacher, self._pairing.student_encoder
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
        self, log_probs: Tensor, lengths: Tensor, target_lengths: Tensor, teacher: TeacherTargets, layer: Layer
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
            target_lengths = torch.where(target_lengths > 0, target_lengths, losses.greedy_lengths(posteriors, mask))
        if self._skd.shift:
            match = losses.match_frames(log_probs, posteriors, mask, self._skd.shift)
            log_probs = log_probs.gather(1, match[..., None].expand_as(log_probs))
        mask = losses.FRAME_SELECTION[self._skd.frames](posteriors, mask, self._skd.frames_around)
        distance = losses.DIVERGENCE[self._skd.divergence](log_probs, posteriors, mask, self._skd.temperature)
        return losses.reduce_like_ctc(distance, target_lengths, self._reduction)

    def _inter(self, student: StudentOutputs, teacher: TeacherTargets, ctc: Optional[CTC]) -> Dict[str, Tensor]:
        """The heads' SKD, and their CTC where it is asked for, each a mean over the heads (Inter-KD, arXiv 2211.15075)."""
        found: Dict[str, List[Tensor]] = {}
        for head, layer, inside in zip(self._heads, self._pairing.heads, student.inside, strict=True):
            log_probs = head(inside)
            lengths = layer_lengths(student.lengths, self._pairing.student_encoder, layer, log_probs.shape[1])
            skd = self._skd_loss(log_probs, lengths, student.target_lengths, teacher, layer)
            found.setdefault("inter_skd", []).append(skd)
            if ctc is not None:
                found.setdefault("inter_ctc", []).append(ctc(log_probs, lengths, student.transcripts, student.target_lengths))
        return {name: torch.stack(terms).mean() for name, terms in found.items()}
