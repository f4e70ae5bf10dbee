# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The schedule: which losses count at which step. Numbers only, and nothing but its arguments decides.

TutorNet runs RKD first, as an initialisation, and then SKD together with CTC; the config can say anything
else. How long the initialisation lasts the abstract does not say; as a share of the training it fits a short
one and a long one alike (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tutornet.config import STAGE_UNITS
from nemo_tutornet.errors import TutorError


def progress(epochs: float, steps: int, max_epochs: int | None, max_steps: int | None) -> float | None:
    """How much of a training is behind it: of its two limits, the one that it will reach first decides.

    Args:
        epochs: finished so far, with the finished part of the current one.
        steps: optimizer steps finished so far.
        max_epochs: the training's limit; None or -1 for none, as in Lightning.
        max_steps: likewise.

    Returns:
        0 to 1; None for a training without a limit.
    """
    limits = ((epochs, max_epochs), (float(steps), max_steps))
    parts = [done / most for done, most in limits if most is not None and most > 0]
    return min(1.0, max(parts)) if parts else None


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: shown in the log.
        weights: loss name to weight, positive weights only.
        length: in the schedule's unit; None runs to the end.
    """

    name: str
    weights: Mapping[str, float]
    length: float | None = None

    def uses(self, loss: str) -> bool:
        """True when `loss` counts in this stage."""
        return loss in self.weights


class Schedule:
    """Stages one after the other, measured in epochs, in optimizer steps, or in shares of the whole training.

    Args:
        stages: at least one; only the last may be without a length. A last stage with a length still runs to
            the end.
        unit: `epochs`, `steps` or `share`.
    """

    def __init__(self, stages: Sequence[Stage], unit: str = "epochs") -> None:
        if not stages or any(stage.length is None for stage in stages[:-1]):
            raise ValueError("a schedule has at least one stage, and only its last may be without a length")
        self.stages = tuple(stages)
        self.unit = unit

    @classmethod
    def from_config(cls, stages: Sequence[Any]) -> Schedule:
        """Builds the schedule from checked `StageConfig`s."""
        given = [unit for unit in STAGE_UNITS if any(getattr(stage, unit) is not None for stage in stages)]
        unit = given[0] if given else STAGE_UNITS[0]
        return cls(
            [
                Stage(
                    name=stage.name,
                    weights={loss: w for loss, w in stage.weights.items() if w > 0},
                    length=getattr(stage, unit),
                )
                for stage in stages
            ],
            unit,
        )

    def index(self, epoch: int, step: int, share: float = 0.0) -> int:
        """The stage's index at a point of training.

        Args:
            epoch: epochs finished so far.
            step: optimizer steps finished so far.
            share: of the whole training that is behind it (`progress`).
        """
        position = {"epochs": epoch, "steps": step, "share": share}[self.unit]
        end = 0.0
        for i, stage in enumerate(self.stages[:-1]):
            end += stage.length or 0
            if position < end:
                return i
        return len(self.stages) - 1

    def resumed(self, name: str | None) -> int | None:
        """The index of the stage that a checkpoint was saved in; stages may have been added or left out
        since.

        Args:
            name: as saved; None before the first step.

        Raises:
            TutorError: there is no such stage.
        """
        if name is None:
            return None
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise TutorError(
                f"the checkpoint was saved in stage {name!r}, but model.tutor.stages has only "
                f"{', '.join(map(repr, names))}; "
                "resume with the stages that the run began with, or begin a new run."
            )
        return names.index(name)

    def check(self, max_epochs: int | None, max_steps: int | None) -> list[str]:
        """A sentence for each stage that a training with these limits never comes to.

        Args:
            max_epochs: the training's limit; None or -1 for none, as in Lightning.
            max_steps: likewise.

        Raises:
            TutorError: lengths are shares of a training without a limit.
        """
        if self.unit == "share" and progress(0.0, 0, max_epochs, max_steps) is None:
            raise TutorError(
                "model.tutor.stages gives lengths as shares of the training, but neither trainer.max_epochs "
                "nor "
                "trainer.max_steps limits it; set one of them, or give lengths in epochs or steps."
            )
        limit = {"epochs": max_epochs, "steps": max_steps}.get(self.unit)
        told, end = [], 0.0
        for stage in self.stages:
            if limit is not None and 0 < limit <= end:
                told.append(
                    f"Stage {stage.name!r} is never reached: those before it take {end:g} of {limit} "
                    f"{self.unit}."
                )
            end += stage.length or 0.0
        return told
