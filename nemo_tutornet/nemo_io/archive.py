# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and unpacks `.nemo` files, which are untrusted input and are checked when they are opened."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.nemo_io.stock_config import target_of
from nemo_tutornet.nemo_io.tar_members import (
    Names,
    check_padding,
    check_unpacked_size,
    checked_members,
    foreign,
    open_tar,
)
from nemo_tutornet.utils.files import open_regular_file, sha256_of
from nemo_tutornet.utils.interpolations import check_interpolations
from nemo_tutornet.utils.yaml_aliases import check_aliases

MODEL_CONFIG, MODEL_WEIGHTS = "model_config.yaml", "model_weights.ckpt"
# Even a config with a vocabulary of many thousand pieces is smaller. A parser needs seconds for a megabyte.
_CONFIG_BYTES = 4 << 20
_MEMBER_BYTES = 64 << 20  # of a file that is read whole; the weights are not
_BLOCK_BYTES = 1 << 20


class NemoArchive:
    """One `.nemo` file, or the folder that one was unpacked to.

    Open it once per operation and pass the object on, so that the file is not checked again. The archive
    contains regular files only, each under one plain name. `unpack` writes exactly these files. It writes the
    config with the bytes that were read when the archive was opened.

    Args:
        path: a `.nemo` file (tar, also compressed with gzip), or a folder.

    Attributes:
        path: the path as given.
        is_folder: True for a folder.
        config: content of `model_config.yaml`, with unresolved interpolations.

    Raises:
        TutorError: the file does not exist; it is not a readable `.nemo`; a member is a link or a device, has
            a name that leads out of the archive, or has the name of another member; something stands behind
            the archive's end; or the file exceeds a limit of `docs/security.md`.
    """

    def __init__(self, path: Path, _before: NemoArchive | None = None) -> None:
        self.path = Path(path)
        self.is_folder = self.path.is_dir()
        self._place = self.path.absolute()  # NeMo changes the working directory
        self._files: dict[str, tarfile.TarInfo | None] = {}
        with self._readable():
            self._config_bytes = self._read_folder() if self.is_folder else self._read_file()
            self._opened = self._fingerprint()
        if _before is not None and _before._config_bytes == self._config_bytes:
            self.config: DictConfig = _before.config
        else:
            self.config = _as_config(self._config_bytes, self.path)

    @classmethod
    def of(cls, source: Path | NemoArchive) -> NemoArchive:
        """Opens the archive at a path, or returns an archive as it is."""
        return source if isinstance(source, NemoArchive) else cls(source)

    @property
    def target(self) -> str:
        """Class that the config names, for messages and comparison. It is never imported."""
        return target_of(self.config)

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the file; for a folder, of the names and sha256 of its files."""
        self._check_unchanged()
        if not self.is_folder:
            return sha256_of(self._place)
        listed = "".join(f"{sha256_of(self._place / name)}  {name}\n" for name in sorted(self._files))
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def members(self) -> tuple[str, ...]:
        """Normalised names of the files, relative to the archive and in its order."""
        return tuple(self._files)

    def read(self, name: str) -> bytes:
        """Reads one file.

        Args:
            name: one of `members`.

        Returns:
            Content of the file.

        Raises:
            KeyError: there is no such member.
            TutorError: the file cannot be read, has more than 64 MB, or the archive has changed since it was
                opened.
        """
        if name not in self._files:
            raise KeyError(name)
        if self.size_of(name) > _MEMBER_BYTES:
            raise TutorError(
                f"{self.path} holds {name!r} with {self.size_of(name) >> 20} MB, which is larger than any "
                "tokenizer; take the file from its source again."
            )
        return b"".join(block for _, block in self._blocks([name]))

    def size_of(self, name: str) -> int:
        """Returns the bytes of one of the `members`, before it is read."""
        member = self._files[name]
        return (self._place / name).lstat().st_size if member is None else member.size

    def unpack(self, folder: Path, names: Iterable[str] | None = None) -> None:
        """Writes the checked files to a folder.

        Args:
            folder: an existing folder.
            names: the `members` to write; all by default.

        Raises:
            TutorError: a file cannot be read, or the archive has changed since it was opened.
            OSError: a file cannot be written.
        """
        blocks = self._blocks(self.members if names is None else names)
        for name, content in itertools.groupby(blocks, key=lambda pair: pair[0]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as copy:
                for _, block in content:
                    copy.write(block)

    def reopened(self) -> NemoArchive:
        """Opens the archive at the same path again, after this process has rewritten the file.

        An unchanged config is not parsed again.
        """
        return NemoArchive(self.path, self)

    def _read_folder(self) -> bytes:
        if not (self.path / MODEL_CONFIG).is_file():
            raise TutorError(f"{self.path} is a folder without {MODEL_CONFIG}; give a .nemo file.")
        names = Names(self.path)
        for folder, folders, files in os.walk(self.path):
            for path in (Path(folder, name) for name in sorted((*folders, *files))):
                mode, name = path.lstat().st_mode, path.relative_to(self.path).as_posix()
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise foreign(self.path, name, "a link" if stat.S_ISLNK(mode) else "no regular file")
                names.add(name, stat.S_ISDIR(mode))
                if stat.S_ISREG(mode):
                    self._files[name] = None
        if (self.path / MODEL_CONFIG).stat().st_size > _CONFIG_BYTES:
            raise _no_config(self.path)
        return (self.path / MODEL_CONFIG).read_bytes()

    def _read_file(self) -> bytes:
        if not self.path.is_file():
            raise TutorError(f"there is no file {self.path}; give the path of a .nemo file.")
        check_unpacked_size(self.path)
        with open_tar(self.path) as archive:
            # Listing every member reads to the end, which a truncated archive does not reach.
            members = checked_members(archive, self.path)
            assert archive.fileobj is not None
            if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:  # the end mark is missing
                raise tarfile.ReadError("unexpected end of data")
            check_padding(archive.fileobj, self.path)
            if MODEL_CONFIG not in members:
                raise TutorError(f"{self.path} holds no {MODEL_CONFIG}; it is not a NeMo checkpoint.")
            config = members[MODEL_CONFIG]
            if not config.isfile() or config.size > _CONFIG_BYTES:
                raise _no_config(self.path)
            self._files = {name: member for name, member in members.items() if member.isfile()}
            stream = archive.extractfile(config)
            assert stream is not None
            return stream.read()

    def _blocks(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yields file contents in parts, each with the file's name. An empty file has one empty part."""
        with self._readable(), ExitStack() as stack:
            self._check_unchanged()
            archive = None if self.is_folder else stack.enter_context(open_tar(self._place))
            for name in names:
                yield name, self._config_bytes if name == MODEL_CONFIG else b""
                if name == MODEL_CONFIG:
                    continue
                with self._stream(name, archive) as stream:
                    while block := stream.read(_BLOCK_BYTES):
                        yield name, block

    def _stream(self, name: str, archive: tarfile.TarFile | None) -> IO[bytes]:
        member = self._files[name]
        if archive is None or member is None:
            return open_regular_file(self._place / name)
        stream = archive.extractfile(member)
        assert stream is not None, "members are regular files"
        return stream

    def _check_unchanged(self) -> None:
        if self._fingerprint() != self._opened:
            raise TutorError(f"{self.path} has changed since it was opened; run the command again.")

    def _fingerprint(self) -> tuple[int, ...]:
        """Returns size, modification time and inode, which tell whether the file was replaced.

        The offsets of the members are not valid in another file.
        """
        found = (self._place / MODEL_CONFIG if self.is_folder else self._place).stat()
        return found.st_size, found.st_mtime_ns, found.st_ino

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Converts the exceptions that a damaged archive can raise to a TutorError."""
        try:
            yield
        except TutorError:
            raise
        except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
            if self.path.suffix == ".ckpt":
                raise TutorError(
                    f"{self.path} is no .nemo file; make one of a run's .ckpt with `nemo-tutornet export` "
                    "first."
                ) from None
            if isinstance(error, PermissionError):
                raise TutorError(
                    f"permission denied: {self.path}; change its mode or give another path."
                ) from None
            first = first_line(error).rstrip(":")
            raise TutorError(
                f"{self.path} is not a readable .nemo file ({first}); it may be truncated, copy it again."
            ) from None


def sha256_of_model(path: Path) -> str:
    """Returns the hexadecimal sha256 of a `.nemo` file, or of the folder that one was unpacked to.

    Args:
        path: the file, which is not opened as an archive, or the folder.

    Raises:
        TutorError: the folder is not an unpacked `.nemo`.
    """
    return NemoArchive(path).sha256 if path.is_dir() else sha256_of(path)


def _no_config(path: Path) -> TutorError:
    return TutorError(
        f"{path} holds a {MODEL_CONFIG} that is no file of a config's size; it is not a NeMo checkpoint."
    )


def _as_config(content: bytes, path: Path) -> DictConfig:
    try:
        check_aliases(content)
        config = OmegaConf.create(content.decode("utf-8"))
        if isinstance(config, DictConfig):
            check_interpolations(OmegaConf.to_container(config, resolve=False))
    except Exception as error:  # a value with a tag of its own can make the parser raise any exception
        first = str(error).splitlines()[0][:200] if str(error) else "not a mapping"
        raise TutorError(
            f"{path}: {MODEL_CONFIG} is not readable ({first}); take the file from its source again."
        ) from None
    if not isinstance(config, DictConfig):
        raise TutorError(f"{path}: {MODEL_CONFIG} is not a mapping; it is not a NeMo checkpoint.")
    return config
