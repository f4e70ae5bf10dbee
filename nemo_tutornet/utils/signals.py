# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Ending of a long command by Ctrl-C or SIGTERM: one line that says how to continue, and an exit code that a
scheduler takes for stopped, not for finished.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The process was asked to stop.

    Not a `KeyboardInterrupt`, which Lightning catches, and not an `Exception`, so that code which survives
    errors does not survive this.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_on_signals(how_to_continue: str) -> Iterator[None]:
    """Ends the process on Ctrl-C and SIGTERM with one line on standard error.

    The exit code is 128 plus the signal's number, as for a process that the signal kills: 130 for Ctrl-C, 143
    for SIGTERM. Files that are being written are cleaned up on the way. The workers of a data loader, which
    are forked from the process, print nothing.

    Args:
        how_to_continue: the end of the line: what is kept, and how to go on.
    """
    before: dict[int, Any] = {}
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Stopped(number)
        _end_worker(number)

    if threading.current_thread() is threading.main_thread():  # no other thread may set a handler
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):  # nohup has Ctrl-C ignored
                before[number] = signal.signal(number, stop)
    try:
        yield
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        print(f"stopped by {name}: {how_to_continue}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)


def _end_worker(number: int) -> None:
    """Does in a forked process, which inherits the handler, what Python does without it.

    PyTorch's workers expect a `KeyboardInterrupt`, and would print a traceback of any other exception.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
