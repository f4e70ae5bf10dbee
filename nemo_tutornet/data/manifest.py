# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo manifests (JSON lines): read, and checked before a model is built.

All times are in seconds.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from nemo_tutornet.data.manifest_lines import (
    audio_key,
    declared_duration,
    json_row,
    manifest_lines,
    seconds_of,
    transcript,
)
from nemo_tutornet.errors import TutorError

# AIStore and the stores behind it, and NVIDIA's Multi-Storage Client.
STORES = ("ais", "s3", "aws", "gs", "gcp", "az", "azure", "oci", "msc")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Utterance:
    """One row of a manifest.

    Attributes:
        audio: the audio file, resolved against the manifest's folder.
        duration: seconds of audio to read: the row's own `duration`, or less where the file is shorter.
        text: reference transcript; None where the row has none.
        offset: seconds from the start of the file to the start of the utterance.
        speaker: the row's `speaker`; None where it has none.
        utt_id: the row's `utt_id`; None where it has none.
        channel: the channel to read of audio with several: its number, or `average`; None where there is one.
        missing: seconds by which the file is shorter than the row says.
    """

    audio: Path
    duration: float
    text: str | None
    offset: float = 0.0
    speaker: str | None = None
    utt_id: str | None = None
    channel: int | str | None = None
    missing: float = 0.0

    @property
    def name(self) -> str:
        """The row's `utt_id`, else the file's name without its suffix, with the offset where there is one.

        Example:
            >>> Utterance(Path("an4/an251.flac"), 1.0, "yes", offset=2.5).name
            'an251@2.5'
        """
        if self.utt_id is not None:
            return self.utt_id
        return f"{self.audio.stem}@{self.offset:g}" if self.offset else self.audio.stem


@dataclass(frozen=True)
class Rules:
    """The conditions on the rows of a manifest: some are errors, some only leave a row out.

    Attributes:
        shortest: shortest allowed utterance, in seconds: one frame of the model that will read it.
        min_duration: rows whose own `duration` is below this are left out, as NeMo does.
        max_duration: rows whose own `duration` is above this are left out, as NeMo does.
        for_nemo: whether NeMo's datasets will read the rows. Then each row needs its `duration`, and audio in
            an object store is not opened here.
        channel: the channel that is read, by NeMo's datasets or by our commands: its number, or `average`.
            None means that audio with several channels is an error, because NeMo cannot batch it, and our
            commands would have to guess which channel holds the speech.
        needs_numbers: whether the duration must be a number, because NeMo sorts the rows by it.
        mono_as_it_is: whether audio with one channel is read as it is, also where `channel` is a number. The
            channel is then that of a run, whose `channel_selector` messages name.
    """

    shortest: float = 0.0
    min_duration: float = -math.inf
    max_duration: float = math.inf
    for_nemo: bool = False
    channel: int | str | None = None
    needs_numbers: bool = False
    mono_as_it_is: bool = False

    def __str__(self) -> str:
        limits = []
        if self.min_duration > -math.inf:
            limits.append(f" of at least {self.min_duration:g} s (min_duration)")
        if self.max_duration < math.inf:
            limits.append(f" of at most {self.max_duration:g} s (max_duration)")
        return " and".join(limits)


@dataclass(frozen=True)
class Row:
    """A row of a manifest, whose audio is not opened.

    Attributes:
        line: the row as it is in the manifest.
        where: the manifest and the line's number, for messages.
        folder: the manifest's folder.
    """

    line: bytes
    where: str
    folder: Path

    def declared_duration(self) -> float | None:
        """Returns the seconds that the row declares; None where it means the whole file.

        Raises:
            TutorError: the row is not a JSON object, or its duration is not a number.
        """
        declared = declared_duration(json_row(self.line, self.where), self.where)
        return declared if declared is not None and declared > 0 else None  # to NeMo, 0 and -1 mean it, too


def read_manifest(path: Path, shortest: float = 0.0, channel: int | str | None = None) -> list[Utterance]:
    """Reads a manifest and checks each of its rows.

    Args:
        path: JSON lines with `audio_filepath`, `text` and usually `duration` (seconds).
        shortest: shortest allowed utterance, in seconds: one frame of the model that will read it.
        channel: the channel to read of audio with several: its number, or `average` for their mean; None
            refuses such audio.

    Returns:
        The utterances in the manifest's order, at least one.

    Raises:
        TutorError: the manifest does not exist or has no row, or a row is invalid; the message has its line
            number.
    """
    rules = Rules(shortest, channel=channel)
    return open_rows(unopened_rows(path), rules)


def unopened_rows(path: Path) -> list[Row]:
    """Returns the rows of a manifest, for a command that opens a few of them with `open_rows`.

    Args:
        path: see `read_manifest`.

    Returns:
        The rows in the manifest's order, at least one.

    Raises:
        TutorError: the manifest does not exist, cannot be read, or has no row.
    """
    rows = list(manifest_rows(path))
    if not rows:
        raise TutorError(f"{path} has no utterance; give a manifest with at least one.")
    return rows


def open_rows(rows: Iterable[Row], rules: Rules) -> list[Utterance]:
    """Opens the audio of rows, and checks the rows.

    Returns:
        The utterances within the limits of `rules`.

    Raises:
        TutorError: a row is invalid; the message has its line number.
    """
    return [found for found in (open_row(row, rules) for row in rows) if found is not None]


def read_rows(path: Path, rules: Rules) -> tuple[list[Utterance], int]:
    """Returns the rows within the limits of `rules`, and the number of rows outside them."""
    found = [open_row(row, rules) for row in manifest_rows(path)]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def manifest_rows(path: Path) -> Iterator[Row]:
    """Reads the rows of a manifest, and opens no audio.

    Args:
        path: see `read_manifest`.

    Yields:
        The rows in the manifest's order.

    Raises:
        TutorError: the manifest does not exist or cannot be read.
    """
    if not os.path.isfile(path):
        raise TutorError(f"there is no manifest {path}; give the path of a file of JSON lines.")
    for where, line in manifest_lines(path):
        yield Row(line, where, path.parent)


def in_store(path: str) -> bool:
    """Tells whether NeMo would fetch a path from an object store.

    NeMo gives any address to its client for AIStore. Those of stores are accepted, because an address of
    another kind in somebody's manifest would make this machine open it.

    Example:
        >>> in_store("s3://bucket/train.json"), in_store("data/train.json"), in_store("http://host/a.wav")
        (True, False, False)
    """
    try:
        parts = urlparse(path)
    except ValueError:
        return False
    return bool(parts.scheme in STORES and parts.netloc and parts.path)


def check_address(path: str, where: str) -> None:
    """Refuses a path that NeMo would take for an address, but that is not in an object store.

    Raises:
        TutorError: it is such an address.
    """
    if _ADDRESS.match(path) and not in_store(path):
        raise TutorError(
            f"{where}: {path[:200]} is neither a file nor an object of a store that NeMo reads "
            f"({', '.join(f'{store}://' for store in STORES)}); download it, or fix the path."
        )


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


def open_row(unopened: Row, rules: Rules) -> Utterance | None:
    """Opens the audio of a row and checks the row.

    Returns:
        The utterance, or None where its duration is outside the limits of `rules`.

    Raises:
        TutorError: the row is invalid; the message has its line number.
    """
    import soundfile

    where = unopened.where
    row = json_row(unopened.line, where)
    named = row.get(audio_key(row))
    if named is None:
        raise TutorError(
            f"{where} has no audio_filepath; each line is a JSON object with audio_filepath, duration and "
            "text."
        )
    if not isinstance(named, str):
        raise TutorError(f"{where}: audio_filepath must be one path, not {str(named)[:40]}.")
    text = transcript(row, where, rules.for_nemo)
    if rules.for_nemo and not {"duration", "context_duration"} & row.keys():
        raise TutorError(
            f"{where} has no duration, which NeMo needs for training; add the duration in seconds."
        )
    declared = declared_duration(row, where)
    if declared is None and rules.needs_numbers:
        raise TutorError(
            f"{where}: duration is null, and use_semi_sorted_batching sorts by it; give the seconds of the "
            "utterance."
        )
    if declared is not None and not rules.min_duration <= declared <= rules.max_duration:
        return None
    offset = seconds_of(row, "offset", where) or 0.0
    if in_store(named):
        if rules.for_nemo:
            return Utterance(Path(named), declared or 0.0, text, offset)
        raise TutorError(
            f"{where}: {named} is in an object store, but this command reads local files only; download it "
            "first."
        )
    audio = find_audio(named, unopened.folder)
    if audio is None:
        check_address(named, where)
        candidates = str(unopened.folder / os.path.expanduser(named))
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
    _check_channels(info.channels, f"{where}: {audio}", rules)
    duration, missing = info.duration - offset, 0.0
    if declared is not None and declared > 0:  # to NeMo, 0 and -1 mean the whole file
        missing = max(declared - duration, 0.0)
        duration = min(declared, duration)
    if duration <= 0 or duration < rules.shortest:
        raise TutorError(
            f"{where}: the utterance has {max(duration, 0) * 1000:g} ms of audio, less than one frame of the "
            f"student ({rules.shortest * 1000:g} ms); remove the line."
        )
    speaker, utt_id = _name(row, "speaker"), _name(row, "utt_id")
    return Utterance(audio, duration, text, offset, speaker, utt_id, rules.channel, missing)


def _check_channels(channels: int, subject: str, rules: Rules) -> None:
    """Refuses audio with several channels where none is chosen, and audio without the chosen one."""
    if rules.channel is None and channels > 1:
        remedy = (
            "convert it to mono, or set channel_selector next to manifest_filepath (a channel's number, or "
            "average)"
            if rules.for_nemo
            else "write the channel that holds the speech to a mono file and name that in the manifest, or "
            "choose it where the command has the option --channel (its number, or average)"
        )
        raise TutorError(f"{subject} has {channels} channels, but an ASR model reads one; {remedy}.")
    if (
        isinstance(rules.channel, int)
        and rules.channel >= channels
        and not (rules.mono_as_it_is and channels == 1)
    ):
        count = "one channel" if channels == 1 else f"{channels} channels"
        option = "channel_selector" if rules.for_nemo or rules.mono_as_it_is else "--channel"
        raise TutorError(
            f"{subject} has {count}, so there is no channel {rules.channel} ({option} counts from 0); "
            f"correct {option}, or remove the line."
        )


def _name(row: Mapping[str, Any], key: str) -> str | None:
    """Reads the name of a speaker or an utterance, which some corpora give as a number."""
    value = row.get(key)
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
