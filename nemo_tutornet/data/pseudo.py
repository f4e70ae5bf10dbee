# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A manifest to train on, from what NeMo's transcribe_speech.py writes with a teacher: its `pred_text` becomes the text."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from nemo_tutornet.checkpoints import written_whole
from nemo_tutornet.errors import TutorError


def pseudo_manifest(
    source: Path, destination: Path, max_wer: Optional[float] = None, keep_transcripts: bool = False
) -> Counter[str]:
    """Writes a manifest whose `text` is the teacher's hypothesis.

    Rows keep their other fields; a transcript that was replaced stays as `reference_text`. Audio is named so that it is found
    from the new place.

    Args:
        source: JSON lines with `audio_filepath` and `pred_text`, perhaps `text`.
        destination: the manifest to write; an older one there is replaced when the new one is complete.
        max_wer: where there is a transcript, drop a row whose hypothesis has a higher word error rate against it.
        keep_transcripts: where there is a transcript, train on that; hypotheses are for the other rows.

    Returns:
        Rows by their fate: `kept`, `transcript` (kept with it), `empty` (the teacher heard nothing), `wrong` (above `max_wer`).

    Raises:
        TutorError: no such manifest, a bad line, or nothing left.
    """
    if not source.is_file():
        raise TutorError(f"there is no manifest {source}; give the output of NeMo's transcribe_speech.py.")
    fates: Counter[str] = Counter()
    rows: List[Dict[str, Any]] = []
    moved = source.resolve().parent != destination.expanduser().resolve().parent
    with source.open(encoding="utf-8") as file:
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
            if moved:
                row["audio_filepath"] = os.path.abspath(source.parent / os.path.expanduser(row["audio_filepath"]))
            rows.append(row)
    if not rows:
        raise TutorError(f"{source} leaves no row to train on; loosen the filter, or transcribe with another teacher.")
    with written_whole(destination.expanduser().resolve()) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return fates


def _read(line: str, where: str) -> Dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TutorError(f"{where} is not JSON ({getattr(error, 'msg', error)}); mend or remove the line.") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
        raise TutorError(f"{where} has no audio_filepath; each line is a JSON object with audio_filepath and pred_text.")
    if not isinstance(row.get("pred_text"), str):
        raise TutorError(
            f"{where} has no pred_text; transcribe the manifest with NeMo's transcribe_speech.py and a teacher first."
        )
    return row


def _judge(row: Dict[str, Any], max_wer: Optional[float], keep_transcripts: bool) -> Tuple[str, str]:
    reference, hypothesis = str(row.get("text") or "").strip(), row["pred_text"].strip()
    if reference and keep_transcripts:
        return "transcript", reference
    if not hypothesis:
        return "empty", ""
    if reference and max_wer is not None:
        from jiwer import wer

        if wer(reference, hypothesis) > max_wer:
            return "wrong", ""
    return "kept", hypothesis
