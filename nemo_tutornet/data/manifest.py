# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo manifests (JSON lines), checked before anything expensive begins."""

from __future__ import annotations

import json
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


def read_manifest(path: Path, shortest: float = 0.0) -> List[Utterance]:
    """Reads a manifest and checks each of its rows.

    Args:
        path: JSON lines with `audio_filepath`, `text` and mostly `duration` (seconds).
        shortest: refuse utterances shorter than this, in seconds: one frame of the model that will read them.

    Raises:
        TutorError: no such manifest, no rows, or a bad row, with its line number.
    """
    if not path.is_file():
        raise TutorError(f"there is no manifest {path}; give the path of a file of JSON lines.")
    rows = list(_rows(path, shortest))
    if not rows:
        raise TutorError(f"{path} has no rows; give a manifest with at least one utterance.")
    return rows


def _rows(path: Path, shortest: float) -> Iterator[Utterance]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(line, f"{path} line {number}", path.parent, shortest)


def _row(line: str, where: str, folder: Path, shortest: float) -> Utterance:
    import soundfile

    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TutorError(f"{where} is not JSON ({error.msg}); mend or remove the line.") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
        raise TutorError(f"{where} has no audio_filepath; each line is a JSON object with audio_filepath, duration and text.")
    if not isinstance(row.get("text", ""), str):
        raise TutorError(f"{where}: text must be a string, not {row['text']!r}.")
    audio = folder / Path(row["audio_filepath"]).expanduser()
    if not audio.is_file():
        raise TutorError(f"{where}: there is no audio file {audio}; mend the path or remove the line.")
    try:
        info = soundfile.info(str(audio))
    except (soundfile.LibsndfileError, OSError) as error:
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
    return float(value)


def check_manifests(model_cfg: Mapping[str, Any]) -> None:
    """Checks every plain manifest that a model's config names, before the model is built.

    Tarred and Lhotse sets have no audio files to look at and are left to NeMo. Rows that NeMo drops by `min_duration` may be
    short.

    Args:
        model_cfg: a NeMo CTC model's config with `train_ds`, `validation_ds` and `test_ds`.

    Raises:
        TutorError: the first mistake found.
    """
    for name in ("train_ds", "validation_ds", "test_ds"):
        section = model_cfg.get(name)
        if not section or section.get("is_tarred") or section.get("use_lhotse"):
            continue
        manifests = _manifest_of(section, f"model.{name}.manifest_filepath")
        shortest = _frame_seconds(model_cfg) if not section.get("min_duration") else 0.0
        for manifest in manifests:
            read_manifest(Path(manifest).expanduser(), shortest)


def _manifest_of(section: Any, key: str) -> List[str]:
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(section, "manifest_filepath"):
        raise TutorError(f"{key} is not set; give the path of a manifest, e.g. {key}=train.jsonl.")
    found: Optional[Any] = section.get("manifest_filepath")
    if not found:
        return []
    return found.split(",") if isinstance(found, str) else [str(item) for item in found]


def _frame_seconds(model_cfg: Mapping[str, Any]) -> float:
    """Seconds of one encoder frame, from the config alone: window stride times the encoder's strides."""
    encoder, stride = model_cfg["encoder"], 1
    for block in encoder.get("jasper") or []:
        stride *= int(block["stride"][0]) ** (int(block["repeat"]) if block.get("stride_last") is False else 1)
    stride *= int(encoder.get("subsampling_factor") or 1)
    return float(model_cfg["preprocessor"]["window_stride"]) * stride
