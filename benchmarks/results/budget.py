# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How many epochs fit into a time: a training of a few epochs is timed first.

A limit of Lightning's (`trainer.max_time`) would end the training in the middle of its learning-rate schedule
and of its stages. So the time becomes a number of epochs, of which the schedule is made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from processes import Training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_tutornet.utils.files import atomic_write

# The first epoch has the start in it.
TIMED = 3


def epoch_ends(folder: Path) -> list[float]:
    """When each epoch's validation was logged, in seconds, in order."""
    ends: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        if "val_wer" in events.Tags()["scalars"]:
            ends.update({event.step: event.wall_time for event in events.Scalars("val_wer")})
    return [ends[step] for step in sorted(ends)]


def epochs_in(
    minutes: float, training: Training, environment: dict[str, str], kept: Path
) -> tuple[int, float]:
    """How many epochs a training may have, and how many seconds one takes.

    They are measured once, and kept: all seeds have as many epochs, and a resumed command has them, too. What
    the program's start took, and a teacher's cache or adapter, is not in the time.

    Args:
        minutes: for all epochs with their validations.
        training: the training; its epochs do not matter.
        environment: of the training.
        kept: file in which the measurement is kept.

    Raises:
        RuntimeError: not one epoch fits, or the training has no TensorBoard log.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            timed = replace(training, folder=kept.parent / "timed", epochs=TIMED)
            timed.run(environment)
            ends = epoch_ends(timed.folder / timed.name)
            if len(ends) != TIMED:
                raise RuntimeError(f"{timed.folder / timed.name} has no log of {TIMED} epochs to be timed.")
            epoch = (ends[-1] - ends[0]) / (TIMED - 1)
            found = {"epoch_seconds": epoch}
            with atomic_write(kept) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    epochs = int(60 * minutes / found["epoch_seconds"])
    if epochs < 1:
        raise RuntimeError(
            f"{minutes:g} minutes are too few for one epoch of {found['epoch_seconds']:.0f} s."
        )
    return epochs, found["epoch_seconds"]
