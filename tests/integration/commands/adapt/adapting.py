# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `adapt` in tests, and what is made of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from nemo_tutornet import LiveTeacher
from nemo_tutornet.cli import app
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from tests.conftest import student_config

STAGES = [
    {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
    {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25, "pseudo": 0.5}},
]


def adapt(folder: Path, teacher: Path, output: Path, *arguments: str, **changes: Any) -> Any:
    """Runs the command on a student's config."""
    config = {**student_config(folder, teacher, STAGES), **changes}
    yaml_file = output.with_suffix(".yaml")
    yaml_file.write_text(
        yaml.safe_dump({"model": config, "trainer": {"max_epochs": 2, "accelerator": "cpu"}, "seed": 3}),
        encoding="utf-8",
    )
    where = ["--config-path", str(yaml_file.parent), "--config-name", yaml_file.stem]
    result = CliRunner().invoke(app, ["adapt", *where, "--output", str(output), *arguments])
    assert "Traceback" not in result.output, result.output
    return result


def live(teacher: Path, adapter: Path, hint_layer: str | None = None) -> LiveTeacher:
    return LiveTeacher.from_config(TeacherConfig(model_path=str(teacher), adapter=str(adapter)), hint_layer)


def tutored(config: dict[str, Any], adapter: Path, **teacher: Any) -> dict[str, Any]:
    config["tutor"]["teacher"].update(adapter=str(adapter), **teacher)
    return config


def batches_of(student: Any) -> list[TrainingBatch]:
    return [TrainingBatch.from_nemo(batch) for batch in student._validation_dl]
