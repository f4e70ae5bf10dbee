# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A manifest to train on, from what NeMo's transcribe_speech.py writes with a teacher: its `pred_text`
becomes the text.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from nemo_tutornet.data.manifest import find_audio, in_store, json_row
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import atomic_write


def pseudo_manifest(
    source: Path, destination: Path, max_wer: float | None = None, keep_transcripts: bool = False
) -> Counter[str]:
    """Writes a manifest whose `text` is the teacher's hypothesis.

    Rows keep their other fields; a transcript that was replaced stays as `reference_text`. Audio is named so
    that it is found from the new place.

    Args:
        source: JSON lines with `audio_filepath` and `pred_text`, perhaps `text`.
        destination: the manifest to write; an older one there is replaced when the new one is complete.
        max_wer: where there is a transcript, drop a row whose hypothesis has a higher word error rate against
            it.
        keep_transcripts: where there is a transcript, train on that; hypotheses are for the other rows.

    Returns:
        Rows by their fate: `kept`, `transcript` (kept with it), `empty` (the teacher heard nothing),
        `high_wer` (above `max_wer`). `audio_not_found` are those of the first two whose relative path leads
        to no file here, and is left as it is.

    Raises:
        TutorError: no such manifest, a bad line, nothing left, or the manifest itself as destination.
    """
    if not source.is_file():
        raise TutorError(f"there is no manifest {source}; give the output of NeMo's transcribe_speech.py.")
    fates: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    destination = destination.expanduser().resolve()
    if source.resolve() == destination:
        raise TutorError(
            f"{source} would be overwritten by what is made of it; give the new manifest another name."
        )
    moved = source.resolve().parent != destination.parent
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _read(line, f"{source} line {number}")
            fate, text = _judge(row, max_wer, keep_transcripts)
            fates[fate] += 1
            if fate not in ("kept", "transcript"):
                continue
            if fate == "kept" and row.get("text"):
                row["reference_text"] = row["text"]
            row["text"] = text
            if moved and not os.path.isabs(row["audio_filepath"]) and not in_store(row["audio_filepath"]):
                # transcribe_speech.py copies paths as they are, also where its output lies elsewhere; a tar's
                # member has no file.
                audio = find_audio(row["audio_filepath"], source.parent)
                row["audio_filepath"] = row["audio_filepath"] if audio is None else os.path.abspath(audio)
                fates.update(["audio_not_found"] if audio is None else [])
            rows.append(row)
    if not rows:
        raise TutorError(
            f"{source} leaves no row to train on; loosen the filter, or transcribe with another teacher."
        )
    try:
        with atomic_write(destination) as temporary:
            temporary.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
            )
    except OSError as error:
        raise TutorError(
            f"{destination} cannot be written ({error.strerror or error}); nothing was changed there."
        ) from None
    return fates


def _read(line: bytes, where: str) -> dict[str, Any]:
    row = json_row(line, where)
    if not isinstance(row.get("audio_filepath"), str):
        raise TutorError(
            f"{where} has no audio_filepath; each line is a JSON object with audio_filepath and pred_text."
        )
    if not isinstance(row.get("pred_text"), str):
        raise TutorError(
            f"{where} has no pred_text; transcribe the manifest with NeMo's transcribe_speech.py and a "
            "teacher first."
        )
    return row


def _judge(row: dict[str, Any], max_wer: float | None, keep_transcripts: bool) -> tuple[str, str]:
    reference, hypothesis = str(row.get("text") or "").strip(), row["pred_text"].strip()
    if reference and keep_transcripts:
        return "transcript", reference
    if not hypothesis:
        return "empty", ""
    if reference and max_wer is not None:
        from jiwer import wer

        if wer(reference, hypothesis) > max_wer:
            return "high_wer", ""
    return "kept", hypothesis
