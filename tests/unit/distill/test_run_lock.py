# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""One training at a time in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_tutornet.distill import run_lock
from nemo_tutornet.distill.run_lock import lock_run_folder
from tests.conftest import refusal


def test_a_second_training_in_one_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = {"resume_if_exists": True, "exp_dir": str(tmp_path), "name": "student"}
    first = lock_run_folder(manager)
    assert first is not None and (tmp_path / "student").is_dir()
    assert f"another training is at work in {tmp_path / 'student'}; " in refusal(lock_run_folder, manager)
    other = lock_run_folder({**manager, "name": "other"})
    assert other is not None and other.is_locked
    # The other ranks of a training have no lock, and need none.
    monkeypatch.setattr(run_lock, "is_global_rank_zero", lambda: False)
    assert lock_run_folder(manager) is None
    monkeypatch.undo()
    del first
    assert lock_run_folder(manager) is not None


def test_trainings_that_do_not_resume_have_a_folder_each(tmp_path: Path) -> None:
    assert lock_run_folder({"exp_dir": str(tmp_path)}) is None
    assert lock_run_folder(None) is None and not list(tmp_path.iterdir())


def test_a_file_in_the_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    manager = {"resume_if_exists": True, "exp_dir": str(tmp_path / "file"), "name": "student"}
    assert f"cannot write to {tmp_path / 'file' / 'student'}, because" in refusal(lock_run_folder, manager)
