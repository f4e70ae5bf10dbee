# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The programs that a result is made with: the example script, and commands of `nemo-tutornet`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from students import ROOT, Student

from nemo_tutornet.commands.hydra_config import hydra_value
from nemo_tutornet.utils.signals import Stopped

_running: set[subprocess.Popen[str]] = set()


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs a program, and waits for its end."""
    with subprocess.Popen(command, cwd=ROOT, text=True, **options) as process:
        _running.add(process)
        try:
            yield process
        except Stopped as stopped:
            end_children(stopped)
            raise
        finally:
            process.wait()
            _running.discard(process)


def end_children(stopped: Stopped) -> None:
    """Hands a SIGTERM on to every program that runs; a training then writes its last checkpoint.

    Ctrl-C in a terminal reaches all of them without this.
    """
    if stopped.number == signal.SIGTERM:
        for process in list(_running):
            process.terminate()


def hydra_values(paths: Sequence[Path]) -> str:
    """One manifest or several, as Hydra's command line writes them."""
    return hydra_value(paths[0]) if len(paths) == 1 else f"[{','.join(map(hydra_value, paths))}]"


def threads_of(jobs: int) -> dict[str, str]:
    """Environment of a training that has others beside it: one thread each."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if jobs > 1 else {}


@dataclass(frozen=True)
class Training:
    """One run of the example script.

    Attributes:
        folder: where it goes.
        name: of the run.
        student: its config.
        train: manifests.
        valid: the manifest that checkpoints are selected on.
        epochs: -1 for a number of steps in the overrides.
        seed: of the run.
        overrides: further arguments.
    """

    folder: Path
    name: str
    student: Student
    train: Sequence[Path]
    valid: Path
    epochs: int
    seed: int
    overrides: Sequence[str]

    @property
    def model(self) -> Path:
        """The student that it writes."""
        return self.folder / self.name / "checkpoints" / f"{self.name}.nemo"

    def run(self, environment: dict[str, str]) -> Path:
        """Runs it, unless its student is there; an interrupted one goes on. Returns the student."""
        if self.model.exists():
            return self.model
        self.folder.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if key != "NEMO_EXPM_VERSION"}
        command = [
            sys.executable,
            "examples/speech_to_text_ctc_tutornet.py",
            f"--config-path=../{self.student.folder}",
            f"--config-name={self.student.config}",
            f"model.train_ds.manifest_filepath={hydra_values(self.train)}",
            f"model.validation_ds.manifest_filepath={hydra_value(self.valid)}",
            f"exp_manager.exp_dir={hydra_value(self.folder)}",
            f"exp_manager.name={self.name}",
            "trainer.enable_progress_bar=false",
            f"trainer.max_epochs={self.epochs}",
            f"seed={self.seed}",
            *self.overrides,
        ]
        with open(self.folder / f"{self.name}.log", "a", encoding="utf-8") as log:
            options = {"env": inherited | environment, "stdout": log, "stderr": subprocess.STDOUT}
            with child(command, **options) as process:
                code = process.wait()
        if code or not self.model.exists():
            raise RuntimeError(
                f"training {self.name} failed with exit code {code}; see {self.folder / self.name}.log."
            )
        return self.model


def make(
    command: str,
    output: Path,
    student: Student,
    teacher: str,
    train: Sequence[Path],
    valid: Path,
    overrides: Sequence[str],
    failure: str,
) -> None:
    """Runs a command of `nemo-tutornet` that takes the training script's arguments.

    Args:
        command: its name, `cache` or `adapt`.
        output: what it writes.
        student: the student that it is for.
        teacher: file or name of the teacher.
        train: manifests.
        valid: manifest.
        overrides: further arguments.
        failure: what to say where it fails.
    """
    arguments = [
        sys.executable,
        "-m",
        "nemo_tutornet",
        command,
        "--output",
        str(output),
        "--config-path",
        str(ROOT / student.folder),
        "--config-name",
        student.config,
        f"model.train_ds.manifest_filepath={hydra_values(train)}",
        f"model.validation_ds.manifest_filepath={hydra_value(valid)}",
        f"model.tutor.teacher.model_path={hydra_value(teacher)}",
        *student.overrides,
        *overrides,
    ]
    with child(arguments, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate()
    if process.returncode:
        printed = [line for line in errors.splitlines() if line.strip()]
        raise RuntimeError(f"{failure}: {printed[-1] if printed else f'exit code {process.returncode}'}")
