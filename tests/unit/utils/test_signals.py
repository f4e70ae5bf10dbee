# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A long command that is stopped says how to continue, and its exit code says that it was stopped."""

from __future__ import annotations

import signal
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
