# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files: checksums, atomic writing, and steps that no signal interrupts."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.full_disk import name_full_disk
from nemo_tutornet.utils.leftovers import locked_temporary_folder, remove_leftovers

SET_CACHE = "set XDG_CACHE_HOME to a folder that can be written to"


def sha256_of(path: Path) -> str:
    """Computes the sha256 of a file, as hexadecimal digits.

    Example:
        >>> import tempfile
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


def user_cache() -> Path:
    """Returns the folder of this package in the user's cache folder; it may not exist yet.

    Raises:
        TutorError: the user has no home folder, as in a container that runs under any number.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # another one is to be ignored, as the specification of these folders says
        return named / "nemo_tutornet"
    try:
        return Path.home() / ".cache" / "nemo_tutornet"
    except RuntimeError:
        raise TutorError(f"this user has no home folder; {SET_CACHE}.") from None


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


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Reads a small file whole; a link is followed, but to no device and no pipe.

    Args:
        path: the file.
        most_bytes: size that no file of its kind exceeds.

    Raises:
        OSError: it is no regular file, is larger, or cannot be read.
    """
    with open_regular_file(path.resolve()) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes >> 20} MB", str(path))
    return content


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


def check_output_file(path: Path, suffix: str) -> None:
    """Checks that `--output` names a file that can be written, before hours of work.

    Args:
        path: the file; it may exist.
        suffix: the ending of its name.

    Raises:
        TutorError: it has another ending, is a folder, or its folder can neither be used nor made.
    """
    if path.suffix != suffix:
        raise TutorError(f"--output is {path}, but the name of the file must end with {suffix}.")
    if path.is_dir():
        raise TutorError(f"--output {path} is a folder; give the path of a file.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise TutorError(f"--output {path}: {there} is no folder; give the path of a file in one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise TutorError(f"--output {path}: {there} cannot be written to; give another path.")


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
def staging_directories(*folders: Path, stem: str = "", durable: bool = False) -> Iterator[dict[Path, Path]]:
    """Yields a temporary folder for each folder; when the block ends, the files of all move together.

    A folder inside a temporary folder moves as one, too, and replaces a folder of its name with all that is
    in it. The temporary folders that a killed process left there are removed.

    Args:
        folders: where the files go; made if need be.
        stem: what the names of the temporary folders begin with, after their dot.
        durable: whether the files must survive a power cut as soon as this returns.

    Raises:
        OSError: a file cannot be written. Where the disk is full, the error names a folder, whatever library
            reported it.
    """
    with ExitStack() as stack:
        stages: dict[Path, Path] = {}
        for folder in dict.fromkeys(folders):
            stack.enter_context(name_full_disk(folder))
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            stages[folder] = stack.enter_context(locked_temporary_folder(folder, stem))
        yield stages
        targets = {
            path: folder / path.name for folder, stage in stages.items() for path in sorted(stage.iterdir())
        }
        for path, target in targets.items():
            folder_there = target.is_dir() and not target.is_symlink()
            if folder_there and not path.is_dir():  # the one name that no file can take
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
            if path.is_dir() and not folder_there and (target.exists() or target.is_symlink()):
                raise NotADirectoryError(errno.ENOTDIR, f"{target} is no folder")
        if durable:
            for path in targets:
                _sync(path)
        with defer_signals():
            for path, target in targets.items():
                if path.is_dir() and target.is_dir():  # a folder takes no other's name while that has files
                    os.replace(target, path.with_name(f".{path.name}.replaced"))
                os.replace(path, target)
            if durable:
                for folder in stages:
                    _sync(folder)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Puts an interrupt or a plain kill off until a step that must not be left half done is over."""
    seen: list[int] = []
    handlers: dict[int, Any] = {}  # what stood before
    # Only the main thread is interrupted, and only it may set a handler.
    if threading.current_thread() is threading.main_thread():
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
    `.tmp`. The next file that is written to the same folder removes it.

    Args:
        path: the file.
        durable: whether the file must survive a power cut as soon as this returns.

    Raises:
        OSError: the disk is full, or another reason of the system's; an older file stays as it was.
    """
    stem = f"{path.name[:50]}."  # a file's name may be as long as the system lets it, this one is longer
    with staging_directories(path.parent, stem=stem, durable=durable) as stages, name_full_disk(path):
        yield stages[path.parent] / path.name


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
