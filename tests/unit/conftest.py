# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio for manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.data.manifests import write_audio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one second of audio in `a.wav`."""
    write_audio(tmp_path / "a.wav", 1.0)
    return tmp_path
