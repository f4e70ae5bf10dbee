# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning curves from event files, and the run's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from nemo_tutornet.config import parse_tutor
from nemo_tutornet.report.curves import StageSpan, read_curves
from nemo_tutornet.report.run_folder import open_run
from tests.conftest import refusal

TUTOR = {
    "teacher": {"model_path": "teacher.nemo"},
    "stages": [
        {"name": "first", "share": 0.5, "weights": {"rkd": 1.0}},
        {"name": "second", "weights": {"ctc": 1.0}},
    ],
}


def log(folder: Path, steps: range, age: int = 0, **more: float) -> None:
    """An event file in which `train_loss` is the step plus `more`'s; `age` seconds old."""
    writer = SummaryWriter(str(folder))
    for step in steps:
        writer.add_scalar("train_loss", step + more.get("plus", 0), step)
        writer.add_scalar("epoch", step // 4, step)
        writer.add_scalar("train_step_timing in s", 1.0, step)
        if step % 4 == 3:
            writer.add_scalar("val_wer", 1 / (step + 1), step)
        if "stages" in more:
            writer.add_scalar("tutor_stage", float(step >= 6), step)
    writer.close()
    for file in folder.glob("events*"):
        os.utime(file, (file.stat().st_mtime - age,) * 2)


def test_every_term_and_the_logged_stages(tmp_path: Path) -> None:
    log(tmp_path / "version_0", range(8), stages=1)
    curves = read_curves(tmp_path, parse_tutor({"tutor": TUTOR}))
    assert set(curves.terms) == {"train_loss", "val_wer"} and curves.steps_per_epoch == 4
    assert curves.terms["val_wer"] == [(3, 0.25), (7, 0.125)]
    assert curves.stages == [StageSpan("first", 0), StageSpan("second", 5.5)]


def test_stages_that_were_not_logged_come_from_the_schedule(tmp_path: Path) -> None:
    log(tmp_path, range(8))
    assert read_curves(tmp_path, parse_tutor({"tutor": TUTOR})).stages == [
        StageSpan("first", 0),
        StageSpan("second", 4),
    ]
    assert read_curves(tmp_path, None).stages == []


def test_the_later_file_of_a_resumed_run_counts(tmp_path: Path) -> None:
    log(tmp_path / "version_0", range(8), age=100)
    log(tmp_path / "version_1", range(4, 10), plus=100)
    values = dict(read_curves(tmp_path, None).terms["train_loss"])
    assert values == {**{step: step for step in range(4)}, **{step: step + 100 for step in range(4, 10)}}


def test_a_folder_without_events_has_no_curves(tmp_path: Path) -> None:
    assert not read_curves(tmp_path, None).terms


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "run.nemo").touch()
    (tmp_path / "run" / "version_0").mkdir()
    config = {"tutor": TUTOR, "train_ds": {"manifest_filepath": ["train.jsonl"]}, "validation_ds": {}}
    (tmp_path / "run" / "version_0" / "hparams.yaml").write_text(yaml.safe_dump({"cfg": config}))
    return tmp_path / "run"


def test_the_model_and_the_config_of_a_run(run: Path) -> None:
    for given in (run, run / "checkpoints" / "run.nemo"):
        found = open_run(given)
        assert found.model == run / "checkpoints" / "run.nemo" and found.folder == run
        assert found.tutor is not None and found.tutor.teacher.model_path == "teacher.nemo"
        assert found.manifest_of("train_ds") == Path("train.jsonl")
        assert found.manifest_of("validation_ds") is None


def test_the_newest_of_dated_runs(run: Path) -> None:
    dated = run.parent / "dated"
    for i, name in enumerate(("2026-01-02", "2026-01-01")):
        (dated / name / "checkpoints").mkdir(parents=True)
        (dated / name / "checkpoints" / "run.nemo").touch()
        os.utime(dated / name / "checkpoints", (i, i))
    assert open_run(dated).folder == dated / "2026-01-01"


@pytest.mark.parametrize("content", ["", "cfg: 1", "a: &a [*a]", "{", "cfg: {tutor: {no_such_key: 1}}"])
def test_a_run_without_a_readable_config_has_a_model(run: Path, content: str) -> None:
    (run / "version_0" / "hparams.yaml").write_text(content)
    found = open_run(run)
    assert found.tutor is None and found.model.name == "run.nemo"


def test_what_is_no_run(run: Path, tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'none'}; give" in refusal(open_run, tmp_path / "none")
    (run / "checkpoints" / "other.nemo").touch()
    assert "has several models (other.nemo, run.nemo)" in refusal(open_run, run)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert "has no checkpoints/NAME.nemo" in refusal(open_run, run)
