# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training shows: lines in a log file, Lightning's bar out of the way, a table at the end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console

from nemo_tutornet.distill.training_report import TrainingReport
from tests.conftest import student_config
from tests.integration.recorder import RKD


class Clock(Callback):
    """A clock that a training step takes 25 seconds of."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def on_train_batch_start(self, *_: Any) -> None:
        self.seconds += 25


def _fit(make_student: Any, config: dict[str, Any], **trainer: Any) -> tuple[Any, list[str]]:
    console, clock = Console(file=io.StringIO(), width=140), Clock()
    report = TrainingReport(console, clock)
    model = make_student(config, callbacks=[clock, report], **trainer)
    try:
        model.trainer.fit(model)
    finally:
        lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return model, lines


def test_a_log_file_has_lines_and_a_table(corpus, teacher_file, make_student, tmp_path, capsys):
    config = student_config(corpus, teacher_file)
    model, lines = _fit(make_student, config, folder=tmp_path, enable_progress_bar=True, max_epochs=3)
    assert sum(type(callback) is TrainingReport for callback in model.trainer.callbacks) == 1
    ends = lines.index("")
    shown, table = lines[:ends], lines[ends + 1 :]
    number = r"[\d.e-]+"
    rkd = f"rkd {number}, rkd_r2 {number}"
    for line, pattern in zip(
        shown,
        [
            r"training: epoch 1 of 3, step 0",
            rf"training: epoch 1 of 3, step 1, rkd \(1 of 2\): {rkd}, 5 min left",
            rf"training: epoch 1 of 3, step 4, rkd \(1 of 2\): {rkd}, 3 min left",
            # A stage that begins has a line of its own.
            rf"training: epoch 2 of 3, step 5, skd \(2 of 2\): skd {number}, ctc {number}, val_wer {number} "
            rf"%, 3 min left",
            rf"training: epoch 2 of 3, step 8, skd \(2 of 2\): skd {number}, ctc {number}, val_wer {number} "
            rf"%, 2 min left",
            rf"training: epoch 3 of 3, step 11, skd \(2 of 2\): skd {number}, ctc {number}, val_wer {number} "
            rf"%, 25 s left",
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert [line.split()[0] for line in table] == ["stage", "rkd", "skd", "best", "last", "student", "next"]
    assert table[1].split()[1] == "1" and table[2].split()[1:4] == ["2", "to", "3"]
    (nemo,) = tmp_path.rglob("*.nemo")
    assert str(nemo) in table[-2] and "nemo-tutornet export" in table[-1]
    assert "it/s" not in capsys.readouterr().out, "Lightning's bar is switched off"
    assert model.trainer.progress_bar_callback.is_enabled, "and on again for a test of the model"


def test_the_time_left_of_a_resumed_run_counts_the_steps_before(corpus, teacher_file, make_student, tmp_path):
    """Interrupted after the validation of the first of three epochs of four steps."""

    class Stops(Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    config = student_config(corpus, teacher_file, [RKD])
    stopped = make_student(config, folder=tmp_path, max_epochs=3, callbacks=[Stops()])
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        stopped.trainer.fit(stopped)
    assert next(tmp_path.rglob("*-last.ckpt"), None)
    _, lines = _fit(make_student, config, folder=tmp_path, enable_progress_bar=True, max_epochs=3)
    assert lines[0].startswith("training: epoch 1 of 3, step 4")
    assert re.fullmatch(r"training: epoch \d of 3, step 5, rkd .*, 3 min left", lines[1]), lines


def test_without_a_bar_there_is_only_the_table(corpus, teacher_file, make_student):
    _, lines = _fit(make_student, student_config(corpus, teacher_file, [RKD]), max_epochs=1)
    assert [line.split()[0] for line in lines[1:]] == ["stage", "rkd", "val_wer"]


def test_an_undistilled_student_has_one_stage(corpus, make_student):
    config = student_config(corpus, None)
    _, lines = _fit(make_student, config, max_steps=5, max_epochs=None, enable_progress_bar=True)
    assert lines[1].startswith("training: epoch 1, step 1 of 5, loss ")
    assert lines[-2].startswith("all    1 to 2  loss ")


def test_the_model_adds_its_callbacks_for_a_distillation_only(corpus, teacher_file, make_student):
    for teacher, count in ((teacher_file, 1), (None, 0)):
        model = make_student(student_config(corpus, teacher), max_steps=1, limit_val_batches=0)
        for _ in range(2):  # another fit does not add them again
            model.trainer.fit(model)
            found = [type(callback).__name__ for callback in model.trainer.callbacks]
            assert found.count("TrainingReport") == found.count("DistillationMonitor") == count


def test_an_error_ends_the_bar(corpus, teacher_file, make_student):
    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError("a mistake")

    console = Console(file=io.StringIO())
    report = TrainingReport(console)
    config = student_config(corpus, teacher_file, [RKD])
    model = make_student(config, callbacks=[report, Fails()], enable_progress_bar=True)
    with pytest.raises(KeyError):
        model.trainer.fit(model)
    assert report._progress is None and model.trainer.progress_bar_callback.is_enabled
    assert "stage " not in console.file.getvalue()


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_stopped_training_says_how_it_continues(
    number, code, name, corpus, teacher_file, make_student, capsys, tmp_path
):
    """Its exit code says that it is not finished."""

    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                os.kill(os.getpid(), number)

    model = make_student(
        student_config(corpus, teacher_file, [RKD]),
        max_epochs=4,
        callbacks=[Stops(), ModelCheckpoint(tmp_path, save_last=True)],
        enable_checkpointing=True,
    )
    with pytest.raises(SystemExit) as stopped:
        model.trainer.fit(model)
    assert stopped.value.code == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped by")]
    words = f"the same command continues from {tmp_path / 'last.ckpt'}."
    assert line == f"stopped by {name} in epoch 2, step 6: {words}"
