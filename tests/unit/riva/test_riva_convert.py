# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The script that runs NVIDIA's nemo2riva (examples/riva), with another program in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.riva.files import RIVA, Files


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs riva_check.sh with an environment whose nemo2riva is `does`, a line of shell; `$out` is the file
    it is to write.
    """

    def run(*arguments: str, does: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "environment" / "bin"
        folder.mkdir(parents=True)
        requirements = [
            RIVA / name for name in ("requirements.txt", "requirements-no-deps.txt", "constraints.txt")
        ]
        (folder.parent / ".installed").write_bytes(b"".join(path.read_bytes() for path in requirements))
        scripts = {
            "python": f'exec "{sys.executable}" "$@"',
            "nemo2riva": f'[ "$1$2$3" = --devicecpu--out ]; out=$4; {does}',
        }
        for name, line in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        command = ["bash", str(RIVA / "riva_check.sh"), *arguments]
        variables = {**os.environ, "VENV_RIVA": str(folder.parent), **environment}
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_an_archive_appears_only_when_it_is_right(tmp_path, convert):
    _, right = Files(tmp_path).write()
    made = right.rename(tmp_path / "right")
    done = convert("student.nemo", "new/student.riva", does=f'cp "{made}" "$out"')
    assert done.returncode == 0 and "student.riva is right" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["student.riva", "student.riva.log"]
    assert (tmp_path / "new" / "student.riva").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ('cp wrong "$out"', "obj_cls is in_house.CTCModel"),
        (
            'cp wrong "$out"; echo out of memory; exit 1',
            "did not convert student.nemo (exit code 1: out of memory)",
        ),
        (":", "did not convert student.nemo (exit code 0"),
    ],
    ids=["a wrong archive and exit code 0", "an archive and exit code 1", "no archive and exit code 0"],
)
def test_the_exit_code_of_nemo2riva_is_not_believed(tmp_path, convert, does, words):
    files = Files(tmp_path)
    files.manifest["metadata"]["obj_cls"] = "in_house.CTCModel"
    files.write()[1].rename(tmp_path / "wrong")
    done = convert("student.nemo", does=does)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("student.riva*/")) and not (tmp_path / "student.riva").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the student"),
        (["absent.nemo"], "there is no file absent.nemo"),
        (["student.nemo", "student.zip"], "student.zip must end in .riva"),
    ],
)
def test_mistakes_of_the_command_line_come_before_anything_is_made(tmp_path, convert, arguments, words):
    (tmp_path / "student.nemo").touch()
    done = convert(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_python_3_10_it_says_what_to_do(tmp_path, convert):
    (tmp_path / "student.nemo").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "cat", "cmp"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = convert(
        "student.nemo",
        PATH=str(tools),
        PYENV_ROOT=str(tmp_path),
        PYTHON310="",
        VENV_RIVA=str(tmp_path / "new"),
    )
    assert done.returncode == 2 and "no Python 3.10" in done.stderr and "PYTHON310=" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "new").exists()
