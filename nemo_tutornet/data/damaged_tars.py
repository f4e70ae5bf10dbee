# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Damaged audio in NeMo's tars: named with its tar, and in a training replaced as long as it is little.

Every process must read as many samples as its manifest has, or the others of a distributed training would
wait for it. So the place of a damaged sample is taken by another one. What follows a damaged place of a tar
itself cannot be found any more: there the training stops.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from nemo_tutornet.data.damage import Damaged, Reader, allow_damaged, reason_in_short
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.progress import PartReport

REPAIR_TAR = "write the tar again, or remove the utterance's line from the manifest"
_BLOCK = 512  # bytes that everything in a tar is padded to


def check_tar(path: str, section: str, members: bool = False) -> None:
    """Refuses a tar that is cut off or damaged, which NeMo and Lhotse read as one with fewer utterances.

    A complete tar ends with two empty blocks. One without them may still be complete: it was made by a
    program that was stopped between two members.

    Args:
        path: of the tar. Pipes, object stores and compressed tars are not looked at.
        section: section of the config, for the message.
        members: read the headers of all members, also where the end is complete.

    Raises:
        TutorError: the tar is cut off or damaged.
    """
    if not os.path.isfile(path) or Path(path).suffix != ".tar":
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7"):  # compressed, under another name
            return
        file.seek(max(0, size - 2 * _BLOCK))
        if not members and size >= 2 * _BLOCK and not any(file.read()):
            return
        end, last = 0, "its beginning"
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    last = f"its member {member.name}"
        except (tarfile.TarError, EOFError):  # other damage ends the loop
            end = size + 1 if end == 0 else end
        file.seek(end)
        if end > size or any(file.read(_BLOCK)):
            raise TutorError(
                f"{section}: the tar {path} is cut off or damaged in or after {last}, and what follows there "
                "is lost; copy or write the tar again."
            )


class _Shards:
    """A stage of NeMo's pipeline that reads tars. It knows the tar of the current sample.

    Args:
        stage: WebDataset's.
        section: section of the config, for messages.
    """

    def __init__(self, stage: Any, section: str) -> None:
        self.stage, self.section, self.shard = stage, section, ""
        self._checked: set[str] = set()

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """Yields the samples of tars.

        Raises:
            TutorError: a tar cannot be read to its end.
        """
        for shard in shards:
            yield from self._samples(shard)

    def _samples(self, shard: dict[str, Any]) -> Iterator[Any]:
        self.shard = str(shard["url"])
        try:
            yield from self.stage([shard])
        except Exception as error:  # of the archive, its compression or its storage
            first = error.args[0] if error.args and isinstance(error.args[0], str) else ""
            reason = first.split(" @ ")[0] or type(error).__name__
            raise TutorError(
                f"{self.section}: the tar {self.shard} cannot be read to its end ({reason}), and what "
                "follows in it is lost; copy or write the tar again."
            ) from error
        if self.shard not in self._checked:  # it was just read, so this costs nothing beside it
            check_tar(self.shard, self.section, members=True)
            self._checked.add(self.shard)


class _Samples:
    """The last stage of NeMo's pipeline, which decodes the samples, with a substitute for damaged ones.

    Args:
        dataset: NeMo's tarred data set.
        shards: the stage that reads its tars.
        section: section of the config, for messages.
        most: share of the samples that may be damaged; 0 for none.
    """

    def __init__(self, dataset: Any, shards: _Shards, section: str, most: float) -> None:
        self.dataset, self.shards, self.section, self.most = dataset, shards, section, most
        # All workers share it.
        self.damaged = torch.zeros(len(dataset.manifest_processor.collection), dtype=torch.bool)
        self.damaged.share_memory_()

    def __call__(self, entries: Iterable[tuple[bytes, str, int]]) -> Iterator[Any]:
        """Yields NeMo's samples, as many as there are entries.

        Raises:
            TutorError: too many are damaged, or audio has several channels.
        """
        last, owed = None, 0  # samples that were damaged before the first whole one
        for audio, name, part in entries:
            try:
                sample = self.dataset._build_sample((audio, name, part))
            except Damaged as error:
                self._note(name, part, error)
                if last is None:
                    owed += 1
                else:
                    yield last
                continue
            if sample[0].dim() > 1:
                raise TutorError(
                    f"{self.section}: {self._name(name, part)} has {sample[0].shape[1]} channels, but an ASR "
                    "model reads one, and NeMo cannot choose one in tars; convert it to mono and write the "
                    "tars again."
                )
            last = sample
            for _ in range(1 + owed):
                yield sample
            owed = 0
        if owed:
            raise TutorError(
                f"{self.section}: nothing in {self.shards.shard} can be decoded; write the tar again."
            )

    def _note(self, name: str, part: int, error: Damaged) -> None:
        place = _entry(self.dataset, name, part)[0]
        if self.damaged[place]:
            return
        self.damaged[place] = True
        count, total = int(self.damaged.sum()), len(self.damaged)
        then, where = "another utterance takes its place", self._name(name, part)
        allow_damaged(self.section, where, error, count, total, self.most, REPAIR_TAR, then)

    def _name(self, name: str, part: int) -> str:
        return f"{Path(_entry(self.dataset, name, part)[1].audio_file).name} in {self.shards.shard}"


def _entry(dataset: Any, name: str, part: int) -> tuple[int, Any]:
    """Returns the index and the entry in the manifest of a part of a tar's member, as NeMo finds them."""
    collection = dataset.manifest_processor.collection
    place = collection.mapping[os.path.splitext(os.path.basename(name))[0]][part]
    return place, collection[place]


def _stages(dataset: Any) -> tuple[list[Any], int]:
    """Returns the stages of NeMo's pipeline, and the place of the one that reads tars."""
    from webdataset.tariterators import tarfile_samples

    pipeline = dataset._dataset
    while not hasattr(pipeline, "pipeline"):  # `UtteranceResolver` puts it into another iterable
        pipeline = pipeline._samples
    stages = pipeline.pipeline
    return stages, next(
        i
        for i, one in enumerate(stages)
        if isinstance(one, _Shards) or getattr(one, "f", 0) is tarfile_samples
    )


def guard_tars(dataset: Any, section: str, most: float) -> None:
    """Makes NeMo's tarred data set name damaged audio with its tar, and replace it while it is little.

    Args:
        dataset: NeMo's data set.
        section: section of the config that it comes from, for messages.
        most: share of the utterances that may be damaged.

    Raises:
        TutorError: a tar is cut off.
    """
    stages, reading = _stages(dataset)
    if isinstance(stages[reading], _Shards):
        return
    for shard in stages[0]:
        check_tar(str(shard["url"]), section)
    dataset.featurizer = Reader(dataset.featurizer)
    shards = stages[reading] = _Shards(stages[reading], section)
    stages[-1] = _Samples(dataset, shards, section, most)


def decode_tars(dataset: Any, section: str, report: PartReport) -> Iterator[str]:
    """Decodes every utterance of NeMo's tarred data set once.

    Args:
        dataset: NeMo's data set.
        section: section of the config that it comes from, for messages.
        report: shows how many utterances are decoded.

    Yields:
        A sentence for each tar that cannot be read, and for each utterance that cannot be decoded or that no
        tar has.
    """
    stages, reading = _stages(dataset)
    total, done = len(dataset.manifest_processor.collection), 0
    featurizer, unread = getattr(dataset.featurizer, "reader", dataset.featurizer), False
    for shard in stages[0]:
        reader = stages[reading]
        shards = _Shards(getattr(reader, "stage", reader), section)
        entries: Any = shards([shard])
        for stage in stages[reading + 1 : -1]:
            entries = stage(entries)
        try:
            for audio, name, part in entries:
                report(f"decoding {section}", done, total)
                done += 1
                entry = _entry(dataset, name, part)[1]
                try:
                    featurizer.process(
                        BytesIO(audio),
                        offset=entry.offset or 0,
                        duration=entry.duration,
                        trim=dataset.trim,
                        orig_sr=entry.orig_sr,
                    )
                except Exception as error:  # of several libraries
                    name = f"{Path(entry.audio_file).name} in {shards.shard}"
                    yield f"{section}: {name} cannot be decoded ({reason_in_short(error)}); {REPAIR_TAR}."
        except TutorError as error:
            unread = True
            yield str(error)
    if done < total and not unread:
        yield f"{section}: {total - done} of the {total} utterances of its manifest are in none of its tars."
