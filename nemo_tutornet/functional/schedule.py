# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The schedule of stages: which losses are used at which step. It depends on numbers only.

TutorNet runs RKD first, as an initialisation, and then SKD together with CTC. A config may define other
stages. The paper's abstract does not say how long the initialisation lasts. A length as a share of the
training suits short and long trainings (ours).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tutornet.config import STAGE_UNITS
from nemo_tutornet.errors import TutorError


def progress(epochs: float, steps: int, max_epochs: int | None, max_steps: int | None) -> float | None:
    """Computes the finished share of a training, by the limit that is reached first (ours).

    Args:
        epochs: finished epochs, with the finished fraction of the current one.
        steps: finished optimizer steps.
        max_epochs: limit of the training in epochs; None or -1 for none, as in Lightning.
        max_steps: limit of the training in optimizer steps; None or -1 for none.

    Returns:
        0 to 1; None for a training without a limit.

    Example:
        >>> progress(epochs=2.5, steps=100, max_epochs=10, max_steps=200)
        0.5
        >>> progress(epochs=2.5, steps=100, max_epochs=None, max_steps=-1) is None
        True
    """
    limits = ((epochs, max_epochs), (float(steps), max_steps))
    shares = [done / limit for done, limit in limits if limit is not None and limit > 0]
    return min(1.0, max(shares)) if shares else None


def steps_per_epoch(batches: float, accumulated: int) -> int | None:
    """Computes the optimizer steps of an epoch; the last one may have fewer batches than the others.

    Args:
        batches: batches of an epoch; infinity where the training set does not know its length.
        accumulated: batches of a step (`trainer.accumulate_grad_batches`).

    Returns:
        The number; None where it is unknown.

    Example:
        >>> steps_per_epoch(10, 4), steps_per_epoch(float("inf"), 1)
        (3, None)
    """
    return math.ceil(batches / accumulated) if 0 < batches < math.inf else None


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    Attributes:
        name: name of the stage, as shown in the log.
        weights: weight of each loss by its name, positive weights only.
        length: length in the unit of the schedule; None runs to the end of the training.
    """

    name: str
    weights: Mapping[str, float]
    length: float | None = None

    def uses(self, loss: str) -> bool:
        """Tells whether this stage has a weight for `loss`."""
        return loss in self.weights


class Schedule:
    """A sequence of stages, whose lengths are epochs, optimizer steps, or shares of the whole training.

    Args:
        stages: at least one stage. Only the last may have no length. The last stage runs to the end of the
            training, whatever its length.
        unit: unit of the lengths: `epochs`, `steps` or `share`.

    Raises:
        ValueError: there is no stage, or a stage before the last has no length.

    Example:
        >>> schedule = Schedule([Stage("rkd", {"rkd": 1.0}, length=2), Stage("ctc", {"ctc": 1.0})])
        >>> [schedule.index(epoch, step=0) for epoch in range(4)]
        [0, 0, 1, 1]
    """

    def __init__(self, stages: Sequence[Stage], unit: str = "epochs") -> None:
        if not stages or any(stage.length is None for stage in stages[:-1]):
            raise ValueError("a schedule has at least one stage, and only its last may be without a length")
        self.stages = tuple(stages)
        self.unit = unit

    @classmethod
    def from_config(cls, stages: Sequence[Any]) -> Schedule:
        """Builds the schedule from the `StageConfig`s of a checked config."""
        used = [unit for unit in STAGE_UNITS if any(getattr(stage, unit) is not None for stage in stages)]
        unit = used[0] if used else STAGE_UNITS[0]
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
        """Finds the stage at a point of the training.

        Args:
            epoch: finished epochs.
            step: finished optimizer steps.
            share: finished share of the whole training, from `progress`.

        Returns:
            Index of the stage in `stages`.
        """
        position = {"epochs": epoch, "steps": step, "share": share}[self.unit]
        end = 0.0
        for i, stage in enumerate(self.stages[:-1]):
            end += stage.length or 0
            if position < end:
                return i
        return len(self.stages) - 1

    def resumed(self, name: str | None) -> int | None:
        """Finds the stage that a checkpoint was saved in, by its name.

        The name stays valid where stages were added or removed since.

        Args:
            name: name of the stage in the checkpoint; None for a checkpoint from before the first step.

        Returns:
            Index of the stage in `stages`; None where `name` is None.

        Raises:
            TutorError: the schedule has no stage of that name.
        """
        if name is None:
            return None
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise TutorError(
                f"the checkpoint was saved in stage {name!r}, but model.tutor.stages has only "
                f"{', '.join(map(repr, names))}; resume with the stages that the run began with, or begin a "
                "new run."
            )
        return names.index(name)

    def check(self, max_epochs: int | None, max_steps: int | None) -> None:
        """Checks that the stages have boundaries in a training with these limits.

        Args:
            max_epochs: limit of the training in epochs; None or -1 for none, as in Lightning.
            max_steps: limit of the training in optimizer steps; None or -1 for none.

        Raises:
            TutorError: the lengths are shares, but the training has no limit.
        """
        if self.unit == "share" and progress(0.0, 0, max_epochs, max_steps) is None:
            raise TutorError(
                "model.tutor.stages gives lengths as shares of the training, but neither trainer.max_epochs "
                "nor trainer.max_steps limits it; set one of them, or give lengths in epochs or steps."
            )

    def unreached(
        self, max_epochs: int | None, max_steps: int | None, epoch_steps: int | None = None
    ) -> list[str]:
        """Finds the stages that a training with these limits never reaches.

        Args:
            max_epochs: limit of the training in epochs; None or -1 for none, as in Lightning.
            max_steps: limit of the training in optimizer steps; None or -1 for none.
            epoch_steps: optimizer steps of an epoch, from `steps_per_epoch`; None where the number is
                unknown. Then a limit counts only where the stages have lengths in its unit.

        Returns:
            One warning, a sentence, for each such stage.

        Example:
            >>> schedule = Schedule([Stage("a", {"rkd": 1.0}, 9), Stage("b", {"ctc": 1.0})], "steps")
            >>> schedule.unreached(max_epochs=4, max_steps=-1, epoch_steps=2)
            ["Stage 'b' is never reached: the stages before it take 9 of 8 steps (4 epochs of 2 steps)."]
        """
        limits: list[tuple[float, str]] = []
        for limit, unit in ((max_epochs, "epochs"), (max_steps, "steps")):
            if limit is None or limit <= 0 or self.unit == "share":
                continue
            if unit == self.unit:
                limits.append((limit, ""))
            elif epoch_steps is not None and unit == "epochs":
                limits.append((limit * epoch_steps, f" ({limit} epochs of {epoch_steps} steps)"))
            elif epoch_steps is not None:
                limits.append((limit / epoch_steps, f" ({limit} steps, {epoch_steps} in an epoch)"))
        if not limits:
            return []
        shortest, words = min(limits)
        warnings, end = [], 0.0
        for stage in self.stages:
            if shortest <= end:
                warnings.append(
                    f"Stage {stage.name!r} is never reached: the stages before it take {end:g} of "
                    f"{shortest:g} {self.unit}{words}."
                )
            end += stage.length or 0.0
        return warnings
