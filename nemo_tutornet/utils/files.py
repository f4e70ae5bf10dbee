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


def expand_user(path: str | Path) -> Path:
    """Replaces `~` and `~NAME` at the start of a path by the home folder.

    A `~NAME` of nobody stays as it is, as in a shell, so that the message about the missing file has it.

    Example:
        >>> str(expand_user("~nobody-of-this-name/a.nemo"))
        '~nobody-of-this-name/a.nemo'
    """
    return Path(os.path.expanduser(path))


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


def make_output_folder(folder: Path) -> None:
    """Makes the folder that `--output` names, where there is none.

    Raises:
        TutorError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TutorError(
            f"--output {folder} cannot be used ({error.strerror}); give a folder to write to."
        ) from None


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
def staging_directories(
    *folders: Path, prefix: str = ".tutornet-", durable: bool = False
) -> Iterator[dict[Path, Path]]:
    """Yields a temporary folder for each folder; when the block ends, the files of all move together.

    Args:
        folders: where the files go; made if need be.
        prefix: of the temporary folders' names, which end in `.tmp`.
        durable: whether the files must survive a power cut as soon as this returns.
    """
    with ExitStack() as stack:
        stages: dict[Path, Path] = {}
        for folder in dict.fromkeys(folders):
            folder.mkdir(parents=True, exist_ok=True)
            stages[folder] = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=prefix, suffix=".tmp"))
            )
        yield stages
        targets = {
            path: folder / path.name for folder, stage in stages.items() for path in sorted(stage.iterdir())
        }
        for target in targets.values():
            if target.is_dir() and not target.is_symlink():  # the one name that no file can take
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
        if durable:
            for path in targets:
                _sync(path)
        with defer_signals():
            for path, target in targets.items():
                os.replace(path, target)
            if durable:
                for folder in stages:
                    _sync(folder)


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
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary place for a file and renames it at the end, so that no half-written file stays
    behind.

    A kill before the end leaves a hidden folder, whose name begins with a dot and the file's name and ends in
    `.tmp`.

    Args:
        path: the file.
        durable: whether the file must survive a power cut as soon as this returns.

    Raises:
        OSError: the disk is full, or another reason of the system's; an older file stays as it was.
    """
    prefix = f".{path.name[:50]}."  # a file's name may be as long as the system lets it, this one is longer
    with staging_directories(path.parent, prefix=prefix, durable=durable) as stages:
        yield stages[path.parent] / path.name


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
