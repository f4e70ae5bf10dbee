# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Contexts that keep one NeMo model's life apart from another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def preserve_app_state() -> Iterator[None]:
    """Lets a model be restored inside another's life.

    NeMo keeps the path and the mode of the restore in progress in a global; a second restore would overwrite
    the first's.
    """
    from nemo.utils.app_state import AppState

    state = AppState()
    kept: dict[str, Any] = dict(state.__dict__)
    paths: list[str] = list(state._all_model_restore_paths)
    try:
        yield
    finally:
        state._is_model_being_restored = kept["_is_model_being_restored"]
        state._nemo_file_folder = kept["_nemo_file_folder"]
        state._model_restore_path = kept["_model_restore_path"]
        state._all_model_restore_paths = paths


@contextmanager
def suppress_nemo_logs() -> Iterator[None]:
    """Silences NeMo below errors while a model that is only going to be run is restored."""
    from nemo.utils import logging

    with logging.temp_verbosity(logging.ERROR):
        yield


@contextmanager
def without_process_group() -> Iterator[None]:
    """Inside, NeMo's encoders see no process group, so they do not ask all ranks for the longest batch of
    all.

    Convolutional ones ask in every forward, and cannot be told not to. What runs in here is the same on every
    rank or is nobody else's business, and may run where the ranks cannot talk: NCCL refuses the CPU, on which
    a model is until Lightning moves it.
    """
    from torch import distributed

    there = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = there
