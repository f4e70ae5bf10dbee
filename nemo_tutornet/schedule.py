# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The schedule: which losses count at which step. Numbers only, and nothing but its arguments decides.

TutorNet runs RKD first, as an initialisation, and then SKD together with CTC; the config can say anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence


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
    length: Optional[int] = None

    def uses(self, loss: str) -> bool:
        """True when `loss` counts in this stage."""
        return loss in self.weights

    @property
    def decoder_is_idle(self) -> bool:
        """True when no loss of this stage reaches the student's decoder."""
        return not (self.uses("ctc") or self.uses("skd") or self.uses("pseudo"))


class Schedule:
    """Stages one after the other, measured in epochs or in optimizer steps.

    Args:
        stages: at least one; only the last may be without a length. A last stage with a length still runs to the end.
        unit: `epochs` or `steps`.
    """

    def __init__(self, stages: Sequence[Stage], unit: str = "epochs") -> None:
        if not stages or any(stage.length is None for stage in stages[:-1]):
            raise ValueError("a schedule has at least one stage, and only its last may be without a length")
        self.stages = tuple(stages)
        self.unit = unit

    @classmethod
    def from_config(cls, stages: Sequence[Any]) -> Schedule:
        """Builds the schedule from checked `StageConfig`s."""
        unit = "steps" if any(stage.steps is not None for stage in stages) else "epochs"
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

    def index(self, epoch: int, step: int) -> int:
        """The stage's index at a point of training.

        Args:
            epoch: epochs finished so far.
            step: optimizer steps finished so far.
        """
        position = step if self.unit == "steps" else epoch
        end = 0
        for i, stage in enumerate(self.stages[:-1]):
            end += stage.length or 0
            if position < end:
                return i
        return len(self.stages) - 1

    def decoder_untrained_before(self, index: int) -> bool:
        """True when no stage before `index` has trained the student's decoder, so a warm start destroys nothing."""
        return all(stage.decoder_is_idle for stage in self.stages[:index])
