# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""One shard of a cache: building its bytes, checking its index, and reading the arrays of utterances."""

from __future__ import annotations

import json
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nemo_tutornet.data.utterances import key_hash
from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.target_cache.layout import FORMAT, VERSION
from nemo_tutornet.target_cache.schema import NUMPY, Array, CacheSchema, arrays_of, index_of

Record = dict[str, np.ndarray]


def checksum(arrays: Sequence[np.ndarray]) -> int:
    """Computes the crc32 of the concatenated bytes of arrays.

    Args:
        arrays: arrays, in order.

    Returns:
        The checksum.
    """
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc


def shard_bytes(
    records: Sequence[Record],
    samples: Sequence[int],
    frames: Sequence[int],
    schema: CacheSchema,
    cache_id: str,
) -> bytes:
    """Serialises the arrays of utterances, and their index, as a shard.

    Args:
        records: arrays of each utterance, by the names of `arrays_of`.
        samples: number of audio samples of each utterance.
        frames: number of frames of each utterance in the encoder's output.
        schema: schema of the cache.
        cache_id: `layout.description` of the cache.

    Returns:
        Content of the safetensors file.
    """
    arrays = arrays_of(schema)
    tensors = {name: np.concatenate([record[name] for record in records]) for name in arrays}
    sizes: dict[str, Sequence[int]] = {"samples": samples, "frames": frames}
    for name, array in arrays.items():
        if array.unit not in ("utterances", "frames"):
            sizes[array.unit] = [len(record[name]) for record in records]
    values: dict[str, Sequence[int]] = {f"index.{name}": counts for name, counts in sizes.items()}
    values["index.hash"] = [key_hash(record["keys"].tobytes()) for record in records]
    values["index.checksum"] = [checksum([record[name] for name in arrays]) for record in records]
    index = {name: np.array(values[name], dtype=NUMPY[dtype]) for name, dtype in index_of(schema).items()}
    about = {
        "format": f"{FORMAT} {VERSION}",
        "belongs": cache_id,
        "index_crc32": str(checksum(list(index.values()))),
    }
    return bytes(save({**index, **tensors}, metadata=about))


@dataclass(frozen=True)
class Shard:
    """The index of a shard with `U` utterances. Each read opens the file and closes it again.

    Attributes:
        path: path of the file.
        size: size of the file, in bytes.
        index_crc32: checksum of the index, which includes the checksums of the utterances.
        schema: schema of the cache.
        hashes: hashes of the keys of the utterances `[U]`.
        samples: number of audio samples of each utterance `[U]`.
        frames: number of frames of each utterance in the encoder's output `[U]`.
        starts: for each unit of `arrays_of`, the first row of each utterance, and the end `[U + 1]`.
        checksums: checksum of the arrays of each utterance `[U]`.
    """

    path: Path
    size: int
    index_crc32: int
    schema: CacheSchema
    hashes: np.ndarray
    samples: np.ndarray
    frames: np.ndarray
    starts: Mapping[str, np.ndarray]
    checksums: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def open(cls, path: Path, schema: CacheSchema, cache_id: str, index_crc32: int | None = None) -> Shard:
        """Reads the index of a shard, and checks everything except the content of the utterances' arrays.

        Args:
            path: path of the shard.
            schema: schema of the cache.
            cache_id: `layout.description` of the cache.
            index_crc32: checksum of the index from `cache.json`; None before `cache.json` lists the shard,
                and for caches of earlier versions.

        Returns:
            The shard.

        Raises:
            TutorError: the shard is missing, truncated, damaged, or belongs to another cache.
        """
        try:
            found_file = path.stat()
            if not stat.S_ISREG(found_file.st_mode):  # opening a pipe waits for its writer
                raise ValueError("no regular file")
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != f"{FORMAT} {VERSION}":
                    raise ValueError("it is no shard of this version's cache")
                if metadata.get("belongs") != cache_id:
                    raise ValueError("it belongs to another cache")
                index = _index(file, schema)
            found = checksum(list(index.values()))
            if metadata.get("index_crc32") != str(found):
                raise ValueError("its index does not match its checksum")
            if index_crc32 not in (None, found):
                raise ValueError("its index is not the one that the cache's header names")
        except (OSError, SafetensorError, ValueError, OverflowError, MemoryError) as error:
            raise TutorError(_unreadable(path, error)) from None
        starts = {unit: _starts(index, unit) for unit in {array.unit for array in arrays_of(schema).values()}}
        return cls(
            path,
            found_file.st_size,
            found,
            schema,
            index["index.hash"],
            index["index.samples"],
            index["index.frames"],
            starts,
            index["index.checksum"],
        )

    def read(self, rows: Sequence[int]) -> list[Record]:
        """Reads the arrays of utterances and compares them with their checksums.

        Args:
            rows: positions of the utterances in the shard.

        Returns:
            The arrays of each utterance, by the names of `arrays_of`.

        Raises:
            TutorError: the file changed or became unreadable after `open`, or an utterance is damaged.
        """
        arrays = arrays_of(self.schema)
        try:
            with safe_open(self.path, framework="numpy") as file:
                slices = {
                    name: (file.get_slice(name), array, self.starts[array.unit])
                    for name, array in arrays.items()
                }
                records = [
                    {
                        name: _cut(part, array, *starts[row : row + 2].tolist())
                        for name, (part, array, starts) in slices.items()
                    }
                    for row in rows
                ]
        except (OSError, SafetensorError, ValueError) as error:
            raise TutorError(_unreadable(self.path, error)) from None
        for row, record in zip(rows, records, strict=True):
            if checksum(list(record.values())) != self.checksums[row]:
                raise TutorError(
                    f"{self.path} is damaged at utterance {row} ({_name(record['keys'])}): it does not match "
                    "its checksum; remove the shard and run `nemo-tutornet cache` again with the same "
                    "arguments."
                )
        return records


def _cut(part: Any, array: Array, start: int, stop: int) -> np.ndarray:
    # safetensors rejects a slice that begins at the end of an array, even an empty slice.
    return part[start:stop] if start < stop else np.empty((0, *array.row), NUMPY[array.dtype])


def _index(file: Any, schema: CacheSchema) -> dict[str, np.ndarray]:
    """Reads the index of a shard, and checks the type and shape of every array against it.

    Raises:
        ValueError: an array is missing or unknown, or has a wrong type or shape.
    """
    arrays, dtypes = arrays_of(schema), index_of(schema)
    if set(file.keys()) != {*arrays, *dtypes}:
        raise ValueError("it has other arrays than its cache's")
    count = file.get_slice("index.hash").get_shape()
    for name, dtype in dtypes.items():
        part = file.get_slice(name)
        if len(count) != 1 or part.get_shape() != count or part.get_dtype() != dtype:
            raise ValueError(f"{name} has a wrong type or size")
    index = {name: file.get_tensor(name) for name in dtypes}
    for name, array in arrays.items():
        part = file.get_slice(name)
        rows = (
            count[0] if array.unit == "utterances" else int(index[f"index.{array.unit}"].sum(dtype=np.uint64))
        )
        if part.get_dtype() != array.dtype or part.get_shape() != [rows, *array.row]:
            raise ValueError(f"{name} has a wrong type or size")
    return index


def _starts(index: Record, unit: str) -> np.ndarray:
    if unit == "utterances":
        return np.arange(len(index["index.hash"]) + 1)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(index[f"index.{unit}"], dtype=np.int64)])


def _unreadable(path: Path, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return (
        f"{path} is not readable ({reason}); bring it back, or remove it and run `nemo-tutornet cache` again "
        "with the same arguments, which keeps the other shards."
    )


def _name(key: np.ndarray) -> str:
    return json.dumps(key.tobytes().decode("utf-8", "replace")[:300], ensure_ascii=False)
