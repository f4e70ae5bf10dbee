# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Opens a tar as NeMo does, and checks the names and the size of what is in it."""

from __future__ import annotations

import gzip
import os
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_tutornet.errors import TutorError

_MEMBERS = 10_000
_NAME_BYTES = 255
# Weights shrink by a tenth when they are compressed. A file that unpacks to far more is made to fill a disk.
_UNPACKED_RATIO, _UNPACKED_BYTES = 20, 64 << 20
_PADDING_BYTES = 1 << 20  # zeros after the end mark; tar writes up to 10 KB
_BLOCK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def open_tar(path: Path) -> tarfile.TarFile:
    """Opens a tar as NeMo opens it: first without compression, then as gzip.

    Python's own choice tries gzip first, so a file that is both would be another archive for NeMo.

    Args:
        path: the file.

    Returns:
        The archive, open for reading.

    Raises:
        tarfile.TarError: it is neither.
        OSError: it cannot be read.
    """
    try:
        return tarfile.open(path, "r:")
    except tarfile.ReadError:
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                raise
    return tarfile.open(path, "r:gz")


def check_unpacked_size(path: Path) -> None:
    """Rejects a compressed archive that would fill the memory or the disk.

    Args:
        path: the file.

    Raises:
        TutorError: it unpacks to far more than weights do.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return
    most = _UNPACKED_RATIO * path.stat().st_size + _UNPACKED_BYTES
    with gzip.open(path) as stream:
        unpacked = 0
        while block := stream.read(_BLOCK_BYTES):
            unpacked += len(block)
            if unpacked > most:
                raise TutorError(
                    f"{path} unpacks to more than {most >> 20} MB, which no weights do; take the file from "
                    "its source again."
                )


class Names:
    """The names in an archive, each of which must be plain and the only one of its kind.

    Names that differ in case only, or in the way of writing an accent, are one file on some disks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, bool] = {}  # a folder?

    def add(self, name: str, is_folder: bool) -> None:
        """Adds a normalised name.

        Raises:
            TutorError: the name is not plain, or there is another member of it.
        """
        if not name.isprintable() or "\\" in name or len(name.encode()) > _NAME_BYTES:
            raise foreign(self._path, name, "a name of a length or with characters that no file here has")
        key = unicodedata.normalize("NFC", name).casefold()
        if key in self._found and not (self._found[key] and is_folder):
            raise TutorError(
                f"{self._path} holds {name!r} twice, and NeMo may restore another one than was checked; take "
                "the file from its source again."
            )
        if len(self._found) == _MEMBERS:
            raise TutorError(
                f"{self._path} holds more than {_MEMBERS} files, and a NeMo checkpoint a few; take the file "
                "from its source again."
            )
        self._found[key] = is_folder


def checked_members(members: Iterable[tarfile.TarInfo], path: Path) -> dict[str, tarfile.TarInfo]:
    """Checks the members of an archive, and returns them by their normalised names.

    Members with ambiguous names are rejected, because NeMo, Riva and tar resolve such names differently. One
    program might then use another file than the one that was checked.
    """
    found: dict[str, tarfile.TarInfo] = {}
    names = Names(path)
    for member in members:
        name = os.path.normpath(member.name)
        parts = PurePosixPath(member.name).parts
        if os.path.isabs(member.name) or ".." in parts or (name == "." and not member.isdir()):
            raise foreign(path, member.name, "a name that leads out of it")
        if member.issym() or member.islnk():
            raise foreign(path, member.name, "a link")
        if not member.isdir() and (member.type not in _FILE_TYPES or member.issparse()):
            raise foreign(path, member.name, "no regular file")
        names.add(name, member.isdir())
        found[name] = member
    for name in found:
        for parent in list(PurePosixPath(name).parents)[:-1]:
            if str(parent) in found and not found[str(parent)].isdir():
                raise foreign(path, name, "a member inside of a file")
    return found


def check_padding(file: Any, path: Path) -> None:
    """Rejects an archive with something behind its end mark: some programs read on there."""
    rest = file.read(_PADDING_BYTES + 1)
    if len(rest) > _PADDING_BYTES or rest.strip(b"\0"):
        raise TutorError(
            f"{path} goes on behind the end of its archive, where NeMo does not read but other programs may; "
            "take the file from its source again."
        )


def foreign(path: Path, name: str, what: str) -> TutorError:
    """Returns the error for a member that a NeMo checkpoint does not have."""
    return TutorError(
        f"{path} holds {name[:200]!r}, {what}, but a NeMo checkpoint has regular files under plain names "
        "only; it was not opened, take the file from its source again."
    )
