# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading a cache: everything is checked before it is used, nothing but the index stays in memory.

A shard is mapped into memory for one read and let go, so that the pages of a large cache never count as the
trainer's memory, a reader holds no open file (it may be forked or pickled), and a shard that changes on the
disk is an error and no crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.layout import REBUILD, CacheSchema, description, read_header, schema_of
from nemo_tutornet.target_cache.records import BatchTargets, decode, validate_record
from nemo_tutornet.target_cache.shard import Record, Shard


class CacheReader:
    """A finished cache.

    Args:
        folder: as `nemo-tutornet cache` wrote it.

    Attributes:
        folder: as given.
        provenance: what the targets depend on, as the builder stated it.
        schema: what is kept of each utterance.
        sample_rate: of the teacher's audio.
        totals: `utterances`, `seconds` and `bytes`.

    Raises:
        TutorError: no cache, not finished, or anything in it missing, truncated or damaged.
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
        self._files: dict[str, str] = {file["name"]: file["sha256"] for file in header["files"]}
        self._shards = [self._open(entry) for entry in header["shards"]]
        counts = [len(shard) for shard in self._shards]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(shard.hashes for shard in self._shards)])
        # An utterance that two ranks wrote is taken from its first shard.
        self._hashes, first = np.unique(hashes, return_index=True)
        shard_of = np.repeat(np.arange(len(counts)), counts)[first]
        self._where = np.stack([shard_of, first - np.cumsum([0, *counts])[shard_of]], axis=1)
        if len(self._hashes) != self.totals["utterances"]:
            raise TutorError(f"{folder} holds other utterances than its cache.json says; {REBUILD}.")

    def _open(self, entry: Mapping[str, Any]) -> Shard:
        path = self.folder / entry["name"]
        cache_id = description(self.provenance, self.schema, self.sample_rate)
        size = path.stat().st_size if path.is_file() else None
        if size is not None and size != entry["bytes"]:
            raise TutorError(
                f"{path} has {size} bytes where {entry['bytes']} were written; copy it again, or remove it "
                "and run "
                f"`nemo-tutornet cache` again with the same arguments, which keeps the other shards."
            )
        return Shard.open(path, self.schema, cache_id, entry["header_crc32"])

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, utterance: Utterance) -> bool:
        return self._find(utterance) is not None

    def has(self, name: str) -> bool:
        """Whether the builder laid a file of that name beside the shards."""
        return name in self._files

    def path(self, name: str) -> Path:
        """A file that the builder laid beside the shards, checked.

        Raises:
            TutorError: there is none, or it changed since.
        """
        path = self.folder / name
        if name not in self._files or not path.is_file():
            raise TutorError(f"{self.folder} has no {name}; {REBUILD}.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != self._files[name]:
            raise TutorError(f"{path} does not match its checksum; {REBUILD}.")
        return path

    def read(self, utterances: Sequence[Utterance]) -> BatchTargets:
        """The targets of a batch, padded, on the CPU.

        Raises:
            TutorError: an utterance is missing or damaged, or a shard is.
        """
        places = [self._place(utterance) for utterance in utterances]
        records = self._records(utterances, places)
        samples = [int(self._shards[shard].samples[row]) for shard, row in places]
        frames = [int(self._shards[shard].frames[row]) for shard, row in places]
        return decode(records, samples, frames, self.schema)

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
