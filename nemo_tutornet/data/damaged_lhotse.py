# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Damaged audio in sets that Lhotse reads: named with its tar, and in a training left out while it is little.

Lhotse leaves damaged utterances out of a batch, without a limit and with a warning of many lines. A batch of
damaged ones alone, and a file whose header is damaged, end the training with an error of its own. NeMo leaves
out the rest of a tar that it cannot read.
"""

from __future__ import annotations

import hashlib
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

import torch

from nemo_tutornet.data.damage import allow_damaged, reason_in_short
from nemo_tutornet.data.damaged_tars import REPAIR_TAR, check_tar
from nemo_tutornet.data.dataloader import speech_of
from nemo_tutornet.data.lhotse_rows import MOST_ROWS, lhotse_rows, open_cuts
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.progress import PartReport

_REPAIR_FILE = "fix the file or remove its line from the manifest"
Note = Callable[[str, str, str], None]  # of the utterance's name, the reason and what to do


class DamagedUtterances:
    """The damaged utterances of a set, in all its workers.

    Args:
        section: section of the config that the set comes from, for messages.
        most: share of the utterances that may be damaged; 0 for none.
        data: the section. Its utterances are counted when the first one is damaged, up to `MOST_ROWS`. More
            do not raise the limit.
    """

    def __init__(self, section: str, most: float, data: Mapping[str, Any] | None) -> None:
        self.section, self.most, self._data = section, most, data
        self._total = torch.zeros(1, dtype=torch.int64).share_memory_()  # 0 until a worker has counted
        self._known = torch.zeros(int(most * MOST_ROWS) + 2, dtype=torch.int64).share_memory_()

    def note(self, name: str, reason: str, fix: str) -> None:
        """Counts an utterance once, and warns of it.

        Raises:
            TutorError: more utterances are damaged than may be.
        """
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") + 1
        if (self._known == digest).any():
            return
        if self.most and not self._total and self._data is not None:
            self._total.fill_(sum(1 for _ in lhotse_rows(self._data, self.section, MOST_ROWS)))
        count, total = int((self._known != 0).sum()) + 1, int(self._total)
        then, whole = "its batch is smaller", total < MOST_ROWS
        allow_damaged(self.section, name, reason, count, total, self.most, fix, then, whole)
        self._known[count - 1] = digest


class GuardedCuts:
    """Reads the audio of a batch, in place of Lhotse's reader in NeMo's data set.

    Args:
        reader: Lhotse's `AudioSamples`.
        section: section of the config, for messages.
        damaged: the damaged utterances of the set.
    """

    def __init__(self, reader: Any, section: str, damaged: DamagedUtterances) -> None:
        self.reader, self.section, self.damaged = reader, section, damaged
        self._last: list[Any] = []  # the utterances of the last batch

    def __call__(self, cuts: Any) -> Any:
        """Reads the audio of cuts as Lhotse does; takes and returns the same.

        Raises:
            TutorError: a cut has several channels, or too many are damaged.
        """
        for cut in cuts:
            if cut.num_channels > 1:
                raise TutorError(
                    f"{self.section}: {_name(cut)[0]} has {cut.num_channels} channels, but an ASR model "
                    f"reads one; convert it to mono, or set {self.section}.channel_selector to a channel's "
                    "number."
                )
        failed, whole = None, list(cuts)
        try:
            read = self._read(cuts)
            if len(read[2]) == len(whole):
                self._last = whole
                return read
        except Exception as error:  # also where no cut of the batch can be read
            failed = error
        whole = [cut for cut in cuts if not self._is_damaged(cut)]
        if failed is not None and len(whole) == len(cuts):
            raise failed
        self._last = whole or self._last  # there is no empty batch
        if not self._last:
            raise TutorError(
                f"{self.section}: no utterance of its first batch can be decoded, e.g. "
                f"{_name(next(iter(cuts)))[0]}; fix the files (`nemo-tutornet check --decode` finds all of "
                "them)."
            )
        return self._read(type(cuts).from_cuts(self._last))

    def _read(self, cuts: Any) -> Any:
        with warnings.catch_warnings():  # Lhotse's, which do not name the utterance
            warnings.simplefilter("ignore")
            return self.reader(cuts)

    def _is_damaged(self, cut: Any) -> bool:
        reason = _why_damaged(cut)
        if reason is not None:
            name, fix = _name(cut)
            self.damaged.note(name, reason, fix)
        return reason is not None


def _why_damaged(cut: Any) -> str | None:
    try:
        cut.load_audio()
    except Exception as error:  # of several libraries
        speech = speech_of(cut)
        for track in getattr(cut, "tracks", []):
            if track.cut is not speech and hasattr(track.cut, "recording"):
                reason = _why_damaged(track.cut)
                if reason is not None:
                    return f"{_name(track.cut)[0]} is mixed into it: {reason}"
        return reason_in_short(error)
    return None


def _name(cut: Any) -> tuple[str, str]:
    """Returns the file of a cut, or the member and its tar, and how it is repaired."""
    cut = speech_of(cut)
    custom = cut.custom or {}
    shard = custom.get("tar_origin") or custom.get("shard_origin")
    if shard is not None:
        return f"{cut.recording_id if 'tar_origin' in custom else cut.id} in {shard}", REPAIR_TAR
    named = [one.source for one in cut.recording.sources if isinstance(one.source, str)]
    return (named or [cut.id])[0], _REPAIR_FILE


class _Files:
    """Makes a cut of a row of NeMo's manifest, also where the header of its audio cannot be read.

    Such a cut fails when its audio is read, where `GuardedCuts` leaves it out.

    Args:
        iterator: NeMo's `LazyNeMoIterator`; this object stands in the place of its method `_create_cut`.
    """

    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def __call__(
        self, audio_path: str, offset: float | None, duration: float, sampling_rate: int | None = None
    ) -> Any:
        make = type(self.iterator)._create_cut
        try:
            return make(self.iterator, audio_path, offset, duration, sampling_rate)
        except Exception:  # of several libraries; reading the audio gives the reason
            end = (offset or 0.0) + duration
            recording = self.iterator._create_recording(audio_path, end, sampling_rate or 16000)
            return recording.to_cut().truncate(offset=offset or 0.0, duration=duration, preserve_id=True)


class _Tars:
    """Reads the members of NeMo's tars, in place of the method `_iter_sequential` of its iterator.

    Args:
        iterator: NeMo's `LazyNeMoTarredIterator`, which would leave out damaged members without counting
            them, and stop at one whose parts it cannot decode.
        section: section of the config, for messages.
        note: called for each damaged member.
    """

    def __init__(self, iterator: Any, section: str, note: Note) -> None:
        self.iterator, self.section, self.note = iterator, section, note
        self._checked: set[str] = set()

    def __call__(
        self, tar_path: str, rows: Mapping[str, list[dict[str, Any]]], *others: Any
    ) -> Iterator[tuple[Any, bytes, Any]]:
        """Yields what NeMo's method does.

        Raises:
            TutorError: a tar cannot be read to its end.
        """
        try:
            read = type(self.iterator)._iter_sequential(self.iterator, tar_path, rows, *others)
            for row, audio, member in read:
                reason = _why_unreadable(audio, rows[member.name])
                if reason is None:
                    yield row, audio, member
                else:
                    self.note(f"{member.name} in {tar_path}", reason, REPAIR_TAR)
            if tar_path not in self._checked:  # it was just read, so this costs nothing beside it
                check_tar(tar_path, self.section, members=True)
                self._checked.add(tar_path)
        except (tarfile.TarError, EOFError) as error:
            raise TutorError(
                f"{self.section}: the tar {tar_path} cannot be read to its end ({reason_in_short(error)}), "
                "and what follows in it is lost; copy or write the tar again."
            ) from None


def _why_unreadable(audio: bytes, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Returns why NeMo's iterator cannot make cuts of a tar's member; None where it can.

    It reads the header; and it decodes a member of which a row is a part.
    """
    import soundfile

    try:
        seconds = soundfile.info(BytesIO(audio)).duration
        if any(row.get("offset") or abs(row["duration"] - seconds) >= 0.2 for row in rows):
            soundfile.read(BytesIO(audio))
    except Exception as error:  # of libsndfile, or a value that it gives
        return reason_in_short(error)
    return None


def _iterators(thing: Any) -> Iterator[Any]:
    """Finds the iterators over manifests and tars in NeMo's and Lhotse's lazy objects."""
    from lhotse.cut import Cut

    waiting, seen = [thing], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, Cut):
            continue
        seen.add(id(found))
        if isinstance(found, (list, tuple)):
            waiting += found
        elif isinstance(found, dict):
            waiting += found.values()
        elif type(found).__module__.startswith(("lhotse.", "nemo.")) and hasattr(found, "__dict__"):
            yield found
            waiting += vars(found).values()


def _guard_iterators(thing: Any, section: str, note: Note, members: bool = False) -> None:
    for found in _iterators(thing):
        kind, tars = type(found).__name__, []
        if kind == "LazyNeMoIterator":
            found._create_cut = _Files(found)
        elif kind == "LazyNeMoTarredIterator":
            found._iter_sequential = _Tars(found, section, note)
            tars = list(found.shard_id_to_tar_path.values())
        elif kind == "LazySharIterator":
            tars = [path for shard in found.shards for path in shard.values()]
        for path in tars:
            check_tar(str(path), section, members)


def guard_lhotse(loader: Any, section: str, most: float, data: Mapping[str, Any] | None) -> None:
    """Makes NeMo's Lhotse dataloader name damaged audio, and leave it out while it is little.

    Args:
        loader: the dataloader.
        section: section of the config that it comes from, for messages.
        most: share of the utterances that may be damaged.
        data: the section, whose utterances are counted; not needed where none may be damaged.

    Raises:
        TutorError: a tar is cut off.
    """
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # with tars it is wrapped in another
    if not hasattr(dataset, "load_audio") or isinstance(dataset.load_audio, GuardedCuts):
        return
    damaged = DamagedUtterances(section, most, data)
    dataset.load_audio = GuardedCuts(dataset.load_audio, section, damaged)
    _guard_iterators(getattr(loader.dataset, "sampler", loader.sampler), section, damaged.note)


def decode_lhotse(data: Mapping[str, Any], section: str, report: PartReport) -> Iterator[str]:
    """Decodes every utterance of a set that Lhotse reads once.

    Args:
        data: the section of the config.
        section: its name, for messages.
        report: shows how many utterances are decoded.

    Yields:
        A sentence for each tar that cannot be read, and for each utterance that cannot be decoded.
    """
    found: list[str] = []

    def note(name: str, reason: str, fix: str) -> None:
        found.append(f"{section}: {name} cannot be decoded ({reason}); {fix}.")

    with open_cuts(data, section, metadata_only=False) as cuts:
        try:
            _guard_iterators(cuts, section, note, members=True)
            for done, cut in enumerate(cuts):
                report(f"decoding {section}", done)
                reason = _why_damaged(cut)
                if reason is not None:
                    name, fix = _name(cut)
                    note(name, reason, fix)
        except TutorError as error:
            found.append(str(error))
        except Exception as error:  # each of the readers has errors of its own
            found.append(
                f"{section}: it cannot be read to its end ({reason_in_short(error)}); fix its files."
            )
    yield from found
