# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the demo trains again, without training."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.commands import demo
from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.student import ExportResult
from tests.conftest import refusal, write_manifest


def test_another_teacher_is_another_distilled_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in demo.SPLITS:
        (tmp_path / f"{split}.jsonl").touch()
    trained: list[dict[str, Path]] = []

    def train(planned: list[demo.Run], *_: Any) -> list[Path]:
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


def test_another_version_or_config_trains_everything_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in demo.SPLITS:
        (tmp_path / f"{split}.jsonl").touch()
    config = tmp_path / "config.yaml"
    config.touch()
    monkeypatch.setattr(demo, "_config", lambda name: config)
    keys = [demo._key(tmp_path, "quartznet_small", 10, 1)]
    monkeypatch.setattr(demo, "__version__", "another")
    keys.append(demo._key(tmp_path, "quartznet_small", 10, 1))
    config.write_text("lr: 1", encoding="utf-8")
    keys.append(demo._key(tmp_path, "quartznet_small", 10, 1))
    (tmp_path / "valid.jsonl").write_text("{}", encoding="utf-8")
    keys.append(demo._key(tmp_path, "quartznet_small", 10, 1))
    assert len(set(keys)) == 4 and keys[-1] == demo._key(tmp_path, "quartznet_small", 10, 1)


def test_what_is_done_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(run: demo.Run, *_: Any) -> subprocess.Popen:
        started.append(run.name)
        run.trained.parent.mkdir(parents=True, exist_ok=True)
        if run.name != "without a file":
            run.trained.touch()
        return subprocess.Popen(
            [sys.executable, "-c", f"exit({int(run.name == 'failing')})"], stdout=subprocess.PIPE, text=True
        )

    monkeypatch.setattr(demo, "_start", start)
    one, two, failing, empty = (
        demo.Run(name, tmp_path, "", 1, []) for name in ("one", "two", "failing", "without a file")
    )
    console = Console(quiet=True)
    assert demo._train([one], tmp_path, 1, console) == [one.trained]
    assert demo._train([one, two], tmp_path, 1, console) == [one.trained, two.trained]
    assert started == ["one", "two"]
    two.trained.unlink()
    demo._train([one, two], tmp_path, 1, console)
    assert started == ["one", "two", "two"]
    for run in (failing, empty):
        for _ in range(2):  # what it has left behind is not taken for a finished training
            assert "failed; its log is" in refusal(demo._train, [run], tmp_path, 1, console)
    assert len(started) == 7


def test_the_distilled_student_is_verified_before_it_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[Path, Path]] = []

    def export(source: Path, destination: Path, verify: bool = False) -> ExportResult:
        if verify:
            raise TutorError(f"{destination.name} failed its verification and was not written: keys: 3.")
        exported.append((source, destination))
        return ExportResult(destination, "", 0, 0, [])

    monkeypatch.setattr("nemo_tutornet.export.student.export_student", export)
    monkeypatch.setattr("nemo_tutornet.evaluation.evaluate.evaluate", lambda *_: pytest.fail("evaluated"))
    students = [tmp_path / "runs" / name for name in ("undistilled.nemo", "distilled.nemo")]
    message = refusal(
        demo._finish, tmp_path, tmp_path, tmp_path / "teacher.nemo", students, Console(quiet=True)
    )
    assert message.startswith("distilled.nemo failed its verification")
    assert exported == [(students[0], tmp_path / "undistilled.nemo")]
    assert not (tmp_path / "report.json").exists()


def test_a_corpus_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for split in demo.SPLITS:
        write_manifest(tmp_path, split, [1.0, 1.2])
    assert demo._corpus(str(tmp_path), tmp_path / "out", console) == tmp_path
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()]

    def written(split: str, without: str) -> None:
        left = [{key: value for key, value in row.items() if key != without} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, left)), encoding="utf-8")

    written("test", without="text")
    assert f"{tmp_path / 'test.jsonl'} has no transcripts;" in refusal(
        demo._corpus, str(tmp_path), tmp_path / "out", console
    )
    written("test", without="")
    written("valid", without="duration")
    message = refusal(demo._corpus, str(tmp_path), tmp_path / "out", console)
    assert message.startswith(f"{tmp_path / 'valid.jsonl'} line 1 has no duration")


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_an_output_that_is_a_file_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").touch()
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / name)])
    assert result.exit_code == 2 and f"error: --output {tmp_path / name} cannot be used" in result.output


def test_teachers_are_kept_where_there_is_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(stderr=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for named in ("", "relative"):  # which does not count, as the specification of these folders has it
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert demo._cache(tmp_path, console) == tmp_path / "home" / ".cache" / "nemo_tutornet" / "demo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert demo._cache(tmp_path, console) == tmp_path / "x" / "nemo_tutornet" / "demo"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert demo._cache(tmp_path / "out", console) == tmp_path / "out" / "teachers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)  # a container's user, whom nobody knows
    assert demo._cache(tmp_path / "out", console) == tmp_path / "out" / "teachers"


@pytest.mark.parametrize("finished", [True, False])
def test_a_demo_waits_for_another_that_trains_its_teacher(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other demo ends with the teacher, or is stopped and leaves the training to this one."""
    trained = tmp_path / "trained.nemo"
    trained.touch()
    monkeypatch.setattr(demo, "_key", lambda *_: "key")
    monkeypatch.setattr(demo, "_train", lambda *_: calls.append("trained") or [trained, trained])
    calls: list[str] = []
    kept = tmp_path / "cache" / "key" / "teacher.nemo"
    kept.parent.mkdir(parents=True)
    other = os.open(kept.parent / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)

    def end_of_the_other() -> None:
        if finished:
            kept.touch()
        os.close(other)

    ending = threading.Timer(0.2, end_of_the_other)
    ending.start()
    run = demo.Run("undistilled", tmp_path, "", 1, [])
    console = Console(stderr=True)
    assert demo._teacher(tmp_path, 1, run, 1, tmp_path / "cache", console) == kept and kept.is_file()
    ending.join()
    assert calls == ([] if finished else ["trained"])
    printed = capsys.readouterr().err
    assert f"teacher: another demo trains it in {kept.parent}; waiting for its end\n" in printed
    kept.unlink()
    demo._teacher(tmp_path, 1, run, 1, tmp_path / "cache", console)
    assert "another demo" not in capsys.readouterr().err


def test_the_demo_ends_with_the_report_of_the_distilled_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nemo_tutornet.report.request import ReportRequest

    asked: list[ReportRequest] = []

    def write(request: ReportRequest, progress: Any) -> tuple[None, Path]:
        asked.append(request)
        return None, tmp_path / "report" / "report.html"

    monkeypatch.setattr("nemo_tutornet.commands.write_report.write_report", write)
    students = [tmp_path / name / "checkpoints" / f"{name}.nemo" for name in ("undistilled", "distilled")]
    demo._report(tmp_path, tmp_path / "out", tmp_path / "teacher.nemo", students)
    (request,) = asked
    assert request.run == tmp_path / "distilled" and request.manifest == tmp_path / "test.jsonl"
    assert (request.baseline, request.teacher) == (students[0], tmp_path / "teacher.nemo")
    assert request.output == tmp_path / "out" / "report"
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report' / 'report.html'}\n"
