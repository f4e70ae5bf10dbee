# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The scripts of benchmarks/results as modules, and lines as run.py writes them, for their tests."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
MODULES = (
    "students",
    "recipes",
    "runs",
    "subwords",
    "processes",
    "corpora",
    "sources",
    "budget",
    "curves",
    "lines",
    "runner",
    "run",
    "table",
    "plots",
    "pages",
    "speeds",
    "public_model",
)


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they import each other by their plain names."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name)


def line(recipe: str, seed: int, wer: float, **other: Any) -> dict[str, Any]:
    run = {
        "student": "small",
        "teacher": "none" if recipe == "ctc" else "t",
        "epochs": 30,
        "share": 1.0,
        "cached": False,
    }
    name = "-".join([recipe, str(seed), *map(str, other.values())])
    return {
        **run,
        "recipe": recipe,
        "seed": seed,
        "changes": [],
        "teacher_file": "t.nemo",
        "model": f"{name}.nemo",
        "valid": {"wer": wer, "parameters": 280_000},
        **other,
    }


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))


def table(tools: dict[str, ModuleType], folder: Path, *arguments: str) -> list[str]:
    app = typer.Typer()
    app.command()(tools["table"].main)
    done = CliRunner().invoke(app, [str(folder), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [row for row in done.output.splitlines() if row.startswith("| small")]


def corpus_of(tools: dict[str, ModuleType], folder: Path, output: Path, **more: list[Path]) -> Any:
    manifests = ([folder / f"c_{part}.jsonl"] for part in ("train", "valid"))
    return tools["corpora"].Corpus("c", output / "c", *manifests, **more)


def runner_of(
    tools: dict[str, ModuleType], folder: Path, teacher: Path | None = None, **more: list[Path]
) -> Any:
    teachers = [] if teacher is None else [tools["sources"].given(str(teacher))]
    return tools["runner"].Runner(corpus_of(tools, folder, folder / "out", **more), teachers)
