# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files: checksums, atomic writes, and steps that signals do not interrupt."""

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
    """Computes the sha256 of a file, as hexadecimal digits.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "empty"
        >>> _ = path.write_bytes(b"")
        >>> sha256_of(path)[:8]
        'e3b0c442'
        >>> folder.cleanup()
    """
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
    """Yields a temporary folder inside `folder` whose files move into `folder` when the block ends.

    After an error in the block no file moves, and the temporary folder is removed.

    Args:
        folder: the destination; it is created if need be.

    Raises:
        IsADirectoryError: a file of the block has the name of a folder in `folder`; no file moves.
    """
    with staging_directories(folder) as stages:
        yield stages[folder]


@contextmanager
def staging_directories(*folders: Path) -> Iterator[dict[Path, Path]]:
    """Yields a temporary folder inside each of several folders; all files move when the block ends.

    Works as `staging_directory` does.

    Args:
        folders: the destinations; they are created if need be.

    Raises:
        IsADirectoryError: a file of the block has the name of a folder in its destination; no file moves.
    """
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
            if target.is_dir() and not target.is_symlink():  # os.replace would fail halfway
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
        with defer_signals():
            for path, target in targets.items():
                os.replace(path, target)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the block ends, for a step that must not stop halfway.

    Raises:
        KeyboardInterrupt: a signal arrived during the block, and its handler was the system's default.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}  # the handlers before the block
    # Python delivers signals to the main thread only, and only that thread may set a handler.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # a handler that C code installed cannot be restored
                handlers[number] = signal.signal(number, lambda signum, _: received.append(signum))
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for signum in received:
        if callable(handlers[signum]):
            handlers[signum](signum, None)
        elif handlers[signum] == signal.SIG_DFL:
            raise KeyboardInterrupt


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file and renames the file to `path` when the block ends.

    After an error in the block, `path` is as it was before.

    Args:
        path: the destination; its folder is created if need be.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    with staging_directory(path.parent) as folder:
        yield folder / path.name


def write_file(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all, and flushes it and its folder to the disk.

    Args:
        path: the file; an older one is replaced.
        content: its bytes.

    Raises:
        TutorError: the file cannot be written, e.g. because the disk is full; no part of it is left.
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
            f"{path} cannot be written ({error.strerror or error}); make room or fix the folder and run the "
            "command again; the finished shards are kept."
        ) from None
