# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command ends on a signal with one line and the exit code of a stopped program."""

from __future__ import annotations

import logging
import signal
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from nemo_tutornet.cli import app

# The function that a command calls, and the command's arguments. `adapt`, `cache` and `demo` keep parts of
# what they did, and have tests of their own.
CONFIG = "--config-name=small/quartznet_small"
COMMANDS = {
    "inspect": ("nemo_tutornet.commands.inspect_model.inspect_model", ["student.nemo"]),
    "check": (
        "nemo_tutornet.commands.check.check_training",
        [CONFIG, "model.tutor.teacher.model_path=t.nemo"],
    ),
    "pseudo-labels": ("nemo_tutornet.commands.pseudo_labels.write_pseudo_manifest", ["m.jsonl", "p.jsonl"]),
    "export": ("nemo_tutornet.export.student.export_student", ["a.nemo", "b.nemo"]),
    "verify": ("nemo_tutornet.export.verify.verify_received", ["student.nemo"]),
    "evaluate": ("nemo_tutornet.evaluation.evaluate.evaluate", ["student.nemo", "--manifest=m.jsonl"]),
    "report": ("nemo_tutornet.commands.write_report.write_report", ["student.nemo", "--manifest=m.jsonl"]),
}


def test_every_command_is_here():
    assert {*COMMANDS, "adapt", "cache", "demo"} == {*get_command(app).commands}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stopped_command(command, monkeypatch):
    function, arguments = COMMANDS[command]
    called: list[int] = []

    def stopped(*_: Any, **__: Any) -> None:
        called.append(1)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(function, stopped)
    done = CliRunner().invoke(app, [command, *arguments])
    assert called and done.exit_code == 143, done.output
    assert done.stderr.splitlines()[-1].startswith("stopped by SIGTERM: ")


def test_commands_hide_what_nemos_packages_say_of_themselves(monkeypatch):
    names = ("nv_one_logger", "pytorch_lightning.utilities.rank_zero")
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    assert app.registered_callback is not None and app.registered_callback.callback is not None
    app.registered_callback.callback()  # it runs before every command
    assert [logging.getLogger(name).level for name in names] == [logging.ERROR, logging.WARNING]
