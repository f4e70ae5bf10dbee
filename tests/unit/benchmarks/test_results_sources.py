# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Teachers of any name, several manifests, a budget of time, and lines that are committed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from tests.unit.benchmarks.results import line, table, tools, write

__all__ = ["tools"]  # a fixture


def manifest(path: Path, rows: int, text: str | None = "a") -> Path:
    entries = [
        {"audio_filepath": f"{path.stem}{i}.wav", "duration": 1.0, **({"text": text} if text else {})}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def command(tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`command("--recipe", "ctc")` runs run.py; the trainings and commands it asked for, and its lines."""
    trainings: list[Any] = []
    made: list[tuple[str, str, str, list[str]]] = []

    def script(self: Any, training: Any) -> Path:
        trainings.append(training)
        training.model.parent.mkdir(parents=True, exist_ok=True)
        training.model.write_text(str(training.seed))
        return training.model

    def make(name: str, output: Path, student: Any, teacher: str, train: list[Path], *_: Any) -> None:
        made.append((name, output.name, teacher, [path.name for path in train]))

    monkeypatch.setattr(tools["runner"].Runner, "script", script)
    monkeypatch.setattr(
        tools["runner"].Runner, "evaluate", lambda self, model, judged: {"wer": len(judged.stem) / 10}
    )
    monkeypatch.setattr(tools["sources"], "make", make)
    app = typer.Typer()
    app.command()(tools["run"].main)

    def run(*arguments: str, code: int = 0) -> Any:
        trainings.clear()
        made.clear()
        fixed = [str(tmp_path), str(tmp_path / "out"), "--corpus", "c", "--seed", "1"]
        done = CliRunner().invoke(app, [*fixed, *arguments])
        assert done.exit_code == code, done.output
        if code:
            return " ".join(done.output.replace("│", " ").split())
        return list(trainings), list(made), tools["runs"].read_lines(tmp_path / "out" / "c")

    return run


def test_teachers_of_any_name_and_several_manifests(command: Any, tmp_path: Path) -> None:
    first, second = manifest(tmp_path / "a.jsonl", 4), manifest(tmp_path / "b.jsonl", 6)
    more = manifest(tmp_path / "more.jsonl", 5)
    valid, accented = manifest(tmp_path / "v.jsonl", 1), manifest(tmp_path / "far.jsonl", 1)
    (tmp_path / "strong.nemo").write_text("strong")
    files = ["--train", first, "--train", second, "--valid", valid, "--valid", accented]
    teachers = ["--teacher", f"first={tmp_path / 'strong.nemo'}", "--teacher", "second=stt_en_quartznet15x5"]
    more_of = [*files, *teachers, "--untranscribed", more, "--cached", "--student", "quartznet_1m"]
    arguments = list(map(str, ["--recipe", "ctc", "--recipe", "skd_kl", *more_of]))
    trainings, made, lines = command(*arguments)
    beside = ["a.jsonl", "b.jsonl", "more_without_text.jsonl"]
    assert made == [
        ("cache", "cache_char_strong_more", str(tmp_path / "strong.nemo"), beside),
        ("cache", "cache_char_second_more", "stt_en_quartznet15x5", beside),
    ]
    rows = map(json.loads, (tmp_path / "out" / "c" / "more_without_text.jsonl").read_text().splitlines())
    assert [set(row) for row in rows] == [{"audio_filepath", "duration"}] * 5
    assert [[path.name for path in training.train] for training in trainings] == [beside[:2], beside, beside]
    assert [(one["recipe"], one["teacher"], one["added"]) for one in lines] == [
        ("ctc", "none", 0.0),
        ("skd_kl", "first", 0.5),
        ("skd_kl", "second", 0.5),
    ]
    assert lines[0]["valid"] == {"wer": 0.1} and lines[0]["valid_sets"] == {"far": {"wer": 0.3}}
    assert [bool(one["teacher_sha256"]) for one in lines] == [False, True, False]
    assert command(*arguments)[0] == []
    manifest(more, 6)
    said = command(*arguments, "--seed", "2", code=1)
    assert (
        said == f"error: {tmp_path / 'out' / 'c'} has runs with another manifest more; give another OUTPUT."
    )


def test_mistakes_of_names(command: Any, tmp_path: Path) -> None:
    for part in ("train", "valid"):
        manifest(tmp_path / f"c_{part}.jsonl", 1)
    for arguments, words in [
        (["--teacher", "t=absent.nemo"], "there is no file absent.nemo."),
        (["--teacher", "t=one", "--teacher", "t=two"], "two teachers are called t; give one NAME=FILE."),
        (["--student", "conf/none"], "there is no student conf/none"),
        (["--minutes", "1", "--recipe", "rkd_restart_ctc"], "rkd_restart_ctc makes two."),
        (["--untranscribed", "absent.jsonl"], "there is no file absent.jsonl"),
    ]:
        assert words.replace(" ", "") in command(*arguments, code=2).replace(" ", "")


def test_minutes_become_epochs(
    tools: dict[str, ModuleType], command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of 20 s after a start of 30 s are timed once; 5 minutes have room for 15."""
    for part in ("train", "valid"):
        manifest(tmp_path / f"c_{part}.jsonl", 1)
    timed: list[int] = []

    def run(training: Any, environment: dict[str, str]) -> Path:
        timed.append(training.epochs)
        with SummaryWriter(str(training.folder / training.name)) as writer:
            for epoch in range(training.epochs):
                wall = 1000.0 + 30.0 + 20.0 * (epoch + 1)
                writer.add_scalar("val_wer", 1.0, epoch, walltime=wall)
        return training.model

    monkeypatch.setattr(tools["processes"].Training, "run", run)
    arguments = ["--recipe", "ctc", "--seed", "2", "--minutes", "5"]
    trainings, _, lines = command(*arguments)
    assert timed == [3] and [training.epochs for training in trainings] == [15, 15]
    assert {
        (one["budget"], one["epochs"], one["epochs_in_budget"], one["epoch_seconds"]) for one in lines
    } == {(5.0, 0, 15, 20.0)}
    assert "too few for one epoch of 20 s" in command("--recipe", "skd_kl", "--minutes", "0.3", code=1)


def test_committed_lines_make_the_same_table(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """No path of the machine is in them; a run again replaces its line, and keeps what the test set gave."""
    cache = f"model.tutor.teacher.cache={tmp_path}/out/a.work/train"
    kept = tmp_path / "lines.jsonl"
    runs = [
        line(recipe, seed, wer, changes=["model.dropout=0.1", *changes], model_sha256=f"{recipe}{seed}")
        for recipe, wers, changes in (("ctc", (0.4, 0.3), []), ("rkd_ctc", (0.2, 0.1), [cache]))
        for seed, wer in enumerate(wers)
    ]
    for one in runs:
        one["overrides"] = [f"exp_manager.exp_dir='{tmp_path}'"]
        one["valid"]["model"] = f"{tmp_path}/out/{one['model']}"
        tools["lines"].add_line(kept, {**one, "test": {"wer": 2 * one["valid"]["wer"]}})
    tools["lines"].add_teacher(kept, {**runs[2], "corpus": "c", "teacher_sha256": "x"}, {"wer": 0.05})
    assert str(tmp_path) not in kept.read_text() and "/" not in kept.read_text().replace("a.work/train", "")
    write(tmp_path, [{**one, "test": {"wer": 2 * one["valid"]["wer"]}} for one in runs])
    rows = table(tools, kept)
    assert rows == table(tools, tmp_path)
    assert rows[1].endswith("| 15.00 ± 63.53, -57 % (p 0.11) | 30.00 ± 127.06, -57 % (p 0.11) |")
    assert "RKD, then CTC only; cached teacher |" in rows[1]  # what all rows share is told below
    before = kept.read_text().splitlines()
    tools["lines"].add_line(kept, runs[0])
    assert kept.read_text().splitlines() == before or '"test"' in kept.read_text().splitlines()[0]
    tools["lines"].add_line(kept, {**runs[0], "model_sha256": "another"})
    assert "test" not in json.loads(kept.read_text().splitlines()[0])
    assert len(kept.read_text().splitlines()) == len(before) == 5


def test_equal_steps_with_a_manifest_beside(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    beside = {"beside": ["more"], "added": 1.16}
    lines = [line("ctc", 1, 0.4, epochs=26), line("ctc", 1, 0.2, epochs=12)]
    lines += [line("skd_kl", 1, 0.1, epochs=12, **beside)]
    timed = {"budget": 30.0, "epochs": 0}
    lines += [line("ctc", 1, 0.3, **timed), line("skd_kl", 1, 0.15, **timed)]
    write(tmp_path, lines)
    (row,) = [row for row in table(tools, tmp_path) if "with more without transcripts" in row]
    assert row.endswith("| 12 | 1 | 10.00, -75 % |")
    (row,) = [row for row in table(tools, tmp_path, "--minutes", "30") if "SKD" in row]
    assert row.endswith("| 30 min | 1 | 15.00, -50 % |")
