# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Manifests to read: rows, and a second of audio for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 16000
AUDIO = {"audio_filepath": "a.wav"}


def write_audio(path: Path, seconds: float) -> Path:
    soundfile.write(path, np.zeros(int(seconds * RATE)), RATE)
    return path


def manifest(folder: Path, *lines: Any, name: str = "m.jsonl") -> Path:
    """Writes a manifest; a line is an object, or a string or bytes as they are."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path = folder / name
    path.write_bytes(b"\n".join(raw))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"audio_filepath": "a.wav", "text": "x", **changes}
