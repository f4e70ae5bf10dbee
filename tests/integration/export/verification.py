# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Repacked archives, and the proof of a student in this process."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nemo_tutornet import verify_student
from nemo_tutornet.export import verify_worker
from nemo_tutornet.export.summary import Verification
from nemo_tutornet.nemo_io.isolation import preserve_app_state


def repack(source: Path, destination: Path, change: Callable[[dict, dict], None]) -> Path:
    """The same archive with another config or state."""
    folder = destination.with_suffix("")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    config = yaml.safe_load((folder / "model_config.yaml").read_text(encoding="utf-8"))
    weights = torch.load(folder / "model_weights.ckpt", weights_only=True)
    change(config, weights)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    torch.save(weights, folder / "model_weights.ckpt")
    with tarfile.open(destination, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=f"./{path.name}")
    return destination


def verified(
    student: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[Path] | None = None, reference: Any = None
) -> Verification:
    """The other process's program runs in this one, where it takes seconds less."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        with preserve_app_state():  # in a process of its own, whatever fails in it leaves nothing
            verify_worker.main(*command[2:])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("nemo_tutornet.export.verify.subprocess.run", run)
    return verify_student(student, graphs or [], reference)


def failures(
    student: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[Path] | None = None, reference: Any = None
) -> list[str]:
    checks = verified(student, monkeypatch, graphs, reference).checks
    return [
        f"{check.name}: {check.found}" for check in checks if not check.passed and check.name != "no plugin"
    ]
