# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading of a cache. All content is checked before use, and only the index stays in memory.

A shard is mapped into memory for one read and closed afterwards, for three reasons. The pages of a large
cache never count as memory of the trainer. A reader has no open file, so it can be forked or pickled. A shard
that changes on disk causes an error instead of a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.layout import REBUILD, description, read_header, views_in
from nemo_tutornet.target_cache.records import EVERYTHING, BatchTargets, Kinds, decode, validate_record
from nemo_tutornet.target_cache.schema import CacheSchema, schema_of
from nemo_tutornet.target_cache.shard import Record, Shard
from nemo_tutornet.utils.files import sha256_of


class CacheReader:
    """Read access to the targets of a finished cache, by utterance (`utterance in reader`, `read`).

    Args:
        folder: folder that `nemo-tutornet cache` wrote.

    Attributes:
        folder: the argument.
        provenance: everything that the targets depend on, as given by the builder.
        schema: the kinds of targets stored for each utterance.
        sample_rate: sample rate of the teacher's audio, in Hz.
        totals: number of `utterances`, `seconds` of audio, and `bytes` on disk. An utterance at another speed
            counts as another one.
        views: names of the speeds at which utterances are stored; the empty one is as recorded.

    Raises:
        TutorError: the folder has no cache, the cache is not finished, or a part of it is missing, truncated
            or damaged.
    """

    def __init__(self, folder: Path) -> None:
        header = read_header(folder)
        if not header["complete"]:
            raise TutorError(
                f"{folder} is not finished; run `nemo-tutornet cache` again with the same arguments, it goes "
                "on where it stopped."
            )
        self.folder = folder
        self.provenance: dict[str, Any] = header["binding"]
        self.schema: CacheSchema = schema_of(header)
        self.sample_rate: int = header["sample_rate"]
        self.totals: dict[str, Any] = header["totals"]
        self.views: tuple[str, ...] = tuple(views_in(header))
        self._files: dict[str, str] = {file["name"]: file["sha256"] for file in header["files"]}
        self._shards = [self._open(entry) for entry in header["shards"]]
        counts = [len(shard) for shard in self._shards]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(shard.hashes for shard in self._shards)])
        # If two ranks wrote the same utterance, use the one in the first shard.
        self._hashes, first = np.unique(hashes, return_index=True)
        shard_of = np.repeat(np.arange(len(counts)), counts)[first]
        self._where = np.stack([shard_of, first - np.cumsum([0, *counts])[shard_of]], axis=1)
        self._samples = np.concatenate(
            [np.zeros(0, np.uint32), *(shard.samples for shard in self._shards)]
        ).astype(np.int64)[first]
        if len(self._hashes) != self.totals["utterances"]:
            raise TutorError(f"{folder} holds other utterances than its cache.json says; {REBUILD}.")

    def _open(self, entry: Mapping[str, Any]) -> Shard:
        path = self.folder / entry["name"]
        cache_id = description(self.provenance, self.schema, self.sample_rate)
        size = path.stat().st_size if path.is_file() else None
        if size is not None and size != entry["bytes"]:
            raise TutorError(
                f"{path} has {size} bytes where {entry['bytes']} were written; copy it again, or remove it "
                "and run `nemo-tutornet cache` again with the same arguments, which keeps the other shards."
            )
        return Shard.open(path, self.schema, cache_id, entry.get("index_crc32"))

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, utterance: Utterance) -> bool:
        return self._find(utterance) is not None

    def samples(self, utterances: Sequence[Utterance]) -> np.ndarray:
        """Looks up the number of samples of utterances, without reading their targets.

        Args:
            utterances: `U` utterances.

        Returns:
            Numbers of samples `[U]`, int64; -1 where an utterance is missing.
        """
        keys = np.array([key_hash(key_bytes(utterance)) for utterance in utterances], dtype=np.uint64)
        at = np.minimum(np.searchsorted(self._hashes, keys), max(len(self._hashes) - 1, 0))
        if not len(self._hashes):
            return np.full(len(keys), -1, dtype=np.int64)
        return np.where(self._hashes[at] == keys, self._samples[at], -1)

    def has(self, name: str) -> bool:
        """Checks whether the builder wrote a file of this name beside the shards.

        Args:
            name: plain file name.

        Returns:
            True if `cache.json` lists the file.
        """
        return name in self._files

    def path(self, name: str) -> Path:
        """Locates a file that the builder wrote beside the shards, and checks its content.

        Args:
            name: plain file name.

        Returns:
            Path of the file.

        Raises:
            TutorError: the file is missing, or it has changed since it was written.
        """
        path = self.folder / name
        if name not in self._files or not path.is_file():
            raise TutorError(f"{self.folder} has no {name}; {REBUILD}.")
        if sha256_of(path) != self._files[name]:
            raise TutorError(f"{path} does not match its checksum; {REBUILD}.")
        return path

    def read(self, utterances: Sequence[Utterance], kinds: Kinds = EVERYTHING) -> BatchTargets:
        """Reads the targets of a batch.

        The arrays of all kinds are read and compared with their checksum, which is one for an utterance. Only
        the given kinds are decoded.

        Args:
            utterances: the utterances of the batch, in order.
            kinds: the kinds of targets to decode.

        Returns:
            The targets, padded, on the CPU.

        Raises:
            TutorError: an utterance or a shard is missing or damaged.
        """
        places = [self._place(utterance) for utterance in utterances]
        records = self._records(utterances, places)
        samples = [int(self._shards[shard].samples[row]) for shard, row in places]
        frames = [int(self._shards[shard].frames[row]) for shard, row in places]
        return decode(records, samples, frames, self.schema, kinds)

    def _records(self, utterances: Sequence[Utterance], places: Sequence[tuple[int, int]]) -> list[Record]:
        found: dict[tuple[int, int], Record] = {}
        for number in sorted({shard for shard, _ in places}):
            rows = sorted({row for shard, row in places if shard == number})
            for row, record in zip(rows, self._shards[number].read(rows), strict=True):
                found[number, row] = record
        for utterance, place in zip(utterances, places, strict=True):
            record, shard = found[place], self._shards[place[0]]
            if record["keys"].tobytes() != key_bytes(utterance) or not validate_record(record, self.schema):
                raise TutorError(
                    f"{shard.path} holds no targets at utterance {place[1]} that could be {utterance}; "
                    f"{REBUILD}."
                )
        return [found[place] for place in places]

    def _place(self, utterance: Utterance) -> tuple[int, int]:
        place = self._find(utterance)
        if place is None:
            raise TutorError(
                f"{self.folder} has no targets for {utterance}; run `nemo-tutornet cache` again on the "
                "manifest that names it."
            )
        return place

    def _find(self, utterance: Utterance) -> tuple[int, int] | None:
        key = np.uint64(key_hash(key_bytes(utterance)))
        at = int(np.searchsorted(self._hashes, key))
        if at == len(self._hashes) or self._hashes[at] != key:
            return None
        return int(self._where[at, 0]), int(self._where[at, 1])
