# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Progress: lines in a log file by a clock of the test's own, a bar on a terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.console import Console

from nemo_tutornet.utils.progress import Progress, of_total, report_parts


class Clock:
    """A clock that stands still until it is set."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def _log_file() -> Console:
    return Console(file=io.StringIO(), width=40)


def _lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_a_log_file_has_a_line_at_the_start_and_one_every_minute():
    console, clock = _log_file(), Clock()
    with Progress("teacher", 100, of_total(100, "utterances"), console, clock) as progress:
        for _ in range(10):
            clock.seconds += 15
            progress.advance(5)
    assert _lines(console) == [
        "teacher: 0 of 100 utterances",
        "teacher: 20 of 100 utterances, 4 min left",
        "teacher: 40 of 100 utterances, 3 min left",
    ]


def test_a_line_is_never_folded_and_has_no_markup_or_colour():
    console, clock = _log_file(), Clock()
    with Progress("training", 4, of_total(4, "epochs"), console, clock) as progress:
        progress.update(1, "stage [red]rkd[/red] (1 of 2), " + 10 * "rkd 0.1234, ", line=True)
    line = _lines(console)[1]
    assert "[red]rkd[/red]" in line and "\x1b" not in line and len(line) > 100


def test_a_line_can_be_forced_and_restarts_the_minute():
    console, clock = _log_file(), Clock()
    with Progress("training", None, of_total(None, "steps"), console, clock) as progress:
        clock.seconds += 50
        progress.update(5, line=True)
        clock.seconds += 50
        assert not progress.is_due
        progress.update(6)
        clock.seconds += 10
        assert progress.is_due
        progress.update(7)
    # Without a total there is no time left.
    assert _lines(console) == ["training: 0 steps", "training: 5 steps", "training: 7 steps"]


def test_what_an_earlier_run_did_is_not_counted_as_speed():
    console, clock = _log_file(), Clock()
    with Progress("training", 100, of_total(100, "steps"), console, clock).start_at(90) as progress:
        clock.seconds += 60
        progress.update(95)
        assert progress.seconds_left() == pytest.approx(60)
    assert _lines(console)[0] == "training: 90 of 100 steps"


def test_a_terminal_has_a_bar_that_logs_do_not_tear(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    logger, handler = logging.getLogger("a library"), logging.StreamHandler(terminal)
    logger.addHandler(handler)
    console = Console(file=terminal, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    with Progress("teacher", 10, of_total(10, "batches"), console) as progress:
        progress.update(5, "loss 0.5", line=True)
        logger.error("a message")
        assert handler.stream is not terminal  # rich prints it above the bar
    logger.removeHandler(handler)
    assert handler.stream is terminal and sys.stderr is terminal
    shown = terminal.getvalue()
    assert "teacher" in shown and "5 of 10 batches" in shown and "loss 0.5" in shown
    before, message, _ = shown.partition("a message\n")
    assert message and before.endswith(("\x1b[2K", "\r", "\x1b[1A"))  # on a line of its own


def test_an_error_passes_and_leaves_no_bar():
    console = _log_file()
    with pytest.raises(KeyError), Progress("teacher", 2, of_total(2, "batches"), console, Clock()):
        raise KeyError
    assert _lines(console) == ["teacher: 0 of 2 batches"]


def test_parts_of_a_job_follow_each_other():
    console, clock = _log_file(), Clock()
    with report_parts("utterances", console, clock) as report:
        report("writing a.nemo")
        report("transcribing", 0, 50)
        clock.seconds += 61
        report("transcribing", 25, 50)
        report("verifying")
    assert _lines(console) == [
        "writing a.nemo",
        "transcribing: 0 of 50 utterances",
        "transcribing: 25 of 50 utterances, 1 min left",
        "verifying",
    ]


def test_the_middle_of_a_long_name_is_cut_in_a_bar_only():
    job, clock = "transcribing with /a/" + 30 * "long/" + "student.nemo", Clock()
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    with Progress(job, 32, of_total(32, "utterances"), terminal, clock) as progress:
        progress.update(32, line=True)
    shown = terminal.file.getvalue()
    assert "transcribing with /\u2026" in shown and "student.nemo" in shown
    assert "32 of 32 utterances" in shown and "left" not in shown
    console = _log_file()
    with Progress(job, 32, of_total(32, "utterances"), console, clock):
        pass
    assert _lines(console) == [f"{job}: 0 of 32 utterances"]
