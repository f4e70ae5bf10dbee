# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Lines of runs that are committed: the runner's, without anything of the machine.

A file of them is enough for `table.py`, `pages.py` and `plots.py`. `test` is what the test set gave, which
`table.py --test ... --lines FILE` writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curves import curve
from filelock import FileLock
from runs import Run, read_lines, run_of

from nemo_tutornet.utils.files import atomic_write

# What is the machine's alone, or follows from the recipe.
LEFT_OUT = ("teacher_file", "model", "overrides")
ABSOLUTE = re.compile(r"(?<![\w.])/(?:[^/\s'\",\]}]+/)+")


def portable(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line without paths of the machine: of a file its name is left, of a cache its folder's name, too.

    Args:
        line: of `runs.jsonl`.
    """
    return {key: _portable(value) for key, value in line.items() if key not in LEFT_OUT}


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_portable(one) for one in value]
    if not isinstance(value, str):
        return value
    return ABSOLUTE.sub(lambda found: _kept(found[0]), value)


def _kept(folders: str) -> str:
    last = folders.rstrip("/").rpartition("/")[2]
    return f"{last}/" if last.endswith(".work") else ""


def add_line(file: Path, line: Mapping[str, Any]) -> None:
    """Adds a run's line to a file of committed lines, in place of an older one of the same run.

    What the test set gave stays while the student is the same. The line gets the validation WER of each epoch
    in percent, `valid_by_epoch`, from the training's logs.

    Args:
        file: the file; it is made where it is not there.
        line: of `runs.jsonl`, maybe with `test`.
    """
    added = portable(line)
    if by_epoch := curve(line):
        added["valid_by_epoch"] = [round(wer, 2) for _, wer in by_epoch]
    with _taken_apart(file) as (lines, _):
        before = lines.get(run_of(added), {})
        if "test" in before and before.get("model_sha256") == added.get("model_sha256"):
            added = {"test": before["test"], **added}
        lines[run_of(added)] = added


def add_teacher(file: Path, line: Mapping[str, Any], test: Mapping[str, Any]) -> None:
    """Adds what the test set gave for a run's teacher, in place of an older line of it.

    Args:
        file: the file.
        line: of a run that has this teacher.
        test: evaluation of the teacher.
    """
    whose = {"kind": "teacher", "teacher": line["teacher"], "sha256": line["teacher_sha256"]}
    add_other(file, whose, {"corpus": line["corpus"], "test": dict(test)})


def add_other(file: Path, whose: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Adds a line that is not of a run, in place of an older one of the same.

    Args:
        file: the file; it is made where it is not there.
        whose: what tells it from other lines.
        values: the rest of the line.
    """
    with _taken_apart(file) as (_, others):
        others[:] = [one for one in others if not whose.items() <= one.items()]
        others.append(portable({**whose, **values}))


@contextmanager
def _taken_apart(file: Path) -> Iterator[tuple[dict[Run, dict[str, Any]], list[dict[str, Any]]]]:
    """Yields the lines of runs in a file, and its other lines; what is in them afterwards is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not beside the file, where a lock would be committed, or missed by whoever waits while it is deleted.
    whose = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"tutornet-lines-{whose}.lock"):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        others = [one for one in map(json.loads, text.splitlines()) if "recipe" not in one]
        lines = {run_of(one): one for one in (read_lines(file) if file.exists() else [])}
        yield lines, others
        with atomic_write(file) as temporary:
            rows = (json.dumps(one) + "\n" for one in (*lines.values(), *others))
            temporary.write_text("".join(rows), encoding="utf-8")
