# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo on a tiny corpus, as `make demo CORPUS=DIR` runs it: interrupted, resumed, finished, and run once
more. It begins in the checkout, and goes on from the wheel, installed elsewhere, with the scripts and configs
that the wheel brings.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nemo.collections.asr.models import ASRModel, EncDecCTCModel

from tests.conftest import write_manifest
from tests.integration.conftest import FRESH, REPOSITORY


def trainings_below(folder: Path) -> list[str]:
    """Processes that train into a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"exp_manager.exp_dir='{folder}" in command:
            found.append(command)
    return found


def pip(*arguments: str | Path) -> None:
    command = [FRESH, "-m", "pip", *map(str, arguments), "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def wheel_installed_in(folder: Path) -> Path:
    """Builds the wheel and returns the folder that it is installed in."""
    pip("wheel", REPOSITORY, "--no-build-isolation", "--wheel-dir", folder / "wheels")
    (wheel,) = (folder / "wheels").glob("nemo_tutornet-*.whl")
    pip("install", wheel, "--target", folder / "site")
    return folder / "site"


@pytest.mark.parametrize("how, during", [(signal.SIGINT, "distilled"), (signal.SIGTERM, "undistilled")])
def test_the_demo_survives_an_interrupt(tmp_path, how, during):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        write_manifest(corpus, split, [1.0, 1.2, 0.9, 1.1])
    command = [
        sys.executable,
        "-m",
        "nemo_tutornet",
        "demo",
        "--corpus",
        str(corpus),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--epochs", "4", "--teacher-epochs", "1"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 600
    while (
        not list(tmp_path.rglob(f"{during}.log")) and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.05)
    assert trainings_below(tmp_path)
    process.send_signal(how)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 130 and "resumes" in printed and "Traceback" not in printed
    assert not trainings_below(tmp_path)
    if during == "undistilled":
        assert list(tmp_path.rglob("teacher.log")) and not list(tmp_path.rglob("teacher.done")), (
            "it does not train beside the teacher"
        )
        return

    site = wheel_installed_in(tmp_path)
    wheel = {
        "cwd": tmp_path,
        "env": {**environment, "PYTHONPATH": str(site)},
        "capture_output": True,
        "text": True,
        "timeout": 900,
    }
    finished = subprocess.run(command, **wheel)
    assert finished.returncode == 0, finished.stderr[-2000:]
    (trained,) = tmp_path.rglob("distilled.command")
    assert str(site / "nemo_tutornet" / "examples") in trained.read_text(encoding="utf-8")
    assert str(REPOSITORY) not in finished.stdout + finished.stderr + trained.read_text(encoding="utf-8")
    assert "teacher: reused" in finished.stderr and "undistilled: reused" in finished.stderr
    rows = [line.split()[0] for line in finished.stdout.splitlines() if " M " in line]
    assert rows == ["teacher", "undistilled", "distilled"]
    figures = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [figure["utterances"] for figure in figures] == [4, 4, 4]
    page = tmp_path / "out" / "report" / "report.html"
    assert finished.stdout.splitlines()[-1] == f"Report: {page}"
    text = page.read_text(encoding="utf-8")
    assert "undistilled student" in text and "WER on the validation set" in text
    student = ASRModel.restore_from(str(tmp_path / "out" / "distilled.nemo"), map_location="cpu")
    assert type(student) is EncDecCTCModel and "tutor" not in student.cfg

    summary = json.loads((tmp_path / "out" / "distilled.json").read_text(encoding="utf-8"))
    assert summary["checks"] and all(check["passed"] for check in summary["checks"])
    assert f"passed {len(summary['checks'])} checks" in finished.stderr
    sha256 = hashlib.sha256((tmp_path / "out" / "distilled.nemo").read_bytes()).hexdigest()
    assert [file["sha256"] for file in summary["files"]] == [sha256]

    again = subprocess.run(command, **wheel)
    assert again.returncode == 0 and again.stderr.count("reused from") == 3
