# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Writing of a cache in shards. Several ranks can write at once, and a killed builder can be resumed.

Arrays and indexes are stored in safetensors files. The format was chosen with `benchmarks/cache_formats.py`:

* It does not run code from a file.
* It adds no bytes to the arrays (21.2 MB per hour of audio for 29 outputs and 176 channels).
* It writes 200 MB/s and reads 16 random utterances of 10 s in 0.7 ms. In the same run on two busy cores, the
  storages of lhotse (numpy files, HDF5, Lilcom) took 16 to 32 ms. Zarr took 120 ms and saves 10 % of the
  bytes.
* NeMo requires safetensors anyway.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
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
    description,
    header_bytes,
    is_plain_name,
    read_header,
    views_in,
)
from nemo_tutornet.target_cache.records import UtteranceTargets, encode
from nemo_tutornet.target_cache.schema import CacheSchema, schema_to_disk
from nemo_tutornet.target_cache.shard import Record, Shard, shard_bytes
from nemo_tutornet.target_cache.unfinished import open_shards, refuse_other
from nemo_tutornet.utils.files import atomic_write


class CacheWriter:
    """Writer of the shards of one rank, and of `cache.json` on rank 0.

    A shard is written completely or not at all. If the process is killed, the utterances added after the last
    shard are lost.

    The writer is a context manager. A normal exit writes the remaining utterances; an exit by an exception
    does not. `utterance in writer` is true for utterances added to this writer, and for those that were in a
    finished shard of any rank when the writer was created.

    Args:
        folder: folder of the cache; created if it does not exist.
        provenance: everything that the targets depend on, as JSON values: the sha256 of the teacher, its
            front end, the hint layer, ...
        schema: the kinds of targets to store for each utterance.
        sample_rate: sample rate of the teacher's audio in Hz, used for the durations in `cache.json`.
        rank: rank of this process. Rank 0 writes `cache.json`, and its writer must be created first.
        max_shard_bytes: size of the collected arrays, in bytes, at which a shard is written.
        max_shard_seconds: time after which a smaller shard is written: what a kill can cost. 16 MB are hours
            of characters.
        clock: returns seconds; a test's own.

    Raises:
        TutorError: the folder contains foreign files, a cache of another provenance or schema, or a damaged
            shard; or another builder is writing to it.
    """

    def __init__(
        self,
        folder: Path,
        provenance: Mapping[str, Any],
        schema: CacheSchema,
        sample_rate: int,
        rank: int = 0,
        max_shard_bytes: int = 2**24,
        max_shard_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.schema = folder, schema
        self._provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
        self._sample_rate, self._rank, self._max_shard_bytes = sample_rate, rank, max_shard_bytes
        self._cache_id = description(self._provenance, schema, sample_rate)
        self._records: list[Record] = []
        self._sizes: list[tuple[int, int]] = []
        self._bytes = 0
        self._max_shard_seconds, self._clock, self._begun = max_shard_seconds, clock, clock()
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
        """Adds the targets of an utterance, and writes a shard if it has reached its size or its time.

        Does nothing if the writer already contains the utterance.

        Args:
            utterance: the utterance.
            targets: targets of the teacher.

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
        due = self._clock() - self._begun >= self._max_shard_seconds
        if due or self._bytes >= self._max_shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the utterances added since the last shard as a new shard.

        Raises:
            TutorError: the disk is full or fails. Earlier shards are not affected.
        """
        if not self._records:
            return
        samples, frames = zip(*self._sizes, strict=True)
        path = self.folder / f"shard-{self._rank:05d}-{self._number:05d}.safetensors"
        _write(path, shard_bytes(self._records, samples, frames, self.schema, self._cache_id))
        self._records, self._sizes, self._bytes = [], [], 0
        self._begun = self._clock()
        self._number += 1

    def close(self) -> None:
        """Writes the remaining utterances and releases the lock on the folder.

        Raises:
            TutorError: the disk is full or fails. The lock is released anyway.
        """
        try:
            self.flush()
        finally:
            self._lock.release()

    def finish(
        self, files: Mapping[str, bytes] | None = None, views: Sequence[str] = ("",)
    ) -> dict[str, Any]:
        """Checks all shards and writes a `cache.json` that marks the cache as finished.

        Call this on rank 0 only, after every rank has flushed.

        Args:
            files: files that the cached teacher needs besides its targets: content by plain file name.
            views: names of the speeds at which every utterance was added. Those of a cache that was finished
                before stay.

        Returns:
            The totals of the folder: number of `utterances`, `seconds` of audio, and `bytes` of the shards
            and `files`.

        Raises:
            TutorError: a shard is damaged, there is no utterance, or the disk is full.
        """
        assert self._rank == 0, "one rank writes cache.json"
        self.flush()
        _clean(self.folder, ".*.tmp")
        shards, files = self._shards(), files or {}
        if not any(len(shard) for shard in shards):
            raise TutorError(f"{self.folder} holds no utterance; give a manifest with at least one.")
        for shard in shards:  # shards of an earlier run may have been damaged since
            shard.read(range(len(shard)))
        for name, content in files.items():
            assert is_plain_name(name), name
            _write(self.folder / name, content)
        # If two ranks wrote the same utterance, count the one in the first shard, which the reader uses.
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
                "index_crc32": shard.index_crc32,
            }
            for shard in shards
        ]
        sums = [
            {"name": name, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
        ]
        before = read_header(self.folder) if (self.folder / HEADER).is_file() else {"complete": False}
        stored = views_in(before) if before["complete"] else []
        self._write_header(True, totals, listed, sums, list(dict.fromkeys([*stored, *views])))
        return totals

    def _check_folder(self) -> None:
        """Rejects a folder with foreign files or another cache, and writes `cache.json` to a new folder.

        Only rank 0 writes `cache.json`.
        """
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
        refuse_other(self.folder, self._cache_id)

    def _shards(self) -> list[Shard]:
        return open_shards(self.folder, self.schema, self._cache_id)

    def _write_header(
        self,
        complete: bool,
        totals: Mapping[str, Any],
        shards: list[dict[str, Any]],
        files: list[dict[str, Any]],
        views: Sequence[str] = ("",),
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
        if list(views) != [""]:  # a cache without views is as earlier versions write it
            header["views"] = sorted(views)
        _write(self.folder / HEADER, header_bytes(header))


def _locked(folder: Path, rank: int) -> FileLock:
    """Creates the folder and locks it against other builders of the same rank.

    The lock lasts until it is released or the process ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".lock-{rank:05d}")
        lock.acquire(timeout=0)
    except Timeout:
        raise TutorError(
            f"another builder is at work on {folder}; wait for its end, or give another folder (--output)."
        ) from None
    except (OSError, NotImplementedError) as error:  # NotImplementedError: the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise TutorError(
            f"{folder} cannot be a cache's folder ({reason}); give another (--output)."
        ) from None
    return lock


def _write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all. When this returns, the content is on the disk."""
    try:
        with atomic_write(path, durable=True) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise TutorError(
            f"{path} cannot be written ({error.strerror or error}); make room or fix the folder and run the "
            "command again, the finished shards are kept."
        ) from None


def _clean(folder: Path, pattern: str) -> None:
    """Removes the temporary folders (`atomic_write`) and files (earlier versions) of a killed builder."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
