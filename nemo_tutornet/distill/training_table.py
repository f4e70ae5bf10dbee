# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The table at the end of a training: its stages, its error rates, its files, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# A log file has no width, and 80 columns would fold the names of files.
LOG_WIDTH = 140


@dataclass
class StageRecord:
    """What a training did in a stage.

    Attributes:
        name: name of the stage; empty for a training without a teacher.
        first_epoch: epoch that it began in, from 1.
        last_epoch: epoch that it ended in.
        losses: mean of each loss over its last epoch.
        wer: word error rate of its last validation, as a fraction; None without one.
    """

    name: str
    first_epoch: int
    last_epoch: int
    losses: Mapping[str, float] = field(default_factory=dict)
    wer: float | None = None


@dataclass(frozen=True)
class TrainingFiles:
    """The files that a training left.

    Attributes:
        best: checkpoint with the best value of what is monitored; None without one.
        last: checkpoint of the last step.
        student: the `.nemo` file.
        student_is_best: the `.nemo` file has the weights of the best checkpoint, not of the last step.
    """

    best: Path | None = None
    last: Path | None = None
    student: Path | None = None
    student_is_best: bool = False

    @classmethod
    def of(cls, checkpoint_callback: Any) -> TrainingFiles:
        """Reads the paths of a checkpoint callback of Lightning or NeMo; those that do not exist are left
        out.
        """
        folder = getattr(checkpoint_callback, "dirpath", None)
        name = f"{getattr(checkpoint_callback, 'prefix', '')}{getattr(checkpoint_callback, 'postfix', '')}"
        paths = (
            getattr(checkpoint_callback, "best_model_path", None),
            getattr(checkpoint_callback, "last_model_path", None),
            f"{folder}/{name}" if folder and name.endswith(".nemo") else None,
        )
        best, last, student = (Path(path) if path and Path(path).exists() else None for path in paths)
        return cls(best, last, student, bool(getattr(checkpoint_callback, "save_best_model", False)))

    def next_command(self) -> str | None:
        """Returns the command that exports the student; None where there is no file."""
        source = self.best or self.student or self.last
        if source is None:
            return None
        name = self.student.stem if self.student is not None else "student"
        return (
            f"nemo-tutornet export {shlex.quote(str(source))} {shlex.quote(f'{name}-export.nemo')} --verify"
        )


def print_training_table(
    stages: Sequence[StageRecord], best_wer: float | None, files: TrainingFiles, console: Console
) -> None:
    """Prints a row for each stage, the files, and the next command.

    In a log file the table is plain text.

    Args:
        stages: the stages that were run.
        best_wer: the lowest word error rate on validation, as a fraction.
        files: what was written.
        console: where to.
    """
    if not stages:
        return
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    table.add_column("stage", overflow="fold")
    table.add_column("epochs", no_wrap=True)
    table.add_column("losses, mean of the last epoch", overflow="fold")
    table.add_column("val_wer", justify="right", no_wrap=True)
    for stage in stages:
        first, last = stage.first_epoch, stage.last_epoch
        table.add_row(
            escape(stage.name or "all"),
            str(first) if first == last else f"{first} to {last}",
            escape(losses_in_words(stage.losses)),
            percent(stage.wer),
        )
    console.print()
    console.print(table)
    facts = []
    last_wer = stages[-1].wer
    if files.best is not None:
        facts.append(("best checkpoint", _with_wer(files.best, best_wer)))
    if files.last is not None:
        facts.append(("last checkpoint", _with_wer(files.last, last_wer)))
    if files.student is not None:
        epoch = "best" if files.student_is_best else "last"
        facts.append(("student", f"{files.student} (the {epoch} epoch)"))
    if not facts and best_wer is not None:
        facts.append(("val_wer", f"best {percent(best_wer)}, last {percent(last_wer)}"))
    command = files.next_command()
    if command is not None:
        facts.append(("next", command))
    width = max((len(name) for name, _ in facts), default=0)
    for name, fact in facts:
        console.print(f"{name:<{width}}  {fact}", markup=False, highlight=False, soft_wrap=True)


def losses_in_words(losses: Mapping[str, float]) -> str:
    """Writes losses with their names.

    Example:
        >>> losses_in_words({"ctc": 4.21345, "rkd": 0.01234567})
        'ctc 4.213, rkd 0.01235'
    """
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def percent(rate: float | None) -> str:
    """Writes an error rate in percent; nothing for None.

    Example:
        >>> percent(0.0807)
        '8.07 %'
    """
    return "" if rate is None else f"{100 * rate:.2f} %"


def _with_wer(path: Path, wer: float | None) -> str:
    return str(path) if wer is None else f"{path} (val_wer {percent(wer)})"
