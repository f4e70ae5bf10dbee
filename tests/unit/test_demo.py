# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the demo trains again, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
from typer.testing import CliRunner

from nemo_tutornet import demo
from nemo_tutornet.cli import app


def test_another_teacher_is_another_distilled_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in demo.SPLITS:
        (tmp_path / f"{split}.jsonl").touch()
    trained: List[Dict[str, Path]] = []

    def train(planned: List[demo.Run], *_: Any) -> List[Path]:
        for run in planned:
            run.trained.parent.mkdir(parents=True, exist_ok=True)
            run.trained.touch()
        trained.append({run.name: run.trained for run in planned})
        return [run.trained for run in planned]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "_train", train)
    monkeypatch.setattr(demo, "_corpus", lambda *_: tmp_path)
    monkeypatch.setattr(demo, "_finish", lambda *_: None)
    for teacher_epochs in (1, 1, 2):
        demo.run_demo("embedded", tmp_path / "out", None, teacher_epochs, 1)
    first, second, third = [runs["distilled"] for runs in trained if "distilled" in runs]
    assert first == second != third
    with_teacher, students = ["teacher", "undistilled"], ["undistilled", "distilled"]
    assert [list(runs) for runs in trained] == [with_teacher, students, students, with_teacher, students]
    assert len({runs["undistilled"] for runs in trained}) == 1


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_an_output_that_is_a_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").touch()
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / name)])
    assert result.exit_code == 2 and f"error: --output {tmp_path / name} cannot be used" in result.output
