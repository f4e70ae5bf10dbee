# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A program in a warm Python behaves as in a fresh one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import FRESH

TELL = """
import json, os, sys
told = [sys.argv, os.getcwd(), os.environ.get("WORD"), sys.stdin.read(), "nemo_tutornet" in sys.modules]
print(json.dumps([*told, __name__, __name__ == sys.modules["__main__"].__name__]))
print("an error", file=sys.stderr)
sys.exit(7)
"""


def run(python: str, *arguments: str, folder: Path) -> tuple[int, str, str]:
    environment = {**os.environ, "WORD": "ä"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env=environment, input="in", capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
def test_what_a_program_sees_and_how_it_ends(how, tmp_path):
    (tmp_path / "tell.py").write_text(TELL)
    arguments = {"-c": ["-c", TELL], "-m": ["-m", "tell"], "script": ["tell.py"]}[how]
    found = run(sys.executable, *arguments, "a b", folder=tmp_path)
    assert found == run(FRESH, *arguments, "a b", folder=tmp_path) and found[0] == 7


def test_what_has_been_imported_and_what_a_program_starts(tmp_path):
    code = "import subprocess, sys; print('nemo' in sys.modules, flush=True)"
    again = f"{code}; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    assert run(sys.executable, "-c", again, folder=tmp_path) == (0, "True\nTrue\n", "")


def test_an_exception_ends_it(tmp_path):
    code, printed, error = run(sys.executable, "-c", "1 / 0", folder=tmp_path)
    assert (code, printed) == (1, "") and error.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_the_program(number, tmp_path):
    """Its output ends when the program itself has ended."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    assert process.stdout is not None and int(process.stdout.readline()) != process.pid
    process.send_signal(number)
    assert "Killed" not in process.communicate(timeout=60)[1] and process.returncode == -number


@pytest.mark.parametrize("asked", [False, True])
def test_a_client_that_is_killed_while_it_asks_leaves_no_process(asked, warm_programs):
    if warm_programs is None:
        pytest.skip("no program starts warm here")
    path = str(warm_programs / "socket")

    def processes() -> set[str]:
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if path.encode() in (process / "cmdline").read_bytes():
                    found.add(process.name)
            except OSError:
                continue
        return found

    before, client = processes(), socket.socket(socket.AF_UNIX)
    client.connect(path)
    if asked:
        socket.send_fds(client, [(1000).to_bytes(4, "big")], [0, 1, 2])  # the length of what never comes
    deadline = time.monotonic() + 60
    # Another client's process may end in between.
    while not (added := processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert added
    client.close()
    while processes() & added and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes() & added
