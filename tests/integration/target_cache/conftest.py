# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache of the small teacher's targets, made once for the tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_tutornet.commands.cache_targets import build_cache
from tests.conftest import student_config
from tests.integration.target_cache.caching import STAGES, whole


@pytest.fixture(scope="module")
def cache(corpus: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "targets"
    built = build_cache(whole(student_config(corpus, teacher_file, STAGES)), folder, progress=False)
    assert (built.utterances, built.added) == (8, 8) and 0 < built.hours < 0.01
    return folder
