# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Temporary folders of killed processes are removed, those of living ones are not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nemo_tutornet.utils import leftovers
from nemo_tutornet.utils.files import atomic_write, staging_directory
from nemo_tutornet.utils.leftovers import locked_temporary_folder, remove_leftovers

WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from nemo_tutornet.utils.files import atomic_write
    with atomic_write(Path(sys.argv[1])) as temporary:
        temporary.write_bytes(b"half")
        print("writing", flush=True)
        sys.stdin.read()
""")


def _age(path: Path, seconds: float) -> None:
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def test_the_next_file_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    (left,) = tmp_path.iterdir()
    for age in (0, 10 * 24 * 3600):
        _age(left, age)
        assert remove_leftovers(tmp_path) == [] and left.is_dir(), "the process lives"
    writer.kill()
    writer.communicate()
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [one.name for one in tmp_path.iterdir()] == ["m.nemo"]


def test_folders_of_this_process_and_of_others_stay(tmp_path: Path) -> None:
    for name in (".tutornet", ".hidden.tmp", "tutornet-abc.tmp", ".m.nemo.tmp", ".tutornet-abc.tmp.old"):
        (tmp_path / name).mkdir()
    (tmp_path / ".tutornet-file.tmp").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".tutornet-link.tmp").symlink_to(elsewhere)
    with staging_directory(tmp_path) as stage, locked_temporary_folder(tmp_path, "x.nemo.") as other:
        for path in (stage, other):
            _age(path, 10 * 24 * 3600)
        assert remove_leftovers(tmp_path) == []
        assert stage.is_dir() and other.is_dir()
    assert remove_leftovers(tmp_path / "none") == []
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("name", [".tutornet-abc12345.tmp", ".m.nemo.abc_1234.tmp"])
def test_names_of_earlier_versions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "m.nemo").touch()
    assert remove_leftovers(tmp_path) == [tmp_path / name] and not list(tmp_path.iterdir())


def test_another_machine_keeps_its_folder_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".m.nemo.tutornet-0123abcd-1-abc.tmp"
    path.mkdir()
    _age(path, 23 * 3600)
    assert remove_leftovers(tmp_path) == []
    _age(path, 2 * 3600)
    assert remove_leftovers(tmp_path) == [path]


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "no locks")

    monkeypatch.setattr(leftovers.fcntl, "flock", refuse)
    path = tmp_path / ".tutornet-abc.tmp"
    path.mkdir()
    with atomic_write(tmp_path / "m.nemo") as temporary:
        temporary.touch()
    assert path.is_dir()
    _age(path, 25 * 3600)
    assert remove_leftovers(tmp_path) == [path]


def test_a_folder_is_safe_until_its_living_process_locks_it(tmp_path: Path) -> None:
    parent = os.getppid()
    path = tmp_path / f".tutornet-{leftovers._machine()}-{parent}-abc.tmp"
    path.mkdir()
    assert remove_leftovers(tmp_path) == []
    _age(path, 3600)  # the number was given to another process since
    assert remove_leftovers(tmp_path) == [path]
