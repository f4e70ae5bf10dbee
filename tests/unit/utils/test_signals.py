# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A long command that is stopped says how to continue, and its exit code says that it was stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nemo_tutornet.utils.files import atomic_write
from nemo_tutornet.utils.signals import Stopped, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_block(number, code, tmp_path: Path, capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with (
        pytest.raises(SystemExit) as ended,
        stop_on_signals("do it again."),
        atomic_write(tmp_path / "file") as temporary,
    ):
        temporary.write_text("half")
        try:
            signal.raise_signal(number)
        except Exception:  # code that survives errors
            pytest.fail("the signal was taken for an error")
    assert ended.value.code == code
    assert capsys.readouterr().err == f"stopped by {signal.Signals(number).name}: do it again.\n"
    assert not list(tmp_path.iterdir()), "a half-written file stayed"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals("never."):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_errors_pass():
    with pytest.raises(ValueError, match="mine"), stop_on_signals("never."):
        raise ValueError("mine")
    assert not issubclass(Stopped, (Exception, KeyboardInterrupt))


LOADS = """
import os
import time
from torch.utils.data import DataLoader, Dataset
from nemo_tutornet.utils.signals import stop_on_signals

class Slow(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, i):
        os.write(1, b"loading\\n")  # whole, whatever the other worker writes
        time.sleep(600)

with stop_on_signals("do it again."):
    list(DataLoader(Slow(), num_workers=2, batch_size=None, multiprocessing_context="fork"))
"""


def test_the_workers_of_a_data_loader_print_nothing():
    """Ctrl-C in a terminal reaches them, too."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["loading\n"] * 2
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "stopped by SIGINT: do it again.\n")


def wait(ready: Connection) -> None:
    ready.send(None)
    time.sleep(600)


def test_a_forked_process_ends_by_sigterm():
    ready, theirs = multiprocessing.Pipe()
    with stop_on_signals("never."):
        child = multiprocessing.get_context("fork").Process(target=wait, args=[theirs])
        child.start()
        ready.recv()
        os.kill(child.pid, signal.SIGTERM)
        child.join()
    assert child.exitcode == -signal.SIGTERM
