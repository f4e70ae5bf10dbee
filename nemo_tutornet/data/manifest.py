# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo manifests (JSON lines), checked before anything expensive begins."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional

from nemo_tutornet.errors import TutorError


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest.

    Attributes:
        audio: the file, resolved against the manifest's folder.
        duration: seconds, of the row if it has it, else of the file.
        text: reference transcript.
        offset: seconds into the file.
    """

    audio: Path
    duration: float
    text: str
    offset: float = 0.0


def read_manifest(path: Path, shortest: float = 0.0, min_duration: float = 0.0) -> List[Utterance]:
    """Reads a manifest and checks each of its rows.

    Args:
        path: JSON lines with `audio_filepath`, `text` and mostly `duration` (seconds).
        shortest: refuse utterances shorter than this, in seconds: one frame of the model that will read them.
        min_duration: leave out rows whose own `duration` is below this, in seconds, as NeMo does.

    Raises:
        TutorError: no such manifest, no rows, or a bad row, with its line number.
    """
    if not path.is_file():
        raise TutorError(f"there is no manifest {path}; give the path of a file of JSON lines.")
    rows = [row for row in _rows(path, shortest, min_duration) if row is not None]
    if not rows:
        least = f" of at least {min_duration:g} s" if min_duration else ""
        raise TutorError(f"{path} has no utterance{least}; give a manifest with at least one.")
    return rows


def _rows(path: Path, shortest: float, min_duration: float) -> Iterator[Optional[Utterance]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(line, f"{path} line {number}", path.parent, shortest, min_duration)


def _row(line: bytes, where: str, folder: Path, shortest: float, min_duration: float) -> Optional[Utterance]:
    import soundfile

    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise TutorError(f"{where} is not UTF-8; convert the manifest.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise TutorError(f"{where} is not JSON ({getattr(error, 'msg', error)}); mend or remove the line.") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
        raise TutorError(f"{where} has no audio_filepath; each line is a JSON object with audio_filepath, duration and text.")
    if not isinstance(row.get("text", ""), str):
        raise TutorError(f"{where}: text must be a string, not {row['text']!r}.")
    if 0 <= _number(row, "duration", min_duration, where) < min_duration:
        return None
    audio = folder / os.path.expanduser(row["audio_filepath"])
    if not os.path.isfile(audio) and os.path.isfile(row["audio_filepath"]):
        audio = Path(row["audio_filepath"])  # NeMo's second choice: relative to the working directory
    if not os.path.isfile(audio):
        raise TutorError(f"{where}: there is no audio file {audio}; mend the path or remove the line.")
    try:
        info = soundfile.info(str(audio))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise TutorError(f"{where}: {audio} is not readable audio ({error}); mend the file or remove the line.") from None
    if info.frames <= 0:
        raise TutorError(f"{where}: {audio} is empty (no samples); remove the line.")
    offset = _number(row, "offset", 0.0, where)
    duration = _number(row, "duration", info.duration - offset, where)
    heard = min(duration, info.duration - offset)
    if heard <= 0 or heard < shortest:
        raise TutorError(
            f"{where}: the utterance has {max(heard, 0) * 1000:g} ms of audio, less than one frame of the student "
            f"({shortest * 1000:g} ms); remove the line."
        )
    return Utterance(audio=audio, duration=duration, text=row.get("text", ""), offset=offset)


def _number(row: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TutorError(f"{where}: {key} must be a number of seconds, not {value!r}.")
    if not abs(value) < math.inf or (key == "offset" and value < 0) or abs(value) > 1e9:
        raise TutorError(f"{where}: {key} must be a number of seconds, not {str(value)[:40]}.")
    return float(value)


def check_manifests(model_cfg: Mapping[str, Any]) -> None:
    """Checks every plain manifest that a model's config names, before the model is built.

    Tarred and Lhotse sets have no audio files to look at and are left to NeMo.

    Args:
        model_cfg: a NeMo CTC model's config with `train_ds`, `validation_ds` and `test_ds`.

    Raises:
        TutorError: the first mistake found.
    """
    for name in ("train_ds", "validation_ds", "test_ds"):
        section = model_cfg.get(name)
        if not section or section.get("is_tarred") or section.get("use_lhotse"):
            continue
        for manifest in _manifest_of(section, f"model.{name}.manifest_filepath"):
            read_manifest(Path(manifest).expanduser(), _frame_seconds(model_cfg), float(section.get("min_duration") or 0.0))


def _manifest_of(section: Any, key: str) -> List[str]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(section, DictConfig) and OmegaConf.is_missing(section, "manifest_filepath"):
        raise TutorError(f"{key} is not set; give the path of a manifest, e.g. {key}=train.jsonl.")
    found: Optional[Any] = section.get("manifest_filepath")
    if not found:
        return []
    return found.split(",") if isinstance(found, str) else [str(item) for item in found]


def _frame_seconds(model_cfg: Mapping[str, Any]) -> float:
    """Seconds of one encoder frame, from the config alone: window stride times the encoder's strides."""
    encoder, stride = model_cfg["encoder"], 1
    for block in encoder.get("jasper") or []:
        stride *= int(block["stride"][0]) ** (1 if block.get("stride_last") else int(block["repeat"]))
    stride *= int(encoder.get("subsampling_factor") or 1)
    return float(model_cfg["preprocessor"]["window_stride"]) * stride
