# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The named losses of one training step: targets onto the student's frames and labels, then the pure functions.

Legend: `B` utterances, `S` frames of the student, `D` width, `V` labels with the blank last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_tutornet import losses
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.pairing import Pairing, layer_lengths
from nemo_tutornet.schedule import Stage
from nemo_tutornet.targets import TeacherTargets


class Projection(nn.Conv1d):
    """f, the learned linear 1x1 convolution from the guided layer's width to the hint layer's (student side; TutorNet).

    A registered module of the student, so that the optimizer, DDP and device moves see it; but it keeps itself out of
    `state_dict()`, so that whatever writes or loads a student sees the stock model's keys and no others. The `.ckpt`
    carries it beside the state (`TutorMixin.on_save_checkpoint`).

    Args:
        guided_width: `D_S`.
        hint_width: `D_T`.
    """

    def __init__(self, guided_width: int, hint_width: int) -> None:
        super().__init__(guided_width, hint_width, kernel_size=1)

    def forward(self, guided: Tensor) -> Tensor:
        """Projects the guided layer `[B, D_S, T]` to `[B, D_T, T]`, in fp32 whatever the student trains in."""
        assert self.bias is not None
        return F.conv1d(guided.float(), self.weight.float(), self.bias.float())

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        """Nothing: see the class."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Nothing: see the class."""


@dataclass(frozen=True)
class StudentOutputs:
    """What the student gave for a batch.

    Attributes:
        log_probs: `[B, S, V]`.
        lengths: valid frames `[B]` of the encoder's output.
        guided: the guided layer `[B, D, S']`.
        target_lengths: labels of each transcript `[B]`, 0 where there is none.
    """

    log_probs: Tensor
    lengths: Tensor
    guided: Tensor
    target_lengths: Tensor


class Objective:
    """Computes the teacher's losses of a stage; CTC stays NeMo's.

    Args:
        config: the checked `tutor:` section.
        pairing: what is matched with what.
        projection: f.
        ctc_reduction: the student's, mirrored by SKD.
    """

    def __init__(self, config: TutorConfig, pairing: Pairing, projection: Projection, ctc_reduction: str) -> None:
        self._skd = config.skd
        self._pairing = pairing
        self._projection = projection
        self._reduction = ctc_reduction

    def needs(self, stage: Stage) -> Dict[str, bool]:
        """What the stage reads of the teacher: its hint layer, its posteriors (for SKD or as frame weights), its hypotheses."""
        rkd = stage.uses("rkd")
        return {
            "hidden": rkd,
            "posteriors": stage.uses("skd") or (rkd and self._pairing.frame_weighting == "nonblank"),
            "hypotheses": stage.uses("pseudo"),
        }

    def terms(self, stage: Stage, student: StudentOutputs, teacher: TeacherTargets) -> Dict[str, Tensor]:
        """The stage's losses but CTC, by name, not weighted yet."""
        with torch.autocast(student.lengths.device.type, enabled=False):
            terms = {}
            if stage.uses("rkd"):
                terms["rkd"] = self._rkd(student, teacher)
            if stage.uses("skd"):
                terms["skd"] = self._skd_loss(student, teacher)
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

    def _skd_loss(self, student: StudentOutputs, teacher: TeacherTargets) -> Tensor:
        frames = student.log_probs.shape[1]
        assert teacher.log_probs is not None
        posteriors = self._pairing.posteriors(teacher.log_probs, teacher.lengths, frames, self._pairing.student_encoder)
        mask = losses.frame_mask(student.lengths, frames) & (teacher.lengths > 0)[:, None]
        heard = losses.greedy_lengths(posteriors, mask)
        labels = torch.where(student.target_lengths > 0, student.target_lengths, heard)
        mask = losses.FRAME_SELECTION[self._skd.frames](posteriors, mask, self._skd.frames_around)
        distance = losses.DIVERGENCE[self._skd.divergence](student.log_probs, posteriors, mask, self._skd.temperature)
        return losses.reduce_like_ctc(distance, labels, self._reduction)
