# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Layout of a cache on disk: the names of its files, and `cache.json`.

A folder contains `cache.json`, files that the cached teacher needs besides its targets, and
`shard-<rank>-<number>.safetensors`. A shard contains the arrays of `schema.arrays_of`, concatenated over
its utterances. It also contains an index: the hash of the key, the sizes and the checksum of each utterance.
An utterance at another speed is an utterance of its own, with the name of the view in its key.
`cache.json` lists every shard with the checksum of its index. The shard stores that checksum too, because a
builder that resumes reads shards that `cache.json` does not list yet.

A cache is untrusted input. Nothing in it is unpickled, evaluated or used as a path before it is checked.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.target_cache.schema import CacheSchema, schema_of, schema_to_disk
from nemo_tutornet.utils.files import read_regular_file

HEADER = "cache.json"
FORMAT, VERSION = "nemo_tutornet.cache", 1
SHARD = re.compile(r"shard-\d{5}-\d{5}\.safetensors")
VIEW = re.compile(r"[A-Za-z0-9_./ -]{0,60}")
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MOST_BYTES = 64 << 20  # a shard has 200 bytes in it
REBUILD = "remove the folder and run `nemo-tutornet cache` again"


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Serialises the content of `cache.json` and adds its checksum.

    Args:
        header: content without the checksum.

    Returns:
        JSON, UTF-8.
    """
    return (
        json.dumps({**header, "checksum": _checksum(header)}, indent=1, ensure_ascii=False) + "\n"
    ).encode("utf-8")


def _checksum(header: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(header, sort_keys=True, ensure_ascii=True).encode("ascii"))


def read_header(folder: Path) -> dict[str, Any]:
    """Reads and checks the `cache.json` of a folder.

    Args:
        folder: folder of the cache.

    Returns:
        The content without the checksum.

    Raises:
        TutorError: `cache.json` is missing, damaged, or of another version.
    """
    path = folder / HEADER
    if not path.is_file():
        raise TutorError(f"{folder} has no {HEADER}; give a folder that `nemo-tutornet cache` wrote.")
    try:
        header = json.loads(read_regular_file(path, _MOST_BYTES))
        checksum = header.pop("checksum")
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {str(header['format'])[:40]!r}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise TutorError(f"{path} is not readable ({_reason(error)}); {REBUILD}.") from None
    if header.get("version") != VERSION:
        raise TutorError(
            f"{path} is of version {str(header.get('version'))[:40]}, this nemo_tutornet reads version "
            f"{VERSION}; {REBUILD}."
        )
    try:
        if checksum != _checksum(header):
            raise ValueError("it does not match its checksum")
        _check_header(header)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TutorError(f"{path} is damaged ({_reason(error)}); {REBUILD}.") from None
    return header


def _reason(error: Exception) -> str:
    return f"no {first_line(error)}" if isinstance(error, KeyError) else first_line(error)[:200]


def _check_header(header: dict[str, Any]) -> None:
    schema_of(header)
    if (
        not isinstance(header["binding"], dict)
        or type(header["complete"]) is not bool
        or not _count(header["sample_rate"])
    ):
        raise ValueError("binding, complete or sample_rate is of a wrong type")
    totals = header["totals"]
    seconds = totals["seconds"]
    if not (
        _count(totals["utterances"])
        and _count(totals["bytes"])
        and isinstance(seconds, float)
        and math.isfinite(seconds)
    ):
        raise ValueError("a total is no number")
    for shard in header["shards"]:
        if not (isinstance(shard["name"], str) and SHARD.fullmatch(shard["name"])):
            raise ValueError(f"{str(shard['name'])[:60]!r} is no name of a shard")
        # Earlier versions wrote a checksum of the header in place of index_crc32.
        index_crc32 = shard.get("index_crc32", 0)
        if not all(map(_count, (shard["bytes"], shard["utterances"], index_crc32))):
            raise ValueError(f"a figure of {shard['name']} is no number")
    for file in header["files"]:
        if not is_plain_name(file["name"]) or not isinstance(file["sha256"], str):
            raise ValueError(f"{str(file['name'])[:60]!r} is no name of a file in the folder")
    views = views_in(header)
    if not all(isinstance(view, str) and VIEW.fullmatch(view) for view in views):
        raise ValueError("views are no names of speeds")
    names = [entry["name"] for entry in (*header["shards"], *header["files"])]
    if len(set(names)) < len(names):
        raise ValueError("it names a file twice")


def views_in(header: Mapping[str, Any]) -> list[str]:
    """Reads from the content of `cache.json` at which speeds its utterances are stored.

    Args:
        header: content of `cache.json`.

    Returns:
        Names of views; the empty one is the utterance as it was recorded. Without the entry, which earlier
        versions do not have, it is the only one.
    """
    found = header.get("views", [""])
    if not isinstance(found, list):
        raise ValueError("views is no list")
    return found


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_plain_name(name: Any) -> bool:
    """Checks whether a file beside the shards may have this name.

    Args:
        name: name to check; need not be a string.

    Returns:
        True for a plain file name that is neither `cache.json` nor the name of a shard.
    """
    return (
        isinstance(name, str) and bool(FILE.fullmatch(name)) and name != HEADER and not SHARD.fullmatch(name)
    )


def description(provenance: Mapping[str, Any], schema: CacheSchema, sample_rate: int) -> str:
    """Builds the id of a cache, which every shard of the cache stores.

    Args:
        provenance: everything that the targets depend on, as JSON values.
        schema: schema of the cache.
        sample_rate: sample rate of the teacher's audio, in Hz.

    Returns:
        JSON with sorted keys, so that equal arguments give equal ids.
    """
    return json.dumps(
        {"binding": provenance, "coding": schema_to_disk(schema), "sample_rate": sample_rate}, sort_keys=True
    )


def differences(cached: Any, expected: Any, name: str = "") -> str:
    """Describes the differences between two JSON values.

    Args:
        cached: value from the cache.
        expected: value of the current run.
        name: dotted name of the two values; empty at the top level.

    Returns:
        Text that lists each difference with its dotted name; empty if the values are equal.
    """
    if isinstance(cached, dict) and isinstance(expected, dict):
        names = list(dict.fromkeys([*cached, *expected]))
        found = [
            differences(cached.get(key), expected.get(key), f"{name}.{key}" if name else str(key))
            for key in names
        ]
        return ", ".join(part for part in found if part)
    if cached == expected:
        return ""
    return f"{name} is {_shown(cached)} there and {_shown(expected)} here"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
