# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The table at the end of a training, on a terminal and in a log file."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console

from nemo_tutornet.distill.training_report import LossMeans
from nemo_tutornet.distill.training_table import StageRecord, TrainingFiles, print_training_table

STAGES = [
    StageRecord("rkd", 1, 8, {"rkd": 0.012345}, 0.351),
    StageRecord("ctc [b]", 8, 30, {"rkd": 0.01, "ctc": 4.2}, 0.0844),
]


def _printed(files: TrainingFiles, **console: object) -> str:
    file = io.StringIO()
    print_training_table(STAGES, 0.0807, files, Console(file=file, width=140, **console))
    return file.getvalue()


def test_a_log_file_gets_plain_text(tmp_path: Path) -> None:
    files = TrainingFiles(tmp_path / "val_wer=0.08.ckpt", tmp_path / "x-last.ckpt", tmp_path / "my run.nemo")
    lines = [line.rstrip() for line in _printed(files).splitlines()]
    assert all(line.isascii() for line in lines)
    assert lines == [
        "",
        "stage    epochs   losses, mean of the last epoch  val_wer",
        "rkd      1 to 8   rkd 0.01235                     35.10 %",
        "ctc [b]  8 to 30  rkd 0.01, ctc 4.2                8.44 %",
        f"best checkpoint  {tmp_path}/val_wer=0.08.ckpt (val_wer 8.07 %)",
        f"last checkpoint  {tmp_path}/x-last.ckpt (val_wer 8.44 %)",
        f"student          {tmp_path}/my run.nemo (the last epoch)",
        f"next             nemo-tutornet export {tmp_path}/val_wer=0.08.ckpt 'my run-export.nemo' --verify",
    ]


def test_a_terminal_gets_a_table() -> None:
    shown = _printed(TrainingFiles(), force_terminal=True, _environ={"TERM": "xterm"})
    assert "\u2500" in shown and "best 8.07 %, last 8.44 %" in shown and "export" not in shown


def test_only_files_that_exist_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.nemo").touch()
    callback = SimpleNamespace(
        dirpath=str(tmp_path),
        prefix="run",
        postfix=".nemo",
        best_model_path=str(tmp_path / "gone.ckpt"),
        last_model_path="",
    )
    files = TrainingFiles.of(callback)
    assert files == TrainingFiles(student=tmp_path / "run.nemo")
    assert files.next_command() == f"nemo-tutornet export {tmp_path}/run.nemo run-export.nemo --verify"
    callback.save_best_model = True
    assert "run.nemo (the best epoch)" in _printed(TrainingFiles.of(callback))
    assert TrainingFiles.of(None) == TrainingFiles() and TrainingFiles().next_command() is None


def test_losses_are_averaged_until_they_are_read() -> None:
    means = LossMeans()
    for value in (1.0, 2.0, 6.0):
        means.add({"rkd": torch.tensor(value)})
    assert means.read() == {"rkd": 3.0} and means.read() == {}
    means.add({"rkd": torch.tensor(9.0)})
    means.add({"rkd": torch.tensor(1.0), "ctc": torch.tensor(5.0)})  # another stage
    assert means.read() == {"rkd": 1.0, "ctc": 5.0}
