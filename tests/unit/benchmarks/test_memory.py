# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/memory.py says of samples of memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import psutil
import pytest


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    file = Path(__file__).resolve().parents[3] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_memory", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_growth_is_that_after_the_warm_up(memory: ModuleType) -> None:
    warm_up = [(10.0, 100.0), (20.0, 900.0)]
    samples = warm_up + [(10.0 * i, 1000.0 + 20.0 * i / 360) for i in range(36, 361)]
    found = memory.growth(samples)
    assert found["mb_per_hour"] == pytest.approx(20.0)
    assert (found["minutes"], found["mb_after_warm_up"], found["mb_at_end"]) == (60.0, 1002.0, 1020.0)
    assert found["mb_in_tenths"][0] == 500.0 and len(found["mb_in_tenths"]) == 10


def test_memory_is_that_of_a_process(memory: ModuleType) -> None:
    process = psutil.Process()
    before = memory.megabytes(process)
    block = b"1" * 50_000_000
    assert memory.megabytes(process) - before > 45 and len(block)
