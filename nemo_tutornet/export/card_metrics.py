# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The error rates of a model card: a student's results in files of `nemo-tutornet evaluate --json`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, shorten
from nemo_tutornet.export.card_student import Student
from nemo_tutornet.utils.files import read_regular_file

_MOST_BYTES = 16 << 20
_NUMBERS = ("utterances", "wer", "wer_low", "wer_high", "cer", "parameters")
# Two results that a card could not tell apart are one result only if all of these are the same.
_SHOWN = ("utterances", "wer", "wer_low", "wer_high", "cer", "text_processing", "channel")


def read_named_file(path: Path, option: str) -> bytes:
    """Reads a file that an option names.

    Args:
        path: the file.
        option: the option, for the message.

    Raises:
        TutorError: it cannot be read.
    """
    try:
        return read_regular_file(path, _MOST_BYTES)
    except OSError as error:
        raise TutorError(f"{option} {path} cannot be read ({error.strerror or error}).") from None


def read_evaluations(entry: str) -> tuple[str | None, Path, list[Mapping[str, Any]]]:
    """Reads a file of `evaluate --json`.

    Args:
        entry: `FILE` or `NAME=FILE`.

    Returns:
        The name if one is given, the file, and its results.

    Raises:
        TutorError: the file cannot be read, or is no such file.
    """
    name, _, file = entry.rpartition("=")
    if Path(entry).is_file():
        name, file = "", entry
    path = Path(file)
    content = read_named_file(path, "--metrics")
    try:
        rows = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise TutorError(f"--metrics {path} is no JSON; give what evaluate --json printed.") from None
    for row in rows if isinstance(rows, list) and rows else [None]:
        row = row if isinstance(row, dict) else {}
        texts = all(isinstance(row.get(key), str) for key in ("model", "runtime"))
        if not texts or not all(_is_number(row.get(key)) for key in _NUMBERS):
            raise TutorError(f"--metrics {path} has no results of evaluate --json; give what that printed.")
    return name.strip() or None, path, rows


def results_of(student: Student, entries: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Collects the results of a student from files of `evaluate --json`.

    A result belongs to the student if the evaluated model had the student's weights. A result without a
    checksum of weights, which an earlier version wrote or which is of another exporter's graph, belongs to it
    by the name of the model's file and its number of parameters.

    Args:
        student: what is known of the student and its files.
        entries: the files, as for `read_evaluations`.

    Returns:
        The results, each with the name of its test set. Equal results of one runtime on one test set are one.

    Raises:
        TutorError: a file cannot be read or has no result of the student, or results differ that the card
            could not tell apart.
    """
    found: dict[tuple[str, str, str], tuple[str, Mapping[str, Any]]] = {}
    for entry in entries:
        for name, row in _of_student(entry, student):
            _, first = found.setdefault((name, row["runtime"], str(row.get("decoder"))), (name, row))
            if any(row.get(key) != first.get(key) for key in _SHOWN):
                models = " and ".join(dict.fromkeys((first["model"], row["model"])))
                raise TutorError(
                    f"--metrics has different results of {shorten(models)} on the test set {name} with the "
                    f"runtime {plain(row['runtime'])}; evaluate {student.file} alone, or give each test set "
                    "its name with NAME=FILE."
                )
    return list(found.values())


def changes_in_words(row: Mapping[str, Any]) -> list[str]:
    """Says what `evaluate` did to transcripts and hypotheses before errors were counted.

    Args:
        row: a result of `evaluate --json`.

    Returns:
        A phrase for each change; empty for none.

    Example:
        >>> changes_in_words({"text_processing": {"do_lowercase": True, "rm_punctuation": False}})
        ['lower case']
    """
    given = row.get("text_processing")
    given = given if isinstance(given, dict) else {}
    marks = re.sub(r"[\s`]", "", str(given.get("punctuation_marks", "")))
    words = {
        "separate_punctuation": f"each of the marks `{marks}` is a word" if marks else None,
        "do_lowercase": "lower case",
        "rm_punctuation": f"without the marks `{marks}`" if marks else None,
    }
    return [phrase for key, phrase in words.items() if given.get(key) is True and phrase]


def plain(name: str) -> str:
    """A name that breaks no table of Markdown."""
    return re.sub(r"[\s|`<>]+", " ", name).strip() or "test set"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _of_student(entry: str, student: Student) -> list[tuple[str, Mapping[str, Any]]]:
    """The results of this student in a file of `evaluate --json`, each with the name of its test set."""
    name, path, rows = read_evaluations(entry)
    files = {student.file, student.source, student.sherpa, student.onnx_asr, *student.onnx}
    found, named = [], []
    for row in rows:
        is_named = Path(row["model"]).name in files
        named += [row] if is_named else []
        if isinstance(row.get("weights_sha256"), str):
            if row["weights_sha256"] == student.weights_sha256:
                found.append(row)
        elif is_named:
            if row["parameters"] != student.parameters:
                raise TutorError(
                    f"--metrics {path} is of a {Path(row['model']).name} with {row['parameters']:,} "
                    f"parameters, and this student has {student.parameters:,}; evaluate it again."
                )
            found.append(row)
    if not found and named:
        raise TutorError(
            f"--metrics {path} is of a {Path(named[0]['model']).name} with other weights than this student; "
            "evaluate this student, or export the file that was evaluated."
        )
    if not found:
        others = ", ".join(dict.fromkeys(Path(row["model"]).name for row in rows))
        raise TutorError(
            f"--metrics {path} has no result of {student.file}, but of {shorten(others)}; evaluate "
            f"{student.file} with --json first."
        )
    return [(plain(name or _stem(row.get("manifest")) or path.stem), row) for row in found]


def _stem(manifest: Any) -> str | None:
    return Path(manifest).stem if isinstance(manifest, str) else None
