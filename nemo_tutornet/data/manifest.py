# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo manifests (JSON lines), checked before anything expensive begins."""

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
        audio: the file, resolved against the manifest's folder.
        duration: seconds that are heard: as many as the row says, if the file has them.
        text: reference transcript; None where the row has none.
        offset: seconds into the file.
    """

    audio: Path
    duration: float
    text: str | None
    offset: float = 0.0


@dataclass(frozen=True)
class Rules:
    """What a row must be, and which rows do not count.

    Attributes:
        shortest: refuse utterances shorter than this, in seconds: one frame of the model that will read them.
        min_duration: leave out rows whose own `duration` is below this, in seconds, as NeMo does.
        max_duration: leave out rows whose own `duration` is above this, in seconds, as NeMo does.
        for_nemo: NeMo's datasets will read the rows, so each needs its `duration`, and audio in an object
            store is left to NeMo.
        one_channel: refuse audio with several channels, of which NeMo makes no batch unless a
        `channel_selector` chooses.
    """

    shortest: float = 0.0
    min_duration: float = -math.inf
    max_duration: float = math.inf
    for_nemo: bool = False
    one_channel: bool = False

    def __str__(self) -> str:
        least = (
            f" of at least {self.min_duration:g} s (min_duration)" if self.min_duration > -math.inf else ""
        )
        most = f" of at most {self.max_duration:g} s (max_duration)" if self.max_duration < math.inf else ""
        return least + (" and" if least and most else "") + most


def read_manifest(path: Path, shortest: float = 0.0) -> list[Utterance]:
    """Reads a manifest and checks each of its rows.

    Args:
        path: JSON lines with `audio_filepath`, `text` and mostly `duration` (seconds).
        shortest: refuse utterances shorter than this, in seconds: one frame of the model that will read them.

    Raises:
        TutorError: no such manifest, no rows, or a bad row, with its line number.
    """
    rows, _ = _read(path, Rules(shortest))
    if not rows:
        raise TutorError(f"{path} has no utterance; give a manifest with at least one.")
    return rows


def _read(path: Path, rules: Rules) -> tuple[list[Utterance], int]:
    """The rows that count, and the number of those that do not."""
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
    """A line's object; `where` is its file and number, for the sentence that refuses it."""
    if line.startswith(codecs.BOM_UTF8):
        raise TutorError(
            f"{where} begins with a byte order mark, which NeMo does not read; save the manifest as UTF-8 "
            "without BOM."
        )
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise TutorError(
            f"{where} has half of a character (\\ud800 to \\udfff alone); mend or remove the line."
        ) from None
    except UnicodeDecodeError:
        if line.startswith(b"\x1f\x8b"):
            raise TutorError(f"{where}: the manifest is compressed; gunzip it.") from None
        raise TutorError(f"{where} is not UTF-8; convert the manifest.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise TutorError(
            f"{where} is not JSON ({getattr(error, 'msg', error)}); mend or remove the line."
        ) from None
    if not isinstance(row, dict):
        raise TutorError(f"{where} is no JSON object with an audio_filepath; mend or remove the line.")
    return row


def in_store(named: str) -> bool:
    """True for what NeMo fetches from an object store, such as `s3://bucket/train.json`."""
    try:
        parts = urlparse(named)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc and parts.path)


def find_audio(named: str, folder: Path) -> Path | None:
    """The file that a row names, where NeMo looks: from the manifest's folder, then from the working
    directory.
    """
    places = (folder / os.path.expanduser(named), Path(named))
    return next((place for place in places if os.path.isfile(place)), None)


def _row(line: bytes, where: str, folder: Path, rules: Rules) -> Utterance | None:
    import soundfile

    row = json_row(line, where)
    # NeMo takes either name, and the first of them where there are both.
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
            f"{where} has no duration, which NeMo needs to train; write the audio's seconds into the row."
        )
    told = _number(row, "duration" if "duration" in row else "context_duration", where)
    if told is not None and not rules.min_duration <= told <= rules.max_duration:
        return None
    offset = _number(row, "offset", where) or 0.0
    if in_store(named):
        if rules.for_nemo:
            return Utterance(Path(named), told or 0.0, text, offset)
        raise TutorError(
            f"{where}: {named} is in an object store; here only files are read, so fetch it first."
        )
    audio = find_audio(named, folder)
    if audio is None:
        places = str(folder / os.path.expanduser(named))
        if not os.path.isabs(os.path.expanduser(named)):
            places += f", nor {Path.cwd() / named}"
        raise TutorError(f"{where}: there is no audio file {places}; mend the path or remove the line.")
    try:
        info = soundfile.info(str(audio))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise TutorError(
            f"{where}: {audio} is not readable audio ({error}); mend the file or remove the line."
        ) from None
    if info.frames <= 0:
        raise TutorError(f"{where}: {audio} is empty (no samples); remove the line.")
    if rules.one_channel and info.channels > 1:
        raise TutorError(
            f"{where}: {audio} has {info.channels} channels, but a recogniser hears one; make it mono, or "
            "set channel_selector "
            f"beside manifest_filepath (a channel's number, or average)."
        )
    rest = info.duration - offset
    heard = (
        min(told, rest) if told is not None and told > 0 else rest
    )  # as NeMo has it: 0 and -1 are the whole file
    if heard <= 0 or heard < rules.shortest:
        raise TutorError(
            f"{where}: the utterance has {max(heard, 0) * 1000:g} ms of audio, less than one frame of the "
            "student "
            f"({rules.shortest * 1000:g} ms); remove the line."
        )
    return Utterance(audio, heard, text, offset)


def _text(row: Mapping[str, Any], where: str, rules: Rules) -> str | None:
    """The transcript, under the names that NeMo knows for it; None where there is none."""
    named = row.get("text_filepath")
    if "text" not in row and named is not None:
        if not isinstance(named, str) or not os.path.isfile(named):
            raise TutorError(f"{where}: text_filepath {str(named)[:200]} is no file; mend the path.")
        try:
            return Path(named).read_text(encoding="utf-8").replace("\n", "")
        except (OSError, UnicodeDecodeError) as error:
            raise TutorError(
                f"{where}: text_filepath {named} cannot be read ({error}); mend the file."
            ) from None
    key = "text" if "text" in row else "normalized_text"
    text = row.get(key)
    if text is None and key in row and rules.for_nemo:
        raise TutorError(
            f"{where}: {key} is null, which NeMo cannot train on; leave {key} out where there is no "
            "transcript."
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
    """Checks every plain manifest that a model's config names, before the model is built.

    Tarred and Lhotse sets have no audio files to look at and are left to NeMo, as is what lies in an object
    store.

    Args:
        model_cfg: a NeMo CTC model's config with `train_ds`, `validation_ds` and `test_ds`.

    Returns:
        A sentence for each manifest of which NeMo will leave rows out for their length, for each training
        manifest with empty transcripts, where there is a `tutor:` section, or without a transcript in some
        row, where there is none, and where there is no validation set.

    Raises:
        TutorError: the first mistake found; no training set is one.
    """
    from omegaconf.errors import OmegaConfBaseException

    told: list[str] = []
    for name in ("train_ds", "validation_ds", "test_ds"):
        try:
            told += _check_section(model_cfg, name)
        except (
            OmegaConfBaseException
        ) as error:  # a value from the environment, or from a key that is not there
            raise TutorError(
                f"model.{name} cannot be read: {str(error).splitlines()[0].rstrip('.')}; mend the config."
            ) from None
    return told


def _check_section(model_cfg: Mapping[str, Any], name: str) -> list[str]:
    """`check_manifests` for one data set."""
    told: list[str] = []
    section, key = model_cfg.get(name) or {}, f"model.{name}.manifest_filepath"
    if not isinstance(section, Mapping):
        raise TutorError(
            f"model.{name} is {str(section)[:100]}, but it is a section; give a manifest as {key}."
        )
    if section.get("is_tarred") or section.get("use_lhotse"):
        return told
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
        told.append(
            f"{key} is not set, so no checkpoint is chosen by its WER, and val_wer=0.0000 in their names "
            "says nothing."
        )
    empty = []
    for manifest in manifests:
        if in_store(manifest):
            continue
        path = Path(manifest).expanduser()
        if len(manifests) > 1 and not path.is_file():
            raise TutorError(
                f"there is no manifest {path}; {key} names {len(manifests)}, for NeMo ends a path at a comma."
            )
        rows, left_out = _read(path, rules)
        if left_out:
            told.append(
                f"model.{name} leaves out {left_out} of {left_out + len(rows)} rows of {manifest}: it keeps "
                f"those{rules}."
            )
        if not rows:
            empty.append(manifest)
        silent = sum(row.text == "" for row in rows)
        without = sum(row.text is None for row in rows)
        if without and name == "train_ds" and not model_cfg.get("tutor"):
            told.append(
                f"{without} of {len(rows)} rows of {manifest} have no text: without a teacher the student "
                "learns silence from "
                f"them; leave them out of {key}."
            )
        if silent and name == "train_ds" and model_cfg.get("tutor"):
            told.append(
                f"{silent} rows of {manifest} have an empty text: NeMo cannot tell them from rows without "
                "one, so with a "
                f"teacher CTC skips them, while a student without one learns silence from them."
            )
    # NeMo reads a training set's manifests as one, and those in one string; each other in a list is a set of
    # its own.
    as_one = isinstance(section.get("manifest_filepath"), str) or (
        name == "train_ds" and not section.get("is_concat")
    )
    if empty and (not as_one or len(empty) == len(manifests)):
        raise TutorError(f"{key}: {', '.join(empty)} has no utterance{rules}; give at least one.")
    return told


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
    """NeMo's concatenated sets have lists in the list; a comma separates paths there, too."""
    for item in found:
        if isinstance(item, str):
            yield from item.split(",")
        elif isinstance(item, Sequence):  # as OmegaConf's lists are
            yield from _flat(item, key)
        else:
            raise TutorError(
                f"{key} holds {str(item)[:100]}, which is no path; give the path of a manifest, or a list of "
                "them."
            )


def _frame_seconds(model_cfg: Mapping[str, Any]) -> float:
    """Seconds of one encoder frame, from the config alone: window stride times the encoder's strides."""
    encoder, front, stride = model_cfg.get("encoder") or {}, model_cfg.get("preprocessor") or {}, 1
    for block in encoder.get("jasper") or []:
        stride *= int(block["stride"][0]) ** (1 if block.get("stride_last") else int(block["repeat"]))
    stride *= int(encoder.get("subsampling_factor") or 1)
    if front.get("n_window_stride"):
        return float(front["n_window_stride"]) / float(front.get("sample_rate") or 16000) * stride
    return float(front.get("window_stride") or 0.01) * stride
