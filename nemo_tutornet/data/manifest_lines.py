# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The lines of a NeMo manifest (JSON lines), and what NeMo reads from the keys of one."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import read_regular_file

_TEXT_BYTES = 16 << 20  # of one transcript


def manifest_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the lines of a manifest that are not blank.

    Args:
        path: the manifest.

    Yields:
        The file and the line's number, for messages, and the line.

    Raises:
        TutorError: the manifest cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path} line {number}", line
    except OSError as error:
        raise TutorError(
            f"the manifest {path} cannot be read ({error.strerror or error}); make it readable or give "
            "another one."
        ) from None


def json_row(line: bytes, where: str) -> dict[str, Any]:
    """Parses one line of a manifest.

    Args:
        line: the line's bytes.
        where: the file and the line number, for the error message.

    Returns:
        The JSON object.

    Raises:
        TutorError: the line is not a JSON object in UTF-8.

    Example:
        >>> json_row(b'{"audio_filepath": "a.wav", "duration": 1.5}', "train.jsonl line 1")
        {'audio_filepath': 'a.wav', 'duration': 1.5}
    """
    if line.startswith(codecs.BOM_UTF8):
        raise TutorError(
            f"{where} begins with a byte order mark, which NeMo does not accept; save the manifest as UTF-8 "
            "without BOM."
        )
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise TutorError(
            f"{where} has an unpaired surrogate (\\ud800 to \\udfff); fix or remove the line."
        ) from None
    except UnicodeDecodeError:
        if line.startswith(b"\x1f\x8b"):
            raise TutorError(f"{where}: the manifest is compressed; gunzip it.") from None
        raise TutorError(f"{where} is not UTF-8; convert the manifest.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits raises a plain ValueError
        raise TutorError(
            f"{where} is not JSON ({getattr(error, 'msg', error)}); fix or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise TutorError(f"{where} is not a JSON object with an audio_filepath; fix or remove the line.")
    return row


def audio_key(row: Mapping[str, Any]) -> str:
    """Returns the key that NeMo reads the path of a row's audio from. Where a row has both, one wins.

    Example:
        >>> audio_key({"audio_filepath": "a.wav", "audio_filename": "b.wav"})
        'audio_filename'
    """
    return "audio_filename" if "audio_filename" in row else "audio_filepath"


def transcript(row: Mapping[str, Any], where: str, for_nemo: bool = False) -> str | None:
    """Reads the transcript of a row from the first of NeMo's keys for it.

    Args:
        row: JSON object of a manifest.
        where: the manifest and the line's number, for messages.
        for_nemo: whether NeMo's datasets will read it, which accept no null.

    Returns:
        The transcript; None where the row has none.

    Raises:
        TutorError: it is not text, or its file cannot be read.

    Example:
        >>> transcript({"normalized_text": "one"}, "train.jsonl line 1")
        'one'
    """
    named = row.get("text_filepath")
    if "text" not in row and named is not None:
        if not isinstance(named, str) or not os.path.isfile(named):
            raise TutorError(f"{where}: text_filepath {str(named)[:200]} is not a file; fix the path.")
        try:
            return read_regular_file(Path(named), _TEXT_BYTES).decode("utf-8").replace("\n", "")
        except (OSError, UnicodeDecodeError) as error:
            raise TutorError(
                f"{where}: text_filepath {named} cannot be read ({error}); fix the file."
            ) from None
    key = "text" if "text" in row else "normalized_text"
    text = row.get(key)
    if text is None and key in row and for_nemo:
        raise TutorError(
            f"{where}: {key} is null, which NeMo cannot train on; remove {key} from a row without transcript."
        )
    if text is not None and not isinstance(text, str):
        raise TutorError(f"{where}: {key} must be a string, not {text!r}.")
    return text


def declared_duration(row: Mapping[str, Any], where: str) -> float | None:
    """Reads the seconds that a row declares; None where it declares none. 0 and -1 mean the whole file.

    Raises:
        TutorError: its duration is not a number of seconds.
    """
    return seconds_of(row, "duration" if "duration" in row else "context_duration", where)


def seconds_of(row: Mapping[str, Any], key: str, where: str) -> float | None:
    """Reads a number of seconds of a row; None where the row has none.

    Raises:
        TutorError: it is not a number, or not one of seconds.
    """
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TutorError(f"{where}: {key} must be a number of seconds, not {value!r}.")
    if not abs(value) < math.inf or (key == "offset" and value < 0) or abs(value) > 1e9:
        raise TutorError(f"{where}: {key} must be a number of seconds, not {str(value)[:40]}.")
    return float(value)
