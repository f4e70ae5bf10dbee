# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The Lightning checkpoints of a run's folder, with their steps and monitored values."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, shown
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint

# NeMo marks a checkpoint with such a file while it writes or removes it.
_UNFINISHED = "-unfinished"
_AVERAGED = "-EMA.ckpt"  # the copy that NeMo's EMA writes beside each checkpoint
_MOST = 1000  # checkpoints in an average
_WHICH = re.compile(r"(last|best)-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class RunCheckpoint:
    """One checkpoint of a run.

    Attributes:
        path: the file.
        step: optimizer steps of the run when it was written.
        value: the monitored value; None where neither the run's state nor the file's name has it.
    """

    path: Path
    step: int
    value: float | None


def parse_average(text: str) -> tuple[str, int]:
    """Reads what to average.

    Args:
        text: `last-K` or `best-K`.

    Returns:
        `last` or `best`, and K.

    Raises:
        TutorError: it is neither.

    Example:
        >>> parse_average("best-5")
        ('best', 5)
    """
    match = _WHICH.fullmatch(text)
    if match is None or int(match[2]) > _MOST:
        raise TutorError(
            f"--average {shown(text)} is not known; give last-K or best-K with K from 1 to {_MOST}, e.g. "
            "last-5 or best-5."
        )
    return match[1], int(match[2])


def choose_checkpoints(source: Path, which: str) -> list[RunCheckpoint]:
    """Chooses the last or best checkpoints of a run. Nothing is read but their records without weights.

    Two files of one step (the last checkpoint is often one of the best) count once. The copies that NeMo's
    EMA writes, unfinished checkpoints, and those that are split among ranks are left out.

    Args:
        source: the run's folder (`exp_dir/name`), its folder of checkpoints, or a file in that.
        which: `last-K` or `best-K`.

    Returns:
        K checkpoints, in the order of their steps.

    Raises:
        TutorError: `which` is not known, the folder has fewer checkpoints, or one of them cannot be read.
    """
    kind, count = parse_average(which)
    folder = _checkpoint_folder(source)
    found, monitor, mode = _read_folder(folder)
    if kind == "best":
        known = [checkpoint for checkpoint in found if checkpoint.value is not None]
        sign = -1 if mode == "max" else 1
        known.sort(key=lambda checkpoint: (sign * (checkpoint.value or 0.0), -checkpoint.step))
        chosen, what = known[:count], f"with a value of {monitor or 'what the run monitors'}"
    else:
        chosen, what = found[-count:], "of different steps"
    if len(chosen) < count:
        keep = "-1" if kind == "last" else str(count)
        raise TutorError(
            f"{folder} has {len(chosen)} checkpoint{'' if len(chosen) == 1 else 's'} {what}, and {which} "
            "needs "
            f"{count}; average fewer, or train with exp_manager.checkpoint_callback_params.save_top_k={keep}."
        )
    return sorted(chosen, key=lambda checkpoint: checkpoint.step)


def ema_copy(path: Path) -> Path | None:
    """Returns the copy with averaged weights that NeMo's EMA wrote beside a checkpoint; None without one."""
    copy = path.with_name(f"{path.stem}{_AVERAGED}")
    return copy if copy.is_file() and not path.name.endswith(_AVERAGED) else None


def _checkpoint_folder(source: Path) -> Path:
    if source.is_file():
        return source.parent
    if not source.is_dir():
        raise TutorError(
            f"there is no {source}; to average checkpoints, give the run's folder "
            "(exp_manager.exp_dir/exp_manager.name)."
        )
    # exp_manager puts a run that is not resumed into a folder with its date below the run's.
    versions = sorted(source.glob("*/checkpoints"), key=lambda version: version.stat().st_mtime)
    folders = [source, source / "checkpoints", *reversed(versions)]
    for folder in folders:
        if any(path.is_file() for path in folder.glob("*.ckpt")):
            return folder
    raise TutorError(
        f"{source} has no .ckpt files to average, in itself or in checkpoints; give the run's folder "
        "(exp_manager.exp_dir/exp_manager.name)."
    )


def _read_folder(folder: Path) -> tuple[list[RunCheckpoint], str | None, str]:
    """Returns the checkpoints in the order of their steps, and the name and mode of what is monitored."""
    files = [
        path
        for path in sorted(folder.glob("*.ckpt"))
        if path.is_file() and not path.name.endswith(_AVERAGED) and not _is_unfinished(path)
    ]
    steps: dict[Path, int] = {}
    values: dict[str, float] = {}
    monitor, mode, newest = None, "min", -1
    for path in files:
        checkpoint = load_lightning_checkpoint(path, mmap=True)
        step = checkpoint.get("global_step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise TutorError(f"{path} has no global_step, so it is no checkpoint of a training; remove it.")
        steps[path] = step
        state = _monitor_state(checkpoint)
        if state is not None:
            names, key, best = state
            values.update(names)
            if key is not None and step >= newest:
                monitor, mode, newest = key, best, step
    by_step: dict[int, RunCheckpoint] = {}
    for path, step in steps.items():
        value = values.get(path.name)
        value = _value_in_name(path.name, monitor) if value is None else value
        before = by_step.get(step)
        if before is None or (before.value is None and value is not None):
            by_step[step] = RunCheckpoint(path, step, value)
    return [by_step[step] for step in sorted(by_step)], monitor, mode


def _is_unfinished(path: Path) -> bool:
    return path.with_name(f"{path.stem}{_UNFINISHED}").exists()


def _monitor_state(checkpoint: Mapping[str, Any]) -> tuple[dict[str, float], str | None, str] | None:
    """Returns what the state of Lightning's `ModelCheckpoint` says: value by file name, monitor, and mode."""
    callbacks = checkpoint.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if not isinstance(state, Mapping) or "best_k_models" not in state:
            continue
        best, monitor = state["best_k_models"], state.get("monitor")
        pairs = best.items() if isinstance(best, Mapping) else ()
        values = {str(path).replace("\\", "/").rsplit("/", 1)[-1]: _finite(value) for path, value in pairs}
        known = {path: value for path, value in values.items() if value is not None}
        return known, monitor if isinstance(monitor, str) else None, _mode(str(name), monitor)
    return None


def _mode(name: str, monitor: Any) -> str:
    """Returns the mode in the name of the state, e.g. `ModelCheckpoint{'monitor': 'val_wer', 'mode': 'min'}`.

    Example:
        >>> _mode("ModelCheckpoint{'monitor': 'accuracy', 'mode': 'max'}", "accuracy")
        'max'
    """
    try:
        settings = ast.literal_eval(name[name.index("{") :][:2000])
        return "max" if settings.get("mode") == "max" else "min"
    except (ValueError, SyntaxError, AttributeError, RecursionError, MemoryError):
        return "min"


def _value_in_name(name: str, monitor: str | None) -> float | None:
    """Returns the value in a file's name, e.g. `run--val_wer=0.1028-epoch=24.ckpt`."""
    key = re.escape(monitor) if monitor else r"val_\w+"
    match = re.search(rf"{key}=(-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", name)
    return None if match is None else _finite(float(match[1]))


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
