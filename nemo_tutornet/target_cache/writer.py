# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing a cache: shard by shard, by several ranks at once, and on from where a killed builder stopped.

The arrays and indexes are safetensors', chosen with `benchmarks/cache_formats.py`: it runs no code that a
file holds, adds nothing to the arrays (21.2 MB an hour for 29 outputs and 176 channels), writes 200 MB/s and
reads 16 random utterances of 10 s in 0.7 ms. In the same run on two busy cores lhotse's storages (numpy
files, HDF5, Lilcom) took 16 to 32 ms, and zarr, which saves 10 % of the bytes, 120 ms. NeMo needs safetensors
anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.layout import (
    FORMAT,
    HEADER,
    SHARD,
    VERSION,
    CacheSchema,
    description,
    differences,
    header_bytes,
    is_plain_name,
    read_header,
    schema_of,
    schema_to_disk,
)
from nemo_tutornet.target_cache.records import UtteranceTargets, encode
from nemo_tutornet.target_cache.shard import Record, Shard, shard_bytes
from nemo_tutornet.utils.files import write_file


def read_schema(folder: Path) -> CacheSchema | None:
    """The schema of a cache in a folder, finished or not, so that a builder that goes on need not choose one;
    None without one.

    Raises:
        TutorError: its `cache.json` is damaged or of another version.
    """
    return schema_of(read_header(folder)) if (folder / HEADER).is_file() else None


class FinishedUtterances:
    """The utterances in a folder's finished shards, of all ranks.

    Args:
        folder: of the cache, or none yet.
        provenance, schema, sample_rate: as for the writer.

    Raises:
        TutorError: a shard is damaged or belongs to another cache.
    """

    def __init__(
        self, folder: Path, provenance: Mapping[str, Any], schema: CacheSchema, sample_rate: int
    ) -> None:
        cache_id = description(json.loads(json.dumps(dict(provenance))), schema, sample_rate)
        _refuse_other(folder, cache_id)
        self._hashes = {int(value) for shard in _shards(folder, schema, cache_id) for value in shard.hashes}

    def __contains__(self, utterance: Utterance) -> bool:
        return key_hash(key_bytes(utterance)) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)


class CacheWriter:
    """One rank's writer. A shard is on the disk whole or not at all; what was added after the last one is
    lost by a kill.

    A context manager: left in order it writes what remains, left by an error it does not. Utterances that a
    finished shard of any rank holds are in it (`utterance in writer`).

    Args:
        folder: of the cache; made if need be.
        provenance: what the targets depend on, as JSON: the teacher's sha256, its front end, the layer, ...
        schema: what is kept of each utterance.
        sample_rate: of the teacher's audio, for the hours in `cache.json`.
        rank: of this process; rank 0 writes `cache.json` and must come first.
        max_shard_bytes: a shard is written when it holds that many.

    Raises:
        TutorError: the folder holds something else, a cache of another provenance or schema, a damaged shard,
            or another builder is at work on it.
    """

    def __init__(
        self,
        folder: Path,
        provenance: Mapping[str, Any],
        schema: CacheSchema,
        sample_rate: int,
        rank: int = 0,
        max_shard_bytes: int = 2**24,
    ) -> None:
        self.folder, self.schema = folder, schema
        self._provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        self._sample_rate, self._rank, self._max_shard_bytes = sample_rate, rank, max_shard_bytes
        self._cache_id = description(self._provenance, schema, sample_rate)
        self._records: list[Record] = []
        self._sizes: list[tuple[int, int]] = []
        self._bytes = 0
        self._lock = _locked(folder, rank)
        try:
            _clean(folder, f".shard-{rank:05d}-*.tmp")
            self._check_folder()
            shards = self._shards()
        except BaseException:
            self._lock.release()
            raise
        self._done: set[int] = {int(value) for shard in shards for value in shard.hashes}
        numbers = [
            int(shard.path.stem[12:]) for shard in shards if shard.path.name.startswith(f"shard-{rank:05d}-")
        ]
        self._number = max(numbers, default=-1) + 1

    def __contains__(self, utterance: Utterance) -> bool:
        return key_hash(key_bytes(utterance)) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._lock.release()

    def add(self, utterance: Utterance, targets: UtteranceTargets) -> None:
        """Takes an utterance's targets; one that is there already is left as it is.

        Raises:
            TutorError: the targets are not finite, or a shard cannot be written.
        """
        key = key_hash(key_bytes(utterance))
        if key in self._done:
            return
        record = encode(utterance, targets, self.schema)
        self._records.append(record)
        self._sizes.append((targets.samples, targets.frames))
        self._done.add(key)
        self._bytes += sum(array.nbytes for array in record.values())
        if self._bytes >= self._max_shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last shard as a shard.

        Raises:
            TutorError: the disk is full or fails; the shards before this one stay.
        """
        if not self._records:
            return
        samples, frames = zip(*self._sizes, strict=True)
        path = self.folder / f"shard-{self._rank:05d}-{self._number:05d}.safetensors"
        write_file(path, shard_bytes(self._records, samples, frames, self.schema, self._cache_id))
        self._records, self._sizes, self._bytes = [], [], 0
        self._number += 1

    def close(self) -> None:
        """Writes what remains and lets the folder go."""
        try:
            self.flush()
        finally:
            self._lock.release()

    def finish(self, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """Rank 0, when every rank has flushed: checks all shards and writes the `cache.json` that makes them
        a cache.

        Args:
            files: what the cached teacher needs besides its targets, by plain names.

        Returns:
            The totals: `utterances`, `seconds` and `bytes` of the whole folder.

        Raises:
            TutorError: a shard is damaged, there is no utterance, or the disk is full.
        """
        assert self._rank == 0, "one rank writes cache.json"
        self.flush()
        _clean(self.folder, ".shard-*.tmp")
        shards, files = self._shards(), files or {}
        if not any(len(shard) for shard in shards):
            raise TutorError(f"{self.folder} holds no utterance; give a manifest with at least one.")
        for shard in shards:  # what an earlier builder wrote may have suffered since
            shard.read(range(len(shard)))
        for name, content in files.items():
            assert is_plain_name(name), name
            write_file(self.folder / name, content)
        # An utterance that two ranks wrote counts once; the reader takes its first, too.
        _, first = np.unique(np.concatenate([shard.hashes for shard in shards]), return_index=True)
        samples = int(np.concatenate([shard.samples for shard in shards])[first].sum(dtype=np.int64))
        totals = {
            "utterances": len(first),
            "seconds": samples / self._sample_rate,
            "bytes": sum(shard.size for shard in shards) + sum(map(len, files.values())),
        }
        listed = [
            {
                "name": shard.path.name,
                "bytes": shard.size,
                "utterances": len(shard),
                "header_crc32": shard.header_crc32,
            }
            for shard in shards
        ]
        sums = [
            {"name": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
        ]
        self._write_header(True, totals, listed, sums)
        return totals

    def _check_folder(self) -> None:
        """Refuses a folder of something else; a new one gets its `cache.json`."""
        if not (self.folder / HEADER).is_file():
            foreign = [
                path.name
                for path in self.folder.iterdir()
                if path.name[0] != "." and not SHARD.fullmatch(path.name)
            ]
            if foreign:
                raise TutorError(
                    f"{self.folder} holds {foreign[0]!r} and no cache; give a new or empty folder for the "
                    "cache (--output)."
                )
            if self._rank == 0:
                self._write_header(False, {"utterances": 0, "seconds": 0.0, "bytes": 0}, [], [])
            return
        _refuse_other(self.folder, self._cache_id)

    def _shards(self) -> list[Shard]:
        return _shards(self.folder, self.schema, self._cache_id)

    def _write_header(
        self,
        complete: bool,
        totals: Mapping[str, Any],
        shards: list[dict[str, Any]],
        files: list[dict[str, Any]],
    ) -> None:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "complete": complete,
            "binding": self._provenance,
            "coding": schema_to_disk(self.schema),
            "sample_rate": self._sample_rate,
            "totals": totals,
            "shards": shards,
            "files": files,
        }
        write_file(self.folder / HEADER, header_bytes(header))


def _refuse_other(folder: Path, cache_id: str) -> None:
    """Refuses a folder whose `cache.json` speaks of other targets."""
    if not (folder / HEADER).is_file():
        return
    header = read_header(folder)
    found = differences(
        _parsed(description(header["binding"], schema_of(header), header["sample_rate"])), _parsed(cache_id)
    )
    if found:
        raise TutorError(
            f"{folder} is a cache of other targets ({found}); give another folder (--output), or remove this "
            "one."
        )


def _shards(folder: Path, schema: CacheSchema, cache_id: str) -> list[Shard]:
    paths = sorted(path for path in folder.glob("shard-*") if SHARD.fullmatch(path.name))
    return [Shard.open(path, schema, cache_id) for path in paths]


def _locked(folder: Path, rank: int) -> FileLock:
    """Makes the folder and keeps other builders of the same rank out of it until the lock is released or the
    process ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".lock-{rank:05d}")
        lock.acquire(timeout=0)
    except Timeout:
        raise TutorError(
            f"another builder is at work on {folder}; wait for its end, or give another folder (--output)."
        ) from None
    except (OSError, NotImplementedError) as error:  # the second where the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise TutorError(
            f"{folder} cannot be a cache's folder ({reason}); give another (--output)."
        ) from None
    return lock


def _parsed(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _clean(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
