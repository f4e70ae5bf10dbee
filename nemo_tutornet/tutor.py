# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a student in training has of its teacher, and one step of it."""

from __future__ import annotations

from typing import Callable, Dict, Optional

import torch
from torch import Tensor

from nemo_tutornet.objective import Objective, StudentOutputs
from nemo_tutornet.pairing import Pairing
from nemo_tutornet.pseudo import PseudoLabels
from nemo_tutornet.schedule import Schedule, Stage
from nemo_tutornet.targets import TeacherTargets
from nemo_tutornet.teacher import Teacher


class Tutor:
    """A student's teacher, schedule and objective: a plain object, so that nothing of it is registered in the student.

    Attributes:
        teacher: the frozen teacher.
        pairing: what is matched with what.
        schedule: the stages.
        objective: the losses.
        pseudo_labels: what becomes of the teacher's hypotheses.
        stage: index of the stage last entered; None before the first step.
    """

    def __init__(
        self, teacher: Teacher, pairing: Pairing, schedule: Schedule, objective: Objective, pseudo_labels: PseudoLabels
    ) -> None:
        self.teacher = teacher
        self.pairing = pairing
        self.schedule = schedule
        self.objective = objective
        self.pseudo_labels = pseudo_labels
        self.stage: Optional[int] = None


class Step:
    """One training step: named terms, and the weighted sum of them. Without targets CTC is the only term.

    Args:
        objective: the losses.
        stage: the stage that the step belongs to.
        targets: what the teacher gave; None where nobody asked.
        student: what the student gave, once it has run.
        pseudo: CTC of the student's outputs against the teacher's hypotheses.

    Attributes:
        logs: the terms, not weighted, by the names that they are logged under.
    """

    def __init__(
        self, objective: Objective, stage: Stage, targets: Optional[TeacherTargets], student: Callable[[], StudentOutputs],
        pseudo: Callable[[StudentOutputs, TeacherTargets], Tensor],
    ) -> None:  # fmt: skip
        self._objective, self._stage, self._targets, self._student, self._pseudo = objective, stage, targets, student, pseudo
        self.logs: Dict[str, Tensor] = {}

    def total(self, ctc: Optional[Tensor] = None) -> Tensor:
        """The weighted sum; `ctc` is NeMo's, in a stage that uses it."""
        terms: Dict[str, Tensor] = {}
        if self._targets is not None:
            outputs = self._student()
            terms = self._objective.terms(self._stage, outputs, self._targets)
            if self._stage.uses("pseudo"):
                terms["pseudo"] = self._pseudo(outputs, self._targets)
        if ctc is not None:
            terms["ctc"] = ctc
        self.logs = {f"train_{name}": term.detach() for name, term in terms.items()}
        return torch.stack([self._stage.weights[name] * term for name, term in terms.items()]).sum()
