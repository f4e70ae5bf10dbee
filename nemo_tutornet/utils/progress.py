# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Progress of a long job: a bar on a terminal, and a line every minute in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

# A log file gets a line not more often than this, and a bar a new text.
SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_REFRESHES = 0.5


class Progress:
    """A context that shows how far a job is, and the time left by its mean speed so far.

    On a terminal it shows a bar. Elsewhere it prints a line at the start and then one every minute. Messages
    of loggers do not tear the bar.

    Args:
        job: name of the job, at the beginning of the bar and of each line.
        total: amount of work; None where it is not known, so that no time left is shown.
        amount: writes the finished amount in words, e.g. `"3 of 8 batches"`.
        console: where it is shown; None is standard error.
        clock: returns seconds; a test's own.
        seconds_between_lines: shortest time between two lines.

    Example:
        >>> with Progress("teacher", 3, of_total(3, "batches"), Console()) as progress:
        ...     progress.update(3, line=True)
        teacher: 0 of 3 batches
        teacher: 3 of 3 batches
    """

    def __init__(
        self,
        job: str,
        total: float | None,
        amount: Callable[[float], str],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._job, self._total, self._amount, self._clock = job, total, amount, clock
        self._console = console or Console(stderr=True)
        self._seconds_between_lines = seconds_between_lines
        self._bar: RichProgress | None = None
        self._stack = ExitStack()
        self._status = ""
        self._completed = self._first = 0.0

    def start_at(self, completed: float) -> Progress:
        """Sets the amount that was finished before, by a run that is continued."""
        self._completed = self._first = completed
        return self

    def __enter__(self) -> Progress:
        self._start = self._shown = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = RichProgress(
                _Words("job"),
                BarColumn(bar_width=20),
                _Words("amount"),
                _Words("left"),
                _Words("status"),
                console=self._console,
                # What is printed to a file must not appear on the terminal.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            streams = sys.stdout, sys.stderr
            self._task = self._bar.add_task(
                "", total=self._total, completed=int(self._completed), job=self._job_in_bar(), **self._words()
            )
            self._stack.enter_context(self._bar)
            self._stack.enter_context(_loggers_follow(*streams))
        else:
            self._print_line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            words = {**self._words(), "left": ""}
            self._bar.update(self._task, completed=self._completed, **words)
            if self._total is None and kind is None:
                self._bar.update(self._task, total=1, completed=1)  # no moving bar is left behind
        self._stack.close()

    @property
    def completed(self) -> float:
        """The finished amount."""
        return self._completed

    @property
    def is_due(self) -> bool:
        """Whether an update would be shown now, for callers whose texts are costly."""
        pause = self._seconds_between_lines if self._bar is None else _SECONDS_BETWEEN_REFRESHES
        return self._clock() - self._shown >= pause

    def advance(self, amount: float) -> None:
        """Adds to the finished amount."""
        self.update(self._completed + amount)

    def update(self, completed: float, status: str | None = None, line: bool = False) -> None:
        """Sets the finished amount.

        Args:
            completed: the finished amount.
            status: more words, e.g. a loss; None leaves them as they are.
            line: show it now, also if the last line is more recent.
        """
        self._completed = completed
        if status is not None:
            self._status = status
        if line or self.is_due:
            self._shown = self._clock()
            self._show()

    def _show(self) -> None:
        if self._bar is None:
            self._print_line()
        else:
            self._bar.update(self._task, completed=self._completed, **self._words())

    def _job_in_bar(self) -> str:
        # The middle of a long path is cut, so that there is room for the numbers.
        most = max(20, self._console.width - 60)
        if len(self._job) <= most:
            return self._job
        return f"{self._job[: most // 2 - 1]}\u2026{self._job[-(most - most // 2) :]}"

    def _words(self) -> dict[str, Any]:
        left = self.seconds_left()
        return {
            "amount": self._amount(self._completed),
            "left": "" if left is None else f"{in_words(left)} left",
            "status": self._status,
        }

    def seconds_left(self) -> float | None:
        """Returns the time left by the mean speed so far; None where nothing is known or left."""
        done = self._completed - self._first
        if self._total is None or done <= 0 or self._completed >= self._total:
            return None
        return (self._total - self._completed) * (self._clock() - self._start) / done

    def _print_line(self) -> None:
        words = self._words()
        parts = [part for part in (words["amount"], words["status"], words["left"]) if part]
        text = f"{self._job}: {', '.join(parts)}" if parts else self._job
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()  # a log file is read while the job runs


class _Words(ProgressColumn):
    """Shows a field of the task; the last column is cut where the terminal is narrow."""

    max_refresh = None

    def __init__(self, field: str) -> None:
        cut = field == "status"
        column = Column(no_wrap=True, overflow="ellipsis", ratio=1 if cut else None)
        super().__init__(table_column=column)
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(task.fields[self._field])


class PartReport(Protocol):
    """Shows which part of a job is being done, and how far it is."""

    def __call__(self, part: str, done: int = 0, total: int | None = None) -> None:
        """Shows a part.

        Args:
            part: what is being done; another part than before begins a new bar or line.
            done: finished amount of it.
            total: the whole; None where it cannot be counted.
        """


def no_report(part: str, done: int = 0, total: int | None = None) -> None:
    """Shows nothing: a `PartReport` for callers that want none."""


@contextmanager
def report_parts(
    unit: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[PartReport]:
    """Yields a function that shows the parts of a job one after the other, each in a `Progress`.

    Args:
        unit: what is counted within a part, in the plural.
        console: where it is shown; None is standard error.
        clock: returns seconds; a test's own.

    Example:
        >>> with report_parts("utterances", Console()) as report:
        ...     report("writing student.nemo")
        ...     report("verifying", 0, 3)
        writing student.nemo
        verifying: 0 of 3 utterances
    """
    with ExitStack() as stack:
        current: list[tuple[str, Progress]] = []

        def report(part: str, done: int = 0, total: int | None = None) -> None:
            if not current or current[0][0] != part:
                stack.close()
                amount = of_total(total, unit) if total is not None else lambda done: ""
                current[:] = [(part, stack.enter_context(Progress(part, total, amount, console, clock)))]
            current[0][1].update(done)

        yield report


def of_total(total: int | None, unit: str) -> Callable[[float], str]:
    """Returns a function that writes a count, e.g. `"3 of 8 batches"`.

    Args:
        total: the whole; None where it is not known.
        unit: what is counted, in the plural.

    Example:
        >>> of_total(8, "batches")(3.0)
        '3 of 8 batches'
    """
    return lambda done: f"{done:.0f} {unit}" if total is None else f"{done:.0f} of {total} {unit}"


def in_words(seconds: float) -> str:
    """Writes a duration with two digits of precision or so.

    Example:
        >>> [in_words(seconds) for seconds in (3.2, 59.8, 200.0, 7500.0, 200000.0)]
        ['3 s', '1 min', '3 min', '2 h 05 min', '2 d 7 h']
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def _loggers_follow(stdout: object, stderr: object) -> Iterator[None]:
    """Makes the handlers of loggers write to what replaces the streams while a bar is shown.

    A handler keeps the stream that it was made with, so rich could not print its messages above the bar.

    Args:
        stdout: standard output before the bar was shown.
        stderr: standard error before.
    """
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    changed = []
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            before = getattr(handler, "stream", None)
            now = {id(stdout): sys.stdout, id(stderr): sys.stderr}.get(id(before))
            if now is not None and now is not before:
                handler.setStream(now)
                changed.append((handler, before))
    try:
        yield
    finally:
        for handler, before in changed:
            handler.setStream(before)
