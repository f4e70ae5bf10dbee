# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Validation WER by epoch, of a run's logs or of its committed line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def curve(line: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Epoch, counted from 1, and validation WER in percent, as the training logged them.

    Args:
        line: of `runs.jsonl`, or a committed one. Nothing is returned for one without a curve.
    """
    if "valid_by_epoch" in line:
        return list(enumerate(line["valid_by_epoch"], start=1))
    checkpoints = Path(line.get("model", "")).parent
    if checkpoints.name != "checkpoints":
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged: dict[int, float] = {}
    files = checkpoints.parent.rglob("events.out.tfevents*")
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        if "val_wer" in events.Tags()["scalars"]:
            # A run that was interrupted has several files; the later one is right about a step that both
            # have.
            logged.update({event.step: 100 * event.value for event in events.Scalars("val_wer")})
    return [(epoch, logged[step]) for epoch, step in enumerate(sorted(logged), start=1)]
