# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""An export that fails names the file that is the reason."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from nemo_tutornet.export import student
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("number", "named", "where"),
    [
        (errno.ENOSPC, None, ": {tmp}"),  # a write of a library
        (errno.ENOSPC, "{out}", ": {out} or {tmp}"),  # where files are staged
        (errno.ENOSPC, "{tmp}/model.nemo", ": {tmp}/model.nemo"),
        (errno.EACCES, "/data/run.ckpt", ": /data/run.ckpt"),
        (errno.EIO, None, ""),
    ],
)
def test_the_file_is_named(
    number: int, named: str | None, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"out": tmp_path, "tmp": tempfile.gettempdir()}

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), *([] if named is None else [named.format(**places)]))

    monkeypatch.setattr(student, "student_from_file", fail)
    destination = tmp_path / "student.nemo"
    assert refusal(student.export_student, tmp_path / "run.nemo", destination) == (
        f"{destination} was not written ({os.strerror(number)}{where.format(**places)}); nothing was changed "
        "there."
    )
