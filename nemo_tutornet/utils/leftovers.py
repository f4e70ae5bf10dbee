# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Temporary folders that a killed process left: how they are named and locked, and how they are removed.

A living process holds a lock on each of its temporary folders, and the system releases it when the process
ends in any way. So a folder that can be locked belongs to nobody. Another machine does not see the lock.
Therefore the name tells the machine, and its folders are removed only when they are old.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds after which another machine's folder is taken for a leftover.
_OLD = 24 * 3600.0
# Seconds that a process may take between making a folder and locking it.
_UNLOCKED = 60.0
_NAME = re.compile(r"^\.(?:.*\.)?tutornet-(?:(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-)?[a-z0-9_]+\.tmp$")
# The names that earlier versions gave: the file's name and eight characters.
_EARLIER_NAME = re.compile(r"^\..+\.(?:nemo|ckpt|onnx|json|jsonl|safetensors|html|pt)\.[a-z0-9_]{8}\.tmp$")


@contextmanager
def locked_temporary_folder(folder: Path, stem: str = "") -> Iterator[Path]:
    """Yields a hidden temporary folder inside a folder, and removes it at the end.

    Args:
        folder: the folder; it exists.
        stem: what the name begins with, after its dot.
    """
    prefix = f".{stem}tutornet-{_machine()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=folder, prefix=prefix, suffix=".tmp") as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):  # the file system has no locks
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes the temporary folders of killed processes from a folder.

    Those of a living process stay, and those of another machine that are not older than a day.

    Args:
        folder: is searched, without its subfolders; it may be absent.

    Returns:
        What was removed.
    """
    removed = []
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = _NAME.match(entry.name)
            if name is None and _EARLIER_NAME.match(entry.name) is None:
                continue
            if entry.is_dir(follow_symlinks=False) and _is_left(Path(entry.path), name):
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
    return removed


def _is_left(path: Path, name: re.Match[str] | None) -> bool:
    """Tells whether the process that made a temporary folder is gone."""
    machine = None if name is None else name["machine"]
    try:
        age = time.time() - path.stat().st_mtime
        if machine not in (None, _machine()):
            return age > _OLD
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # another process removed it meanwhile, or it is not ours
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return age > _OLD
    finally:
        os.close(lock)
    process = None if name is None or name["process"] is None else int(name["process"])
    return process is None or age > _UNLOCKED or not _is_alive(process)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def _machine() -> str:
    """Returns what tells this machine from others, without its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
