# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""One training at a time in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from filelock import FileLock, Timeout
from nemo.utils.get_rank import is_global_rank_zero

from nemo_tutornet.distill.run_files import checkpoint_folder
from nemo_tutornet.errors import TutorError


def lock_run_folder(manager: Mapping[str, Any] | None) -> FileLock | None:
    """Locks the folder that a training writes its checkpoints to, and would continue from.

    Two trainings in one folder would continue from each other's checkpoints, and write one `.nemo`.

    Args:
        manager: the section `exp_manager` of the training's config. Without `resume_if_exists` each training
            has a folder of its own, and nothing is locked.

    Returns:
        The lock, on rank 0. It is held until it is deleted, or the process ends in whatever way.

    Raises:
        TutorError: another training holds the lock, or the folder cannot be made.
    """
    checkpoints = checkpoint_folder(manager)
    if checkpoints is None or not is_global_rank_zero():
        return None
    folder = checkpoints.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise TutorError(
            f"exp_manager cannot write to {folder}, because a part of this path is a file; give another "
            "exp_manager.exp_dir or exp_manager.name."
        ) from None
    lock = FileLock(folder / ".training.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TutorError(
            f"another training is at work in {folder}; wait for its end, or give this one another "
            "exp_manager.name."
        ) from None
    except NotImplementedError:  # a file system without locks
        return None
    return lock
