# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: nothing wrong is read, whether it was damaged, belongs to another teacher or was made
up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as save_tensors

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache import layout, shard
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.schema import CacheSchema, arrays_of, index_of
from nemo_tutornet.target_cache.unfinished import read_schema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.cached import CachedTeacher
from tests.unit.target_cache.caches import (
    FULL,
    PROVENANCE,
    RATE,
    SPARSE,
    build,
    read_all,
    refused,
    shards,
    targets,
    utterances,
)

# --- Damage, and what belongs elsewhere


@pytest.mark.parametrize("schema", [FULL, SPARSE], ids=["whole", "sparse"])
def test_a_flipped_bit_anywhere_in_a_shard(tmp_path: Path, schema: CacheSchema) -> None:
    keys = build(tmp_path, schema, count=2, max_shard_bytes=10**6)
    (path,) = shards(tmp_path)
    content = path.read_bytes()
    assert len(content) < 8000
    named = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(TutorError) as caught:
            read_all(tmp_path, keys)
        assert path.name in str(caught.value)
        named += "at utterance" in str(caught.value)
    assert named > 20  # those in the arrays themselves, which only reading finds
    path.write_bytes(content)
    read_all(tmp_path, keys)


def test_damage_is_found_before_the_cache_is_finished(tmp_path: Path) -> None:
    key = utterances(1)[0]
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        writer.add(key, targets(key, FULL))
    path = shards(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with (
        refused(path.name, "utterance 0", "a.wav|0|1000"),
        CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer,
    ):
        writer.finish()
    path.unlink()  # as the message says
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        assert key not in writer


@pytest.mark.parametrize("left", [0, 4, 100, 0.5, -1])
def test_a_truncated_shard(tmp_path: Path, left: float) -> None:
    build(tmp_path)
    path = shards(tmp_path)[2]
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with refused(path.name, f"{path.stat().st_size} bytes where {len(content)}"):
        CacheReader(tmp_path)
    with refused(path.name, "not readable"):
        CacheWriter(tmp_path, PROVENANCE, FULL, RATE)


def test_a_shard_that_goes_or_shrinks(tmp_path: Path) -> None:
    keys = build(tmp_path)
    reader, path = CacheReader(tmp_path), shards(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-5])
    with refused(path.name, "not readable"):
        reader.read(keys)
    path.write_bytes(shards(tmp_path)[3].read_bytes())  # whole, but not the one that was opened
    with refused(path.name, "utterance 0"):
        reader.read(keys)
    path.unlink()
    with refused(path.name, "not readable"):
        reader.read(keys)
    with refused(path.name, "not readable"):
        CacheReader(tmp_path)


def test_a_missing_utterance(tmp_path: Path) -> None:
    keys = build(tmp_path)
    reader = CacheReader(tmp_path)
    strange = Utterance("/there/b.wav", 1.5, 2.0)
    assert keys[0] in reader and strange not in reader
    with refused("/there/b.wav", "from 1.5 s", "for 2 s", "nemo-tutornet cache"):
        reader.read([keys[0], strange])


def test_a_cache_of_another_teacher(tmp_path: Path) -> None:
    build(tmp_path)
    with refused("binding.front_end.window", 'binding.teacher is "ab12" there and "cd34" here', "--output"):
        other = {**PROVENANCE, "teacher": "cd34", "front_end": {"features": 80, "window": "hamming"}}
        CacheWriter(tmp_path, other, FULL, RATE)
    with refused('binding.hint is null there and "encoder" here'):
        CacheWriter(tmp_path, {**PROVENANCE, "hint": "encoder"}, FULL, RATE)
    with refused('binding.teacher is "ab12" there and "cd34" here', "--output"):
        CacheWriter(tmp_path, {**PROVENANCE, "teacher": "cd34"}, FULL, RATE)
    with refused("coding.width is 4 there and null here"):
        CacheWriter(tmp_path, PROVENANCE, CacheSchema(labels=6, hypotheses=True), RATE)


def test_a_shard_of_another_cache(tmp_path: Path) -> None:
    build(tmp_path / "ours")
    with CacheWriter(tmp_path / "theirs", {"teacher": "cd34"}, FULL, RATE) as writer:
        writer.add(Utterance("c"), targets(Utterance("c"), FULL))
    shards(tmp_path / "theirs")[0].rename(tmp_path / "ours" / "shard-00001-00000.safetensors")
    with refused("shard-00001-00000", "another cache"):
        CacheWriter(tmp_path / "ours", PROVENANCE, FULL, RATE)
    assert len(CacheReader(tmp_path / "ours")) == 5  # a finished one reads what it lists


def test_a_shard_of_the_same_cache_built_anew(tmp_path: Path) -> None:
    """Whole, of the same size, binding and utterances: only the checksum in `cache.json` tells it."""
    (key,) = build(tmp_path / "ours", count=1)
    with CacheWriter(tmp_path / "theirs", PROVENANCE, FULL, RATE) as writer:
        writer.add(key, targets(Utterance("other"), FULL))
    (ours,), (theirs,) = shards(tmp_path / "ours"), shards(tmp_path / "theirs")
    assert ours.stat().st_size == theirs.stat().st_size
    theirs.replace(ours)
    with refused(ours.name, "header"):
        CacheReader(tmp_path / "ours")


def test_a_cache_of_an_earlier_version(tmp_path: Path) -> None:
    """It has a checksum of each shard's header in place of the index's; a new shard makes it one of today."""
    keys = build(tmp_path)
    entries = json.loads((tmp_path / "cache.json").read_bytes())["shards"]
    old = [
        {**{name: one[name] for name in ("name", "bytes", "utterances")}, "header_crc32": 7}
        for one in entries
    ]
    rewrite_header(tmp_path, shards=old)
    read_all(tmp_path, keys)
    content = shards(tmp_path)[2].read_bytes()
    at = content.index(b"index.samples")  # a bit of the header, and one of the index, which is at the front
    for flipped in (at, 8 + int.from_bytes(content[:8], "little")):
        shards(tmp_path)[2].write_bytes(
            content[:flipped] + bytes([content[flipped] ^ 1]) + content[flipped + 1 :]
        )
        with refused(shards(tmp_path)[2].name, "not readable"):
            CacheReader(tmp_path)
    shards(tmp_path)[2].write_bytes(content)
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        writer.finish()
    assert json.loads((tmp_path / "cache.json").read_bytes())["shards"] == entries


def test_a_flipped_bit_in_the_index_of_an_unfinished_cache(tmp_path: Path) -> None:
    """Only the shard itself can tell, since no `cache.json` names it yet."""
    key = utterances(1)[0]
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        writer.add(key, targets(key, FULL))
    (path,) = shards(tmp_path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    offsets = json.loads(content[8:start])["index.samples"]["data_offsets"]
    for at in range(start + offsets[0], start + offsets[1]):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with refused(path.name, "its index does not match its checksum"):
            CacheWriter(tmp_path, PROVENANCE, FULL, RATE)


def test_a_flipped_bit_anywhere_in_the_header(tmp_path: Path) -> None:
    keys = build(tmp_path, count=1)
    path = tmp_path / "cache.json"
    content = path.read_bytes()
    values = json.loads(content)
    for at in range(0, len(content), 2):
        damaged = content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :]
        path.write_bytes(damaged)
        try:
            same = json.loads(damaged) == values  # white space of another kind
        except ValueError:
            same = False
        if not same:
            with pytest.raises(TutorError, match=r"cache\.json"):
                read_all(tmp_path, keys)


# --- Made up


def rewrite_header(folder: Path, **changes: Any) -> None:
    """What somebody writes who knows how to compute the checksum."""
    header = json.loads((folder / "cache.json").read_bytes())
    del header["checksum"]
    (folder / "cache.json").write_bytes(layout.header_bytes({**header, **changes}))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'"x"', b"{}", b"\xff", b"[" * 100000, b'{"checksum": 0}']
)
def test_a_header_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with refused("cache.json", "not readable"):
        CacheReader(tmp_path)
    with refused("cache.json", "not readable"):
        CacheWriter(tmp_path, PROVENANCE, FULL, RATE)


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"name": "shard-00000-00000.safetensors", "bytes": 1, "utterances": 1, "index_crc32": 0, **changes}
    ]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"shards": entry(name="../shard-00000-00000.safetensors")}, "no name of a shard"),
        ({"shards": entry(name="/etc/passwd")}, "no name of a shard"),
        ({"shards": entry(name=None)}, "no name of a shard"),
        ({"shards": entry(bytes=-1)}, "is no number"),
        ({"shards": entry(bytes=True)}, "is no number"),
        ({"shards": entry(index_crc32=None)}, "is no number"),
        ({"shards": 3}, "damaged"),
        ({"shards": [{}]}, "damaged"),
        ({"files": [{"name": "../x", "sha256": ""}]}, "no name of a file"),
        ({"files": [{"name": ".bashrc", "sha256": ""}]}, "no name of a file"),
        ({"files": [{"name": "x/../../y", "sha256": ""}]}, "no name of a file"),
        ({"files": [{"name": "shard-00000-00000.safetensors", "sha256": ""}]}, "no name of a file"),
        ({"shards": entry(name="shard-00000-00000.safetensors/../../x")}, "no name of a shard"),
        ({"files": [{"name": "cache.json", "sha256": ""}]}, "no name of a file"),
        ({"coding": {"labels": 6}}, "coding is unknown"),
        ({"coding": {"labels": -6, "floor": None, "width": None, "hypotheses": True}}, "no size"),
        ({"coding": {"labels": 70000, "floor": 0.1, "width": None, "hypotheses": True}}, "no floor"),
        ({"sample_rate": "16000"}, "wrong type"),
        ({"totals": {"utterances": 5, "seconds": None, "bytes": 1}}, "total"),
        ({"totals": {"utterances": 4, "seconds": 1.0, "bytes": 1}}, "other utterances"),
        ({"version": 2}, "version 2"),
        ({"coding": {"labels": 7, "floor": None, "width": 4, "hypotheses": True}}, "another cache"),
    ],
)
def test_a_made_up_header(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    build(tmp_path)
    rewrite_header(tmp_path, **changes)
    with refused(word):
        CacheReader(tmp_path)


def forge(folder: Path, **changes: np.ndarray) -> None:
    """A cache of one shard with other arrays, whose checksums are all right."""
    (path,) = shards(folder)
    tensors = {**load_file(path), **{name.replace("__", "."): value for name, value in changes.items()}}
    schema = read_schema(folder)
    tensors["index.checksum"] = np.array(
        [shard.checksum([tensors[name] for name in arrays_of(schema)])], np.uint32
    )
    cache_id = layout.description(PROVENANCE, schema, RATE)
    crc = shard.checksum([tensors[name] for name in index_of(schema)])
    path.write_bytes(
        save_tensors(
            tensors,
            metadata={"format": "nemo_tutornet.cache 1", "belongs": cache_id, "index_crc32": str(crc)},
        )
    )
    rewrite_header(folder, shards=entry(name=path.name, bytes=path.stat().st_size, index_crc32=crc))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse__ids", 300),
        ("sparse__ids", 65535),
        ("sparse__counts", 0),
        ("sparse__counts", 65535),
        ("sparse__rest", np.nan),
        ("sparse__values", np.inf),
        ("hidden__peak", np.inf),
        ("keys", 65),
    ],
)
def test_a_made_up_shard(tmp_path: Path, name: str, value: float) -> None:
    keys = build(tmp_path, SPARSE, count=1)
    array = load_file(shards(tmp_path)[0])[name.replace("__", ".")].copy()
    forge(tmp_path)
    read_all(tmp_path, keys)
    array[0] = value
    forge(tmp_path, **{name: array})
    with refused("shard-00000-00000", "a.wav from 0 s"):
        read_all(tmp_path, keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"index__frames": np.array([4], np.uint32)},
        {"index__frames": np.array([2**32 - 1], np.uint32)},
        {"index__frames": np.array([5], np.int32)},
        {"index__hidden_frames": np.array([7, 7], np.uint32)},
        {"hidden__values": np.zeros((7, 5), np.int8)},
        {"hidden__values": np.zeros((7, 4), np.uint8)},
        {"hidden__channels": np.zeros((2, 4), np.uint8)},
        {"sparse__counts": np.zeros((5, 1), np.uint16)},
        {"extra": np.zeros(1, np.uint8)},
    ],
    ids=str,
)
def test_a_made_up_index(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    build(tmp_path, SPARSE, count=1)
    forge(tmp_path, **changes)
    with refused("shard-00000-00000", "not readable"):
        CacheReader(tmp_path)


def test_a_frame_of_no_label(tmp_path: Path) -> None:
    keys = build(tmp_path, SPARSE, count=1)
    counts = load_file(shards(tmp_path)[0])["sparse.counts"].copy()
    counts[1] += counts[0]  # the sum stays as it is
    counts[0] = 0
    forge(tmp_path, sparse__counts=counts)
    with refused("shard-00000-00000", "a.wav from 0 s"):
        read_all(tmp_path, keys)


def test_the_order_of_arrays_counts() -> None:
    first, second = np.arange(4), np.arange(4, 8)
    assert shard.checksum([first, second]) != shard.checksum([second, first])
    assert shard.checksum([first, first]) != shard.checksum([second, second])
    assert shard.checksum([first, second]) == shard.checksum([np.concatenate([first, second])])


def test_a_binding_that_says_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    with refused("does not say what its teacher was"):
        CachedTeacher(TeacherConfig(model_path="", cache=str(tmp_path)))
