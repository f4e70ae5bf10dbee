# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a builder finds in a folder before it writes: schema, provenance and utterances of earlier runs.

The cache may be unfinished; `reader` reads finished ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.layout import HEADER, SHARD, description, differences, read_header
from nemo_tutornet.target_cache.schema import CacheSchema, schema_of
from nemo_tutornet.target_cache.shard import Shard


def read_schema(folder: Path) -> CacheSchema | None:
    """Reads the schema of a cache, finished or not, so that a resumed builder does not choose a new one.

    Args:
        folder: folder of the cache; need not exist.

    Returns:
        The schema; None if the folder has no `cache.json`.

    Raises:
        TutorError: `cache.json` is damaged or of another version.
    """
    return schema_of(read_header(folder)) if (folder / HEADER).is_file() else None


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Reads the provenance of a cache, finished or not.

    Args:
        folder: folder of the cache; need not exist.

    Returns:
        The provenance, as the builder gave it; None if the folder has no `cache.json`.

    Raises:
        TutorError: `cache.json` is damaged or of another version.
    """
    if not (folder / HEADER).is_file():
        return None
    found: dict[str, Any] = read_header(folder)["binding"]
    return found


class FinishedUtterances:
    """The set of utterances in the finished shards of a folder, over all ranks (`utterance in finished`).

    Args:
        folder: folder of the cache; need not contain one yet.
        provenance: see `writer.CacheWriter`.
        schema: see `writer.CacheWriter`.
        sample_rate: see `writer.CacheWriter`.

    Raises:
        TutorError: a shard is damaged, or the folder or a shard belongs to another cache.
    """

    def __init__(
        self, folder: Path, provenance: Mapping[str, Any], schema: CacheSchema, sample_rate: int
    ) -> None:
        cache_id = description(json.loads(json.dumps(dict(provenance))), schema, sample_rate)
        refuse_other(folder, cache_id)
        self._hashes = {
            int(value) for shard in open_shards(folder, schema, cache_id) for value in shard.hashes
        }

    def __contains__(self, utterance: Utterance) -> bool:
        return key_hash(key_bytes(utterance)) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)


def refuse_other(folder: Path, cache_id: str) -> None:
    """Rejects a folder whose `cache.json` describes other targets. Accepts a folder without `cache.json`.

    Args:
        folder: folder of the cache.
        cache_id: `layout.description` of the targets that will be written.

    Raises:
        TutorError: the folder is another cache's.
    """
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


def open_shards(folder: Path, schema: CacheSchema, cache_id: str) -> list[Shard]:
    """Opens the shards in a folder, over all ranks.

    Args:
        folder: folder of the cache.
        schema: schema of the cache.
        cache_id: `layout.description` of the cache.

    Raises:
        TutorError: a shard is damaged or belongs to another cache.
    """
    paths = sorted(path for path in folder.glob("shard-*") if SHARD.fullmatch(path.name))
    return [Shard.open(path, schema, cache_id) for path in paths]


def _parsed(text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text)
    return parsed
