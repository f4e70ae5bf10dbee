# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A training manifest from the output of NeMo's transcribe_speech.py: its `pred_text` becomes the text."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from nemo_tutornet.data.manifest import find_audio, in_store
from nemo_tutornet.data.manifest_lines import audio_key, json_row, manifest_lines, transcript
from nemo_tutornet.data.teacher_text import TeacherText, without_case_and_punctuation
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import atomic_write, expand_user

_SHOWN = 12  # characters in a message


def pseudo_manifest(
    source: Path,
    destination: Path,
    max_wer: float | None = None,
    keep_transcripts: bool = False,
    student: TeacherText | None = None,
) -> Counter[str]:
    r"""Writes a manifest whose `text` is the teacher's hypothesis.

    This is sequence-level distillation (Kim and Rush, arXiv 1606.07947); the filter by WER is
    Distil-Whisper's (arXiv 2311.00430).

    Rows keep their other fields. A replaced transcript stays as `reference_text`, which is empty where there
    is none. In a manifest that this function wrote and a teacher transcribed again, it is the transcript.
    Relative audio paths become absolute where the new manifest lies in another folder.

    Args:
        source: JSON lines with `audio_filepath`, `pred_text`, and where there is a transcript `text` or
            another of NeMo's keys for it.
        destination: the manifest to write. An older file is replaced once the new one is complete.
        max_wer: highest word error rate of a hypothesis against the row's transcript; other rows are dropped.
        keep_transcripts: whether a row with a transcript keeps it as its `text`.
        student: writes the hypotheses in the labels of the student, by the rule of the loss `pseudo`. None
            leaves them as they are, and then capitals and punctuation do not count as errors.

    Returns:
        Number of rows by outcome: `kept` (with the hypothesis), `transcript` (kept with the transcript),
        `empty` (dropped: the hypothesis is empty), `not_in_vocabulary` (dropped: the student has no labels
        for it), `high_wer` (dropped: above `max_wer`). `audio_not_found` counts the kept rows whose relative
        path leads to no file; that path stays as it is.

    Raises:
        TutorError: the source does not exist, has an invalid line, is the destination, or leaves no row; or
            the destination cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source, destination = Path(folder, "transcribed.jsonl"), Path(folder, "train.jsonl")
        ...     _ = source.write_text('{"audio_filepath": "a.wav", "pred_text": "one two"}\n')
        ...     pseudo_manifest(source, destination)
        ...     destination.read_text()
        Counter({'kept': 1})
        '{"audio_filepath": "a.wav", "pred_text": "one two", "text": "one two", "reference_text": ""}\n'
    """
    check_source(source)
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    destination = expand_user(destination).resolve()
    if source.resolve() == destination:
        raise TutorError(f"{source} is the source and the destination; give the new manifest another name.")
    moved = source.resolve().parent != destination.parent
    for where, line in manifest_lines(source):
        row = _read(line, where)
        reference = _reference(row, where)
        outcome, text = _judge(
            row["pred_text"].strip(), reference.strip(), max_wer, keep_transcripts, student
        )
        counts[outcome] += 1
        if outcome not in ("kept", "transcript"):
            continue
        row["text"] = text
        if outcome == "kept":
            row["reference_text"] = reference
        if moved and not _make_absolute(row, source.parent):
            counts["audio_not_found"] += 1
        rows.append(row)
    if not rows:
        dropped = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        lost = "" if student is None else " ".join(repr(c) for c, _ in student.missing.most_common(_SHOWN))
        lost = f"; no labels for {lost}" if lost else ""
        raise TutorError(
            f"{source} leaves no row to train on ({dropped or 'it has no row'}{lost}); relax the filter, "
            "take a student with other labels, or transcribe with another teacher."
        )
    try:
        with atomic_write(destination) as temporary:
            temporary.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
            )
    except OSError as error:
        raise TutorError(
            f"{destination} cannot be written ({error.strerror or error}); free the path or give another one."
        ) from None
    return counts


def check_source(source: Path) -> None:
    """Raises a TutorError if there is no such manifest."""
    if not source.is_file():
        raise TutorError(f"there is no manifest {source}; give the output of NeMo's transcribe_speech.py.")


def _read(line: bytes, where: str) -> dict[str, Any]:
    row = json_row(line, where)
    if not isinstance(row.get(audio_key(row)), str):
        raise TutorError(
            f"{where} has no audio_filepath; each line is a JSON object with audio_filepath and pred_text."
        )
    if not isinstance(row.get("pred_text"), str):
        raise TutorError(
            f"{where} has no pred_text; first transcribe the manifest with NeMo's transcribe_speech.py and a "
            "teacher."
        )
    return row


def _reference(row: dict[str, Any], where: str) -> str:
    """Returns the transcript of a row; empty where it has none."""
    # Beside `reference_text` the text is the hypothesis of an earlier call.
    found = row["reference_text"] if "reference_text" in row else transcript(row, where)
    return str(found or "")


def _make_absolute(row: dict[str, Any], folder: Path) -> bool:
    """Makes the relative audio paths of a row absolute; false where the file that NeMo reads is not found.

    transcribe_speech.py copies paths unchanged into any folder. A member of a tar has no file.
    """
    not_found = set()
    for key in {"audio_filepath", "audio_filename"} & row.keys():
        path = row[key]
        if isinstance(path, str) and not os.path.isabs(path) and not in_store(path):
            audio = find_audio(path, folder)
            if audio is None:
                not_found.add(key)
            else:
                row[key] = os.path.abspath(audio)
    return audio_key(row) not in not_found


def _judge(
    hypothesis: str,
    reference: str,
    max_wer: float | None,
    keep_transcripts: bool,
    student: TeacherText | None,
) -> tuple[str, str]:
    """Returns the outcome of a row and its new text."""
    if reference and keep_transcripts:
        return "transcript", reference
    if not hypothesis:
        return "empty", ""
    written = hypothesis
    if student is not None:
        labels = student.labels(hypothesis)
        if labels is None:
            return "not_in_vocabulary", ""
        written = student.decode(labels).strip()
    if reference and max_wer is not None:
        from jiwer import wer

        expected, found = (None if student is None else student.written(reference)), written
        if expected is None:
            expected, found = without_case_and_punctuation(reference), without_case_and_punctuation(written)
        if expected and wer(expected, found) > max_wer:
            return "high_wer", ""
    return "kept", written
