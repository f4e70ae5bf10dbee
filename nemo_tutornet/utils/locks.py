# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A lock on a folder, for work that only one process at a time may do there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked_folder(folder: Path, note_wait: Callable[[], None]) -> Iterator[None]:
    """Locks a folder while the block runs, and waits first while another process holds the lock.

    The system releases the lock when the process ends in any way. Where the file system has no locks, the
    block runs without one.

    Args:
        folder: the folder; made if need be. The lock is its file `.lock`, which stays.
        note_wait: called once before it waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note_wait()
        lock.acquire()
    except NotImplementedError:  # the file system has no locks
        pass
    try:
        yield
    finally:
        lock.release()
