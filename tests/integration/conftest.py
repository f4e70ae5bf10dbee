# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Real speech, where it is there, and a student trained on it; a rank among others."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ACCELERATOR

REPOSITORY = Path(__file__).parents[2]
FRESH = sys.executable  # for programs that must not have imported anything yet; see `warm_python`
EPOCHS = 12


@pytest.fixture(scope="session")
def an4() -> Path:
    """The folder with `an4_train.jsonl` and `an4_valid.jsonl`: `TUTORNET_DATA`, or `../shared/data` beside
    the repository.
    """
    folder = Path(os.environ.get("TUTORNET_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not all((folder / f"an4_{split}.jsonl").is_file() for split in ("train", "valid")):
        pytest.skip(
            f"no AN4 in {folder}; set TUTORNET_DATA to the folder of an4_train.jsonl and an4_valid.jsonl"
        )
    return folder


@pytest.fixture(scope="session")
def an4_files(an4: Path) -> list[Path]:
    """The utterances of the validation set."""
    rows = (an4 / "an4_valid.jsonl").read_text(encoding="utf-8").splitlines()
    return [an4 / json.loads(row)["audio_filepath"] for row in rows]


@pytest.fixture(scope="session")
def an4_student(an4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character QuartzNet of 0.28 M parameters trained on AN4 as a user would, about two minutes on one
    quiet core.

    Its front end is the deployable one, which sherpa-onnx and onnx-asr compute.
    """
    folder = tmp_path_factory.mktemp("an4")
    command = [sys.executable, str(REPOSITORY / "examples" / "speech_to_text_ctc_tutornet.py")]
    settings = {
        "model.train_ds.manifest_filepath": an4 / "an4_train.jsonl",
        "model.validation_ds.manifest_filepath": an4 / "an4_valid.jsonl",
        "model.tutor": "null",
        "front_end": "deployable",
        "trainer.max_epochs": EPOCHS,
        "trainer.check_val_every_n_epoch": EPOCHS,
        "trainer.accelerator": ACCELERATOR,
        "trainer.enable_progress_bar": "false",
        "exp_manager.exp_dir": folder,
        "exp_manager.name": "student",
        "exp_manager.create_tensorboard_logger": "false",
        "seed": 1,
    }
    done = subprocess.run(
        [*command, f"--config-path={REPOSITORY / 'conf' / 'small'}", "--config-name=quartznet_small"]
        + [f"{key}={value}" for key, value in settings.items()],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        },  # small models train faster on one thread
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "student" / "checkpoints" / "student.nemo"


@pytest.fixture(scope="session")
def warm_programs() -> Iterator[Path | None]:
    """A folder with `python` and `nemo-tutornet` that run where NeMo is imported already
    (tests/warm_python.py).

    None where a process must not be forked after the import.
    """
    real, script = Path(FRESH), REPOSITORY / "tests" / "warm_python.py"
    if sys.platform != "linux" or torch.cuda.is_available():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="warm") as name:
        folder = Path(name)
        server = subprocess.Popen(
            [real, script, "serve", folder / "socket"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert server.stdin is not None and server.stdout is not None
        assert b"ready\n" in iter(server.stdout.readline, b"")
        run = [real, "-I", "-S", script, "run", folder / "socket", folder / "python"]
        commands = {"python": run, "nemo-tutornet": [folder / "python", real.with_name("nemo-tutornet")]}
        for program, command in commands.items():
            (folder / program).write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
            (folder / program).chmod(0o755)
        yield folder
        server.stdin.close()
        server.wait()


@pytest.fixture(scope="module", autouse=True)
def warm_python(warm_programs: Path | None) -> Iterator[None]:
    """Makes `sys.executable` a Python that has imported NeMo already, in every integration test and in the
    fixtures of its module: the import takes longer than a test. `FRESH` is a Python that has not.
    """
    with pytest.MonkeyPatch.context() as patched:
        if warm_programs is not None:
            patched.setattr(sys, "executable", str(warm_programs / "python"))
        yield


@pytest.fixture
def many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many ranks that cannot talk to the others, as before Lightning has moved the student to its GPU:
    NCCL has no CPU.
    """

    def asked(*_: object, **__: object) -> None:
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", asked)
