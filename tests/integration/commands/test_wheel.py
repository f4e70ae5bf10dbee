# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed outside the checkout: it runs the demo with the scripts and configs that it brings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import write_manifest
from tests.integration.conftest import REPOSITORY

FRESH = sys.executable


def pip(*arguments: str | Path) -> None:
    command = [FRESH, "-m", "pip", *map(str, arguments), "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_demo_runs_from_the_wheel(tmp_path, warm_python):
    pip("wheel", REPOSITORY, "--no-build-isolation", "--wheel-dir", tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").glob("nemo_tutornet-*.whl")
    site = tmp_path / "site"
    pip("install", wheel, "--target", site)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "corpus").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        write_manifest(elsewhere / "corpus", split, [1.0, 1.2, 0.9, 1.1])
    command = [sys.executable, "-m", "nemo_tutornet", "demo", "--corpus", "corpus", "--output", "out"]
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--epochs", "4", "--teacher-epochs", "1"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert (elsewhere / "out" / "distilled.nemo").is_file()
    assert (elsewhere / "out" / "report" / "report.html").is_file()
    (log,) = (elsewhere / "out").rglob("distilled.command")
    assert str(site / "nemo_tutornet" / "examples") in log.read_text(encoding="utf-8")
    assert str(REPOSITORY) not in done.stdout + done.stderr
