# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files: checksums, atomic writing, and steps that no signal interrupts."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nemo_tutornet.errors import TutorError


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def open_regular_file(path: Path) -> IO[bytes]:
    """Opens a file for reading that is no link, no device and no pipe.

    Raises:
        OSError: it is one of these, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def staging_directory(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder inside `folder`; at the end its files are renamed into `folder`, after an
    error none is.
    """
    with staging_directories(folder) as stages:
        yield stages[folder]


@contextmanager
def staging_directories(*folders: Path) -> Iterator[dict[Path, Path]]:
    """`staged` for several folders, whose files appear together: yields the temporary folder of each."""
    with ExitStack() as stack:
        stages: dict[Path, Path] = {}
        for folder in dict.fromkeys(folders):
            folder.mkdir(parents=True, exist_ok=True)
            stages[folder] = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".tutornet-"))
            )
        yield stages
        targets = {
            path: folder / path.name for folder, stage in stages.items() for path in sorted(stage.iterdir())
        }
        for target in targets.values():
            if target.is_dir() and not target.is_symlink():  # the one name that no file can take
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
        with defer_signals():
            for path, target in targets.items():
                os.replace(path, target)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Puts an interrupt or a plain kill off until a step that must not be left half done is over."""
    seen: list[int] = []
    handlers: dict[int, Any] = {}  # what stood before
    if (
        threading.current_thread() is threading.main_thread()
    ):  # no other thread is interrupted, or may set a handler
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # one that is not Python's could not be put back
                handlers[number] = signal.signal(number, lambda got, _: seen.append(got))
    try:
        yield
    finally:
        for masked, handler in handlers.items():
            signal.signal(masked, handler)
    for got in seen:
        if callable(handlers[got]):
            handlers[got](got, None)
        elif handlers[got] == signal.SIG_DFL:
            raise KeyboardInterrupt


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary place for a file and renames it at the end, so that no half-written file stays
    behind.
    """
    with staging_directory(path.parent) as folder:
        yield folder / path.name


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, on the disk itself when this returns.

    Raises:
        TutorError: the disk is full, or another reason of the system's; nothing is left of the file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise TutorError(
            f"{path} cannot be written ({error.strerror or error}); make room or mend the folder and run the "
            "command again, "
            f"the finished shards are kept."
        ) from None
