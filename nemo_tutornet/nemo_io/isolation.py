# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Context managers that protect one NeMo model from the global state of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def preserve_app_state() -> Iterator[None]:
    """Preserves NeMo's global restore state, so that a model can be restored while another is being restored.

    NeMo keeps the path and the mode of the restore in progress in a global object. A second restore
    overwrites the state of the first.
    """
    from nemo.utils.app_state import AppState

    state = AppState()
    saved: dict[str, Any] = dict(state.__dict__)
    paths: list[str] = list(state._all_model_restore_paths)
    try:
        yield
    finally:
        state._is_model_being_restored = saved["_is_model_being_restored"]
        state._nemo_file_folder = saved["_nemo_file_folder"]
        state._model_restore_path = saved["_model_restore_path"]
        state._all_model_restore_paths = paths


@contextmanager
def undo_failed_restore() -> Iterator[None]:
    """Ends a restore that an exception interrupts. NeMo would build every later model without its data."""
    from nemo.utils.app_state import AppState

    state = AppState()
    before = state._is_model_being_restored, state._nemo_file_folder, state._model_restore_path
    try:
        yield
    except BaseException:
        state._is_model_being_restored, state._nemo_file_folder, state._model_restore_path = before
        raise


@contextmanager
def suppress_nemo_logs() -> Iterator[None]:
    """Hides NeMo's log messages below the level of errors.

    Hydra's messages about a name that it cannot import are hidden too: NeMo then tries something else, or
    raises an error.
    """
    import logging as standard_logging

    from nemo.utils import logging

    hydra = standard_logging.getLogger("hydra.utils")
    level = hydra.level
    hydra.setLevel(standard_logging.CRITICAL)
    try:
        with logging.temp_verbosity(logging.ERROR):
            yield
    finally:
        hydra.setLevel(level)


@contextmanager
def without_process_group() -> Iterator[None]:
    """Hides the process group, so that NeMo's encoders do not ask all ranks for their longest batch.

    NeMo's convolutional encoders ask in every forward, and have no option against it. Use this context for a
    forward that is the same on every rank, or that runs on one rank only. With NCCL, which communicates
    between
    GPUs only, it also makes a forward on the CPU possible: a model is on the CPU until Lightning moves it.
    """
    from torch import distributed

    is_initialized = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = is_initialized
