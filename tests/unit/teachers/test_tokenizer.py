# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the files of a teacher's tokenizer are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_tutornet.teachers.tokenizer import _kept
from tests.conftest import refusal

FILES = {"tokenizer.model": b"pieces"}


def test_a_relative_cache_folder_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a resumed run would depend on the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    folder = _kept(FILES)
    assert folder.parent == tmp_path / "home" / ".cache" / "nemo_tutornet" / "tokenizers"
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _kept(FILES) == tmp_path / "cache" / "nemo_tutornet" / "tokenizers" / folder.name


def test_a_user_without_a_cache_folder_is_given_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remedy = "; set XDG_CACHE_HOME to a folder that can be written to."
    message = refusal(_kept, FILES)
    assert message.startswith(f"the teacher's tokenizer cannot be kept in {tmp_path}")
    assert message.endswith(f"(Not a directory){remedy}")
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)  # a container's user, whom nobody knows
    assert refusal(_kept, FILES) == f"this user has no home folder{remedy}"
