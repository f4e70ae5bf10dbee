# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/report.md, run as written."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from tests.conftest import write_manifest
from tests.integration.documents.test_readme import ROOT, commands
from tests.integration.report.runs import write_run

PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(
    corpus: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled = write_run(tmp_path / "runs" / "distilled", corpus, teacher_file)
    write_run(tmp_path / "runs" / "alone", corpus, None, seed=1)
    for name in ("student.nemo", "other.nemo"):
        shutil.copy(distilled / "checkpoints" / "distilled.nemo", tmp_path / name)
    shutil.copy(teacher_file, tmp_path / "teacher.nemo")
    write_manifest(tmp_path, "test", [0.9, 1.1])
    monkeypatch.chdir(tmp_path)
    shown = []
    for command in commands("nemo-tutornet report", PAGE):
        _, *arguments = shlex.split(command)
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and "Traceback" not in done.output, done.output
        shown.append(done.stdout)
    assert "Report: runs/distilled/report/report.html" in shown[0] and "Report: pages/report.html" in shown[1]
    assert json.loads(shown[2])["models"][0]["role"] == "student"
    page = (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    assert "asked for</span>test0" in page and "other</th>" in page
