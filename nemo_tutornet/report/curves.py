# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning curves of a training, from the TensorBoard event files in its folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_tutornet.config import TutorConfig
from nemo_tutornet.functional.schedule import Schedule, progress

_STAGE, _EPOCH, _VALIDATION = "tutor_stage", "epoch", "val_"
# A point of a curve: optimizer step and value.
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class StageSpan:
    """A stage of a training.

    Attributes:
        name: name of the stage.
        start: first optimizer step.
    """

    name: str
    start: float


@dataclass(frozen=True)
class LearningCurves:
    """What a training logged.

    Attributes:
        terms: the curves of losses and error rates by their tag.
        stages: the stages in order; empty for a training without a teacher.
        steps_per_epoch: optimizer steps of an epoch; None where it is not known.
    """

    terms: Mapping[str, Curve] = field(default_factory=dict)
    stages: Sequence[StageSpan] = ()
    steps_per_epoch: float | None = None


def read_curves(folder: Path, tutor: TutorConfig | None) -> LearningCurves:
    """Reads the learning curves of a training.

    A run that was resumed has several event files. Where two have the same steps, the later file counts.

    Args:
        folder: folder of the run.
        tutor: the run's `tutor:` section, which names the stages.

    Returns:
        The curves; without terms where the folder has no events.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    scalars: dict[str, Curve] = {}
    files = sorted(folder.rglob("events.out.tfevents*"), key=lambda file: file.stat().st_mtime)
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})  # 0 keeps every value
        events.Reload()
        for tag in events.Tags()["scalars"]:
            new = [(event.step, float(event.value)) for event in events.Scalars(tag)]
            kept = [point for point in scalars.get(tag, []) if point[0] < new[0][0]]
            scalars[tag] = kept + new
    terms = {tag: curve for tag, curve in scalars.items() if _is_term(tag)}
    return LearningCurves(terms, _stages(scalars, tutor), _steps_per_epoch(scalars))


def _is_term(tag: str) -> bool:
    return tag.startswith(("train_", "training_", _VALIDATION)) and "timing" not in tag


def _steps_per_epoch(scalars: Mapping[str, Curve]) -> float | None:
    """The validation of an epoch is logged at its last step, with the number of the epoch, counted from 0."""
    epochs = dict(scalars.get(_EPOCH, []))
    for tag, curve in scalars.items():
        if tag.startswith(_VALIDATION) and curve[0][0] in epochs:
            return (curve[0][0] + 1) / (epochs[curve[0][0]] + 1)
    return None


def _stages(scalars: Mapping[str, Curve], tutor: TutorConfig | None) -> list[StageSpan]:
    if tutor is None:
        return []
    logged = scalars.get(_STAGE)
    names = [stage.name for stage in tutor.stages]
    if logged is None:
        return _planned_stages(scalars, tutor)
    spans: list[StageSpan] = []
    last = 0
    for step, index in logged:
        name = names[int(index)] if int(index) < len(names) else f"stage {int(index) + 1}"
        if not spans or spans[-1].name != name:
            # Not every step is logged: the stage began somewhere between two logged steps.
            spans.append(StageSpan(name, (last + step) / 2 if spans else 0))
        last = step
    return spans


def _planned_stages(scalars: Mapping[str, Curve], tutor: TutorConfig) -> list[StageSpan]:
    """The stages by the schedule of the config, for a training that did not log them."""
    schedule, steps_per_epoch = Schedule.from_config(tutor.stages), _steps_per_epoch(scalars)
    steps = max((curve[-1][0] for tag, curve in scalars.items() if _is_term(tag)), default=0) + 1
    spans: list[StageSpan] = []
    for step in range(steps if schedule.unit != "epochs" or steps_per_epoch else 0):
        share = progress(0.0, step, None, steps) or 0.0
        stage = schedule.stages[schedule.index(int(step // (steps_per_epoch or 1)), step, share)]
        if not spans or spans[-1].name != stage.name:
            spans.append(StageSpan(stage.name, step))
    return spans
