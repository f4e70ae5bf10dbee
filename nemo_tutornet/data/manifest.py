# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo manifests (JSON lines): read, and checked before a model is built.

All times are in seconds.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from nemo_tutornet.errors import TutorError

_NOT_SET = "{key} is not set; give the path of a manifest, e.g. {key}=train.jsonl."


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest.

    Attributes:
        audio: the audio file, resolved against the manifest's folder.
        duration: seconds of audio to read: the row's own `duration`, or less where the file is shorter.
        text: reference transcript; None where the row has none.
        offset: seconds from the start of the file to the start of the utterance.
    """

    audio: Path
    duration: float
    text: str | None
    offset: float = 0.0


@dataclass(frozen=True)
class Rules:
    """The conditions on the rows of a manifest: some are errors, some only leave a row out.

    Attributes:
        shortest: shortest allowed utterance, in seconds: one frame of the model that will read it.
        min_duration: rows whose own `duration` is below this are left out, as NeMo does.
        max_duration: rows whose own `duration` is above this are left out, as NeMo does.
        for_nemo: whether NeMo's datasets will read the rows. Then each row needs its `duration`, and audio in
            an object store is not opened here.
        one_channel: whether audio with several channels is an error. NeMo cannot batch it without a
            `channel_selector`.
    """

    shortest: float = 0.0
    min_duration: float = -math.inf
    max_duration: float = math.inf
    for_nemo: bool = False
    one_channel: bool = False

    def __str__(self) -> str:
        limits = []
        if self.min_duration > -math.inf:
            limits.append(f" of at least {self.min_duration:g} s (min_duration)")
        if self.max_duration < math.inf:
            limits.append(f" of at most {self.max_duration:g} s (max_duration)")
        return " and".join(limits)


def read_manifest(path: Path, shortest: float = 0.0) -> list[Utterance]:
    """Reads a manifest and checks each of its rows.

    Args:
        path: JSON lines with `audio_filepath`, `text` and usually `duration` (seconds).
        shortest: shortest allowed utterance, in seconds: one frame of the model that will read it.

    Returns:
        The utterances in the manifest's order, at least one.

    Raises:
        TutorError: the manifest does not exist or has no row, or a row is invalid; the message has its line
            number.
    """
    rows, _ = _read(path, Rules(shortest))
    if not rows:
        raise TutorError(f"{path} has no utterance; give a manifest with at least one.")
    return rows


def _read(path: Path, rules: Rules) -> tuple[list[Utterance], int]:
    """Returns the rows within the limits of `rules`, and the number of rows outside them."""
    if not path.is_file():
        raise TutorError(f"there is no manifest {path}; give the path of a file of JSON lines.")
    found = list(_rows(path, rules))
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _rows(path: Path, rules: Rules) -> Iterator[Utterance | None]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(line, f"{path} line {number}", path.parent, rules)


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


def in_store(path: str) -> bool:
    """Tells whether NeMo would fetch a path from an object store.

    Example:
        >>> in_store("s3://bucket/train.json"), in_store("data/train.json")
        (True, False)
    """
    try:
        parts = urlparse(path)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc and parts.path)


def find_audio(path: str, folder: Path) -> Path | None:
    """Finds an audio file where NeMo looks: in the manifest's folder, then in the working directory.

    Args:
        path: the path in the manifest's row.
        folder: the manifest's folder.

    Returns:
        The file, or None where neither exists.

    Example:
        >>> find_audio("no-such-file.wav", Path("data")) is None
        True
    """
    candidates = (folder / os.path.expanduser(path), Path(path))
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def _row(line: bytes, where: str, folder: Path, rules: Rules) -> Utterance | None:
    import soundfile

    row = json_row(line, where)
    # NeMo accepts both keys; where a row has both, audio_filename wins.
    named = row.get("audio_filename", row.get("audio_filepath"))
    if named is None:
        raise TutorError(
            f"{where} has no audio_filepath; each line is a JSON object with audio_filepath, duration and "
            "text."
        )
    if not isinstance(named, str):
        raise TutorError(f"{where}: audio_filepath must be one path, not {str(named)[:40]}.")
    text = _text(row, where, rules)
    if rules.for_nemo and not {"duration", "context_duration"} & row.keys():
        raise TutorError(
            f"{where} has no duration, which NeMo needs for training; add the duration in seconds."
        )
    declared_duration = _number(row, "duration" if "duration" in row else "context_duration", where)
    if declared_duration is not None and not rules.min_duration <= declared_duration <= rules.max_duration:
        return None
    offset = _number(row, "offset", where) or 0.0
    if in_store(named):
        if rules.for_nemo:
            return Utterance(Path(named), declared_duration or 0.0, text, offset)
        raise TutorError(
            f"{where}: {named} is in an object store, but this command reads local files only; download it "
            "first."
        )
    audio = find_audio(named, folder)
    if audio is None:
        candidates = str(folder / os.path.expanduser(named))
        if not os.path.isabs(os.path.expanduser(named)):
            candidates += f" or {Path.cwd() / named}"
        raise TutorError(f"{where}: there is no audio file {candidates}; fix the path or remove the line.")
    try:
        info = soundfile.info(str(audio))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise TutorError(
            f"{where}: {audio} is not readable audio ({error}); fix the file or remove the line."
        ) from None
    if info.frames <= 0:
        raise TutorError(f"{where}: {audio} is empty (no samples); remove the line.")
    if rules.one_channel and info.channels > 1:
        raise TutorError(
            f"{where}: {audio} has {info.channels} channels, but an ASR model reads one; convert it to mono, "
            "or set channel_selector next to manifest_filepath (a channel's number, or average)."
        )
    duration = info.duration - offset
    if declared_duration is not None and declared_duration > 0:  # to NeMo, 0 and -1 mean the whole file
        duration = min(declared_duration, duration)
    if duration <= 0 or duration < rules.shortest:
        raise TutorError(
            f"{where}: the utterance has {max(duration, 0) * 1000:g} ms of audio, less than one frame of the "
            f"student ({rules.shortest * 1000:g} ms); remove the line."
        )
    return Utterance(audio, duration, text, offset)


def _text(row: Mapping[str, Any], where: str, rules: Rules) -> str | None:
    """Reads the transcript of a row from any of NeMo's keys for it; None where the row has none."""
    named = row.get("text_filepath")
    if "text" not in row and named is not None:
        if not isinstance(named, str) or not os.path.isfile(named):
            raise TutorError(f"{where}: text_filepath {str(named)[:200]} is not a file; fix the path.")
        try:
            return Path(named).read_text(encoding="utf-8").replace("\n", "")
        except (OSError, UnicodeDecodeError) as error:
            raise TutorError(
                f"{where}: text_filepath {named} cannot be read ({error}); fix the file."
            ) from None
    key = "text" if "text" in row else "normalized_text"
    text = row.get(key)
    if text is None and key in row and rules.for_nemo:
        raise TutorError(
            f"{where}: {key} is null, which NeMo cannot train on; remove {key} from a row without transcript."
        )
    if text is not None and not isinstance(text, str):
        raise TutorError(f"{where}: {key} must be a string, not {text!r}.")
    return text


def _number(row: Mapping[str, Any], key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TutorError(f"{where}: {key} must be a number of seconds, not {value!r}.")
    if not abs(value) < math.inf or (key == "offset" and value < 0) or abs(value) > 1e9:
        raise TutorError(f"{where}: {key} must be a number of seconds, not {str(value)[:40]}.")
    return float(value)


def check_manifests(model_cfg: Mapping[str, Any]) -> list[str]:
    """Checks every manifest of audio files in a model's config, before the model is built.

    Tarred and Lhotse data sets and object stores are not checked here, but by NeMo.

    Args:
        model_cfg: config of a NeMo CTC model with `train_ds`, `validation_ds` and `test_ds`.

    Returns:
        Warnings, a sentence each: NeMo will leave out rows because of their duration; training rows have an
        empty transcript, in a config with a `tutor:` section; training rows have no transcript, in a config
        without it; there is no validation set.

    Raises:
        TutorError: the first mistake, e.g. a config without a training set.
    """
    from omegaconf.errors import OmegaConfBaseException

    warnings: list[str] = []
    for name in ("train_ds", "validation_ds", "test_ds"):
        try:
            warnings += _check_section(model_cfg, name)
        except (
            OmegaConfBaseException
        ) as error:  # e.g. an interpolation of a variable or key that does not exist
            raise TutorError(
                f"model.{name} cannot be read: {str(error).splitlines()[0].rstrip('.')}; fix the config."
            ) from None
    return warnings


def _check_section(model_cfg: Mapping[str, Any], name: str) -> list[str]:
    """Checks one data set of a config, as `check_manifests` describes."""
    warnings: list[str] = []
    section, key = model_cfg.get(name) or {}, f"model.{name}.manifest_filepath"
    if not isinstance(section, Mapping):
        raise TutorError(
            f"model.{name} is {str(section)[:100]}, but it must be a section; give a manifest as {key}."
        )
    if section.get("is_tarred") or section.get("use_lhotse"):
        return warnings
    limits = {
        limit: _limit(section, name, limit)
        for limit in ("min_duration", "max_duration")
        if section.get(limit) is not None
    }
    one_channel = section.get("channel_selector") is None
    rules = Rules(_frame_seconds(model_cfg), for_nemo=True, one_channel=one_channel, **limits)
    manifests = _manifests_of(section, key)
    if not manifests and name == "train_ds":
        raise TutorError(_NOT_SET.format(key=key))
    if not manifests and name == "validation_ds":
        warnings.append(
            f"{key} is not set, so no checkpoint can be selected by its WER; ignore val_wer=0.0000 in the "
            "names of checkpoints."
        )
    empty = []
    for manifest in manifests:
        if in_store(manifest):
            continue
        path = Path(manifest).expanduser()
        if len(manifests) > 1 and not path.is_file():
            raise TutorError(
                f"there is no manifest {path}; {key} names {len(manifests)} manifests, because NeMo ends a "
                "path at a comma."
            )
        rows, left_out = _read(path, rules)
        if left_out:
            warnings.append(
                f"model.{name} leaves out {left_out} of {left_out + len(rows)} rows of {manifest}: it keeps "
                f"rows{rules}."
            )
        if not rows:
            empty.append(manifest)
        empty_texts = sum(row.text == "" for row in rows)
        without_text = sum(row.text is None for row in rows)
        if without_text and name == "train_ds" and not model_cfg.get("tutor"):
            warnings.append(
                f"{without_text} of {len(rows)} rows of {manifest} have no text: without a teacher the "
                f"student learns to output silence for them; remove them from {key}."
            )
        if empty_texts and name == "train_ds" and model_cfg.get("tutor"):
            warnings.append(
                f"{empty_texts} rows of {manifest} have an empty text: NeMo cannot distinguish them from "
                "rows without a text, so CTC skips them with a teacher; without a teacher the student learns "
                "to output silence for them."
            )
    # NeMo joins the manifests of a training set, and those in one string; elsewhere each manifest of a list
    # is a data set of its own.
    joined = isinstance(section.get("manifest_filepath"), str) or (
        name == "train_ds" and not section.get("is_concat")
    )
    if empty and (not joined or len(empty) == len(manifests)):
        raise TutorError(f"{key}: {', '.join(empty)} has no utterance{rules}; give at least one.")
    return warnings


def _limit(section: Mapping[str, Any], name: str, key: str) -> float:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TutorError(f"model.{name}.{key} is {str(value)[:100]}, but it must be a number of seconds.")
    return float(value)


def _manifests_of(section: Any, key: str) -> list[str]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(section, DictConfig) and OmegaConf.is_missing(section, "manifest_filepath"):
        raise TutorError(_NOT_SET.format(key=key))
    found: Any | None = section.get("manifest_filepath")
    return list(_flat([found], key)) if found else []


def _flat(found: Any, key: str) -> Iterator[str]:
    """Yields every path in a string with commas, a list, or the nested lists of concatenated data sets."""
    for item in found:
        if isinstance(item, str):
            yield from item.split(",")
        elif isinstance(item, Sequence):  # OmegaConf's lists are no `list`, but a Sequence
            yield from _flat(item, key)
        else:
            raise TutorError(
                f"{key} holds {str(item)[:100]}, which is not a path; give the path of a manifest, or a list "
                "of paths."
            )


def _frame_seconds(model_cfg: Mapping[str, Any]) -> float:
    """Computes the seconds of one encoder frame from a config: window stride times the encoder's strides."""
    encoder, front, stride = model_cfg.get("encoder") or {}, model_cfg.get("preprocessor") or {}, 1
    for block in encoder.get("jasper") or []:
        stride *= int(block["stride"][0]) ** (1 if block.get("stride_last") else int(block["repeat"]))
    stride *= int(encoder.get("subsampling_factor") or 1)
    if front.get("n_window_stride"):
        return float(front["n_window_stride"]) / float(front.get("sample_rate") or 16000) * stride
    return float(front.get("window_stride") or 0.01) * stride
