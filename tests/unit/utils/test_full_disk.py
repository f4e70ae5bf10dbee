# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A full disk ends a command with one sentence that names the place, whatever library reports it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_tutornet.errors import TutorError, exit_on_user_error
from nemo_tutornet.utils.files import atomic_write, staging_directory

WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(bytes(1 << 20)),
    "torch": lambda path: torch.save({"a": torch.zeros(1 << 18)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(1 << 18)}, path),
}


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may be longer than 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_libraries_that_cannot_write(
    tmp_path: Path, writer: str, small_files_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")

    @exit_on_user_error
    def command() -> None:
        with atomic_write(path) as temporary:
            WRITERS[writer](temporary)

    with pytest.raises(SystemExit) as ended:
        command()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert str(path) in said and "free some space" in said and "same command" in said
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_system_says(number: int, wrapped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(number, os.strerror(number), "/a/file")

    @exit_on_user_error
    def command() -> None:
        if not wrapped:
            raise error
        raise RuntimeError("the writer failed") from error

    expected = SystemExit if not wrapped or number in (errno.ENOSPC, errno.EDQUOT) else RuntimeError
    with pytest.raises(expected) as ended:
        command()
    said = capsys.readouterr().err
    if expected is SystemExit:
        assert ended.value.code == 2 and "/a/file" in said and said.startswith("error: ")


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "broken", "/a"), RuntimeError("other"), OSError("no number")):
        with pytest.raises(type(error)), staging_directory(tmp_path):
            raise error
        with pytest.raises(type(error)) as passed:
            exit_on_user_error(_raise)(error)
        assert passed.value is error
    with pytest.raises(TutorError, match=r"^as it is$"), staging_directory(tmp_path):
        raise TutorError("as it is")


def _raise(error: BaseException) -> None:
    raise error
