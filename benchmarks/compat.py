# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Do students mean the same in another NeMo? Restored in both versions, their class, keys, labels and
log-probabilities compared.

    make compat-check                       small students of its own; makes the other environment where it is
    not there make compat-check STUDENT=my.nemo       that one
    python benchmarks/compat.py --python .venv-compat/bin/python [STUDENT.nemo ...]

Here the file is restored by this environment's NeMo, which gives the log-probabilities to compare with. In
the other environment the program of `nemo-tutornet verify` does what it does everywhere
(`nemo_tutornet/export/verify_worker.py`): it holds the file's keys against a fresh model of that NeMo,
restores the file and compares. The exit code is 0, or 1 where a student differs, or 2 for a mistake.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from nemo_tutornet.errors import TutorError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "nemo_tutornet" / "export" / "verify_worker.py"
# What an environment has, found without importing anything of it.
ABOUT = """
import importlib.util, json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("nemo_toolkit", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps({**found, "plugin": importlib.util.find_spec("nemo_tutornet") is not None}))
"""


@dataclass
class Comparison:
    """What two versions of NeMo make of one student.

    Attributes:
        student: its file.
        cells: what the table shows of it.
        failures: one sentence for each thing that is wrong.
    """

    student: Path
    cells: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def run_there(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the other environment's Python with nothing of this one: not its folders, not its PYTHON
    variables.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # Not resolve(): a virtual environment's Python is a link, and its place is what makes it one.
    python = python.absolute()
    command = [str(python), "-s", *arguments]
    return subprocess.run(
        command, cwd=python.parent, env=environment, capture_output=True, text=True, errors="replace"
    )


def other_environment(python: Path) -> dict[str, str]:
    """Versions of NeMo and torch in the other environment.

    Raises:
        TutorError: no such environment, no NeMo in it, or this package is installed there.
    """
    if not python.is_file():
        raise TutorError(f"there is no {python}; run `make compat-check`, which makes the environment.")
    found = run_there(python, "-c", ABOUT)
    if found.returncode != 0:
        raise TutorError(
            f"{python} does not run ({_last_line(found.stderr)}); remove its environment and run `make "
            "compat-check`."
        )
    about = json.loads(found.stdout)
    if about.pop("plugin"):
        raise TutorError(
            f"{python} can import nemo_tutornet, so it proves nothing of stock NeMo; give one that cannot."
        )
    if about["nemo_toolkit"] is None:
        raise TutorError(f"{python} has no NeMo; remove its environment and run `make compat-check`.")
    return about


def compare(student: Path, python: Path, versions: list[str], folder: Path) -> Comparison:
    """Restores a student here and there.

    Args:
        student: a `.nemo` file.
        python: of the other environment.
        versions: of NeMo here and there.
        folder: where the probes and the other environment's report go.
    """
    from safetensors.torch import save_file

    from nemo_tutornet.export.verify import probes
    from nemo_tutornet.nemo_io.restore import restore_ctc

    here, there = (f"NeMo {version}" for version in versions)
    result = Comparison(student)

    def wrong(sentence: str) -> None:
        result.failures.append(f"{student}: {sentence.rstrip('.')}.")

    model = None
    try:
        model = restore_ctc(student)
    except TutorError as error:
        wrong(f"{here}: {error}")
    tensors, request, report = (
        folder / f"{student.stem}.{name}" for name in ("probes.safetensors", "request.json", "report.json")
    )
    save_file(probes(model, 16000 if model is None else int(model.preprocessor._sample_rate)), str(tensors))
    request.write_text(
        json.dumps({"student": str(student.resolve()), "onnx": [], "probes": str(tensors)}), encoding="utf-8"
    )
    report.unlink(missing_ok=True)
    done = run_there(python, str(PROGRAM), str(request), str(report))
    if done.returncode != 0 or not report.is_file():
        wrong(f"{there} ended with {done.returncode}: {_last_line(done.stderr)}")
        return result
    found = json.loads(report.read_text(encoding="utf-8"))
    result.cells = {check["name"]: check["found"] for check in found["checks"]}
    for check in found["checks"]:
        if not check["passed"]:
            wrong(f"{there}: {check['name']}: {check['found']}")
    if model is not None and found["facts"]:
        for sentence in _differences(model, found["facts"], here, there):
            wrong(sentence)
    return result


def _differences(model: Any, facts: dict[str, Any], here: str, there: str) -> list[str]:
    """Sentences for what the two do not agree on, beyond the log-probabilities."""
    from nemo_tutornet.nemo_io.restore import labels_of

    mine = {
        "class_name": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": labels_of(model, model.decoder),
        "sample_rate": int(model.preprocessor._sample_rate),
    }
    return [
        f"its {name} is {value} in {here} and {facts[name]} in {there}"
        for name, value in mine.items()
        if facts[name] != value
    ]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def own_students(folder: Path) -> list[Path]:
    """Writes a small untrained student of every kind that the tests know, exported as a trained one is."""
    sys.path.insert(0, str(ROOT))
    from nemo_tutornet import export_student
    from tests.integration.students import STUDENTS, build

    students = []
    for kind in STUDENTS:
        name = kind.replace(" ", "-")
        students.append(export_student(build(kind, folder / "runs" / name), folder / f"{name}.nemo").path)
    return students


@exit_on_user_error
def main(
    students: list[Path] | None = typer.Argument(
        None, metavar="[STUDENT.nemo ...]", help="None: small ones of its own."
    ),
    python: Path = typer.Option(
        ROOT / ".venv-compat" / "bin" / "python", help="Python of an environment with the other NeMo."
    ),
    output: Path = typer.Option(ROOT / "build" / "compat", help="Where students, probes and reports go."),
) -> None:
    """Prints one row a student, and on standard error one sentence for each thing that is wrong."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.table import Table

    missing = [str(path) for path in students or [] if not path.is_file()]
    if missing:
        raise TutorError(f"there is no file {', '.join(missing)}; give .nemo files of exported students.")
    there = other_environment(python)
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    versions = [version("nemo_toolkit"), there["nemo_toolkit"]]
    files = students or own_students(output)

    rows = []
    for student in files:
        print(f"restoring {student} ...", file=sys.stderr)
        rows.append(compare(student, python, versions, output))
    table = Table(
        title=f"NeMo {versions[0]} (torch {version('torch')}) and NeMo {versions[1]} (torch {there['torch']})"
    )
    for name in ("student", "", "class", "keys", "log-probabilities"):
        table.add_column(name, overflow="fold")
    for row in rows:
        name, *found = (row.cells.get(check, "") for check in ("restore", "keys", "log-probabilities"))
        table.add_row(row.student.name, "WRONG" if row.failures else "ok", name.rsplit(".", 1)[-1], *found)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"students, probes and reports: {output}")
    failures = [sentence for row in rows for sentence in row.failures]
    for sentence in failures:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
