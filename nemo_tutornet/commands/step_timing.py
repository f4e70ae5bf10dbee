# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step on the CPU: stage by stage, of models alone, and of two views."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.finite import find_nonfinite
from nemo_tutornet.errors import TutorError, shown
from nemo_tutornet.functional.schedule import Stage

_ROUNDS = 3
# A step that takes this long is timed once.
_LONG_STEP_MS = 5000.0


@dataclass(frozen=True)
class StageCost:
    """One stage of the schedule, with the losses and the time of one step on the first training batch.

    Attributes:
        name: name of the stage.
        length: length of the stage, as text.
        losses: the losses and their weights, as text.
        terms: unweighted value of each loss in that step.
        step_ms: milliseconds for forward, losses and backward, without the optimizer's step; the median of a
            few runs.
    """

    name: str
    length: str
    losses: str
    terms: dict[str, float]
    step_ms: float


def stage_cost(model: Any, distiller: Distiller, stage: Stage, batch: TrainingBatch) -> StageCost:
    """Measures one stage: runs its losses forward and backward on a batch, a few times.

    No parameter changes.

    Args:
        model: the student.
        distiller: its distiller.
        stage: the stage.
        batch: a batch of the training set.

    Raises:
        TutorError: the loss is NaN or infinite.
    """

    def once() -> dict[str, float]:
        targets = distiller.teacher_targets(stage, batch)
        terms: dict[str, torch.Tensor] = {}

        def losses(ctc: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            terms.update(distiller.losses(stage, student, targets, ctc))
            found = find_nonfinite(terms, student.batch, targets, distiller.names)
            if found is not None:
                raise TutorError(f"step 1: {found}")
            return terms

        with distiller.capture(model, batch, stage) as student:
            model.step_of_stage(student.batch, 0, stage, losses)["loss"].backward()
        del terms["loss"]
        model.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in terms.items()}

    times: list[float] = []

    def timed() -> dict[str, float]:
        start = time.perf_counter()
        terms = once()
        times.append(1000 * (time.perf_counter() - start))
        return terms

    terms = timed()
    if times[0] < _LONG_STEP_MS:  # the first step of a fast one is much slower; a long one is not repeated
        times.clear()
        for _ in range(_ROUNDS):
            timed()
    length = _length(stage, distiller.schedule.unit)
    of_views = distiller.config.consistency.weight if "consistency" in terms else 0.0
    named = {**stage.weights, **({"consistency": of_views} if of_views else {})}
    weights = ", ".join(f"{weight:g} x {name}" for name, weight in named.items())
    return StageCost(stage.name, length, weights, terms, statistics.median(times))


def cost_of_views(
    model: Any, distiller: Distiller, batch: TrainingBatch, costs: list[StageCost]
) -> list[str]:
    """Says how long a step of the last stage with consistency takes, and how long one without.

    Args:
        model: the student.
        distiller: its distiller.
        batch: a batch of the training set.
        costs: of all stages.

    Returns:
        One sentence; none where no stage has consistency.
    """
    stages = zip(distiller.schedule.stages, costs, strict=True)
    found = next((pair for pair in reversed(list(stages)) if "consistency" in pair[1].terms), None)
    if found is None:
        return []
    stage, cost = found
    consistency = distiller.config.consistency
    weight, consistency.weight = consistency.weight, 0.0
    try:
        plain = stage_cost(model, distiller, stage, batch).step_ms
    finally:
        consistency.weight = weight
    return [
        f"Consistency runs the student on two views: a step of stage {shown(stage.name)} takes "
        f"{cost.step_ms:.0f} ms on this CPU, and {plain:.0f} ms without it "
        "(model.tutor.consistency.weight=0)."
    ]


def _length(stage: Stage, unit: str) -> str:
    if stage.length is None:
        return "to the end"
    return f"{100 * stage.length:g} % of the training" if unit == "share" else f"{stage.length:g} {unit}"


def peak_mb() -> float | None:
    """Returns the peak memory of this process in megabytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows does not have this module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, kilobytes elsewhere


def median_ms(run: Callable[[], Any], model: Any) -> float:
    """Measures the median time of a few runs in eval mode, without the first run, which warms up.

    Args:
        run: what is measured.
        model: is in eval mode meanwhile, and in train mode afterwards; None leaves the mode as it is.

    Returns:
        Milliseconds.
    """
    if model is not None:
        model.eval()
    times = []
    with torch.no_grad():
        for _ in range(_ROUNDS + 1):
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
    if model is not None:
        model.train()
    return statistics.median(times[1:])
