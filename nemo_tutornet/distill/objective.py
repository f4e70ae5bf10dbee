# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The objective: the weighted sum of a stage's losses, and the check of their names in a `tutor:` section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.config import TutorConfig, parse_tutor
from nemo_tutornet.distill.losses import DERIVED, LOSSES, LossContext
from nemo_tutornet.distill.projections import Head, TrainingOnlyConv1d
from nemo_tutornet.distill.student_capture import StudentOutputs
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Stage
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets


class Objective:
    """The losses of a student, and their weighted sum in each stage.

    Args:
        context: what the losses are built from.

    Attributes:
        losses: by name, those without a weight included.
        consistent_since: optimizer steps before the first stage with consistency; None until it begins.
    """

    def __init__(self, context: LossContext) -> None:
        self.losses = {name: loss(context) for name, loss in LOSSES.items()}
        self.consistent_since: int | None = None
        self._consistent_steps = 0

    @property
    def modules(self) -> dict[str, TrainingOnlyConv1d]:
        """What trains with the student and is never exported, by the names under which a `.ckpt` stores
        them.
        """
        return {name: module for loss in self.losses.values() for name, module in loss.modules.items()}

    @property
    def heads(self) -> list[Head]:
        """The heads of the intermediate layers."""
        return [module for module in self.modules.values() if isinstance(module, Head)]

    def weights(self, stage: Stage) -> dict[str, float]:
        """Returns the weights of the losses that count in a stage."""
        weights = {name: loss.weight(stage) for name, loss in self.losses.items()}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def request(self, stages: Sequence[Stage]) -> TargetRequest:
        """Returns what the losses of some stages together read of the teacher."""
        request = TargetRequest()
        for stage in stages:
            for name in self.weights(stage):
                request |= self.losses[name].request
        return request

    def trains_decoder(self, stage: Stage) -> bool:
        """Whether a loss of a stage gives the student's decoder a gradient."""
        return any(self.losses[name].trains_decoder for name in self.weights(stage))

    def unused_modules(self, stage: Stage) -> list[nn.Module]:
        """Returns the training-only modules that no loss of a stage uses."""
        used = self.weights(stage)
        unused = [loss for name, loss in self.losses.items() if name not in used]
        return [module for loss in unused for module in loss.modules.values()]

    def note_step(self, stage: Stage, steps: int) -> None:
        """Takes note of a step, for the weights that change with the steps.

        Args:
            stage: of the step.
            steps: optimizer steps of the training before it.
        """
        if "consistency" not in self.weights(stage):
            return
        # A new training may begin with the state of another one, and counts its steps from 0.
        if self.consistent_since is None or self.consistent_since > steps:
            self.consistent_since = steps
        self._consistent_steps = steps - self.consistent_since

    def __call__(
        self, stage: Stage, student: StudentOutputs, targets: TeacherTargets | None
    ) -> dict[str, Tensor]:
        """Computes a stage's losses.

        Args:
            stage: the stage.
            student: the student's outputs.
            targets: the teacher's; None where no loss of the stage requests any.

        Returns:
            The weighted sum as `loss`, and each loss, not weighted, under its own name. All are scalars in
            fp32.
        """
        weights = self.weights(stage)
        with torch.autocast(student.lengths.device.type, enabled=False):
            terms = {name: self.losses[name](student, targets) for name in weights}
            steps = self._consistent_steps
            weights = {name: weight * self.losses[name].share(steps) for name, weight in weights.items()}
            total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **terms}

    def diagnostics(self, stage: Stage) -> dict[str, Tensor]:
        """Returns what a stage's losses give to the log beside their values, of the last batch."""
        losses = [self.losses[name] for name in self.weights(stage)]
        return {name: value for loss in losses for name, value in loss.diagnostics.items()}


def read_tutor_section(model_cfg: Any) -> TutorConfig | None:
    """Reads and checks the `tutor:` section of a model config, the names of its losses included.

    Args:
        model_cfg: the student's config (a mapping); its `tutor` key may be absent or null.

    Returns:
        The checked section, or None where there is none.

    Raises:
        TutorError: as `config.parse_tutor`, and a weight for something that is not a loss.
    """
    config = parse_tutor(model_cfg)
    names = [name for name in LOSSES if name not in DERIVED]
    for i, stage in enumerate([] if config is None else config.stages):
        for loss in stage.weights:
            if loss not in names:
                raise TutorError(
                    f"model.tutor.stages[{i}].weights.{loss} is not a loss; choose from {', '.join(names)}."
                )
    return config


def describe_weights(weights: Mapping[str, float]) -> str:
    """Returns weights in words, for logs.

    Example:
        >>> describe_weights({"ctc": 1.0, "rkd": 5.0})
        'ctc 1, rkd 5'
    """
    return ", ".join(f"{loss} {weight:g}" for loss, weight in weights.items())
