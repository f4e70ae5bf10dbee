# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hostile caches: each is read, or refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.nemo_io.layers import CHECKED_SECONDS
from nemo_tutornet.target_cache.layout import _checksum, description
from nemo_tutornet.target_cache.schema import CacheSchema, arrays_of, index_of, schema_of
from nemo_tutornet.target_cache.shard import checksum
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.teachers.tokenizer import _cached
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import refusal
from tests.properties import examples
from tests.unit.fuzz.hostile_files import damaged, files_in, loads, with_one_value_changed
from tests.unit.target_cache.caches import RATE, shards, targets, utterances

LABELS = ["a", "b", "c", "d", "e"]
LAYER = {"path": "encoder", "width": 4, "time_axis": 2, "shift": 40.0}
FACTS: dict[str, Any] = {
    "sha256": "0" * 64,
    "class": "EncDecCTCModel",
    "front_end": {"features": 80},
    "precision": "fp32",
    "sample_rate": RATE,
    "labels": LABELS,
    "transducer": False,
    "encoder": LAYER,
    "hint": LAYER,
    "ends_in_layer_norm": True,
    "frames": [[seconds, round(25 * seconds)] for seconds in CHECKED_SECONDS],
    "tokenizer": None,
}
SCHEMA = CacheSchema(labels=6, min_posterior=1e-4, width=4, hypotheses=True)
KEYS = utterances(1)
HEAD = {"weight": np.ones((6, 4, 1), np.float32), "bias": np.zeros(6, np.float32)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "sound"
    with CacheWriter(folder, FACTS, SCHEMA, RATE, max_shard_bytes=10**6) as writer:
        for key in KEYS:
            writer.add(key, targets(key, SCHEMA))
        writer.finish({"head.safetensors": save(HEAD), "vocab.txt": b"a\nb\n"})
    return folder


def read_everything(folder: Path) -> Any:
    """As a training reads a cache: the teacher, its head, its labels and rates, and every utterance."""
    teacher = CachedTeacher(TeacherConfig(model_path="", cache=str(folder)))
    teacher.describe(), teacher.ctc_projection(), teacher.labels
    for seconds in CHECKED_SECONDS:
        assert teacher.frames_of(seconds) >= 0
    teacher.check(TargetRequest(hidden=True, posteriors=True, hypotheses=True), None)
    _cached(folder)
    found = teacher.reader.read([key for key in KEYS if key in teacher.reader])
    assert found.samples.ndim == 1
    return teacher


def header_of(folder: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads((folder / "cache.json").read_text())
    del header["checksum"]
    return header


def forge(folder: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes a cache of one shard by somebody who knows how to compute all its checksums."""
    path = shards(folder)[0]
    try:
        schema = schema_of(header)
        cache_id = description(header["binding"], schema, header["sample_rate"])
        arrays["index.checksum"] = np.array(
            [checksum([arrays[name] for name in arrays_of(schema)])], np.uint32
        )
        crc = checksum([arrays[name] for name in index_of(schema)])
    except (KeyError, TypeError, ValueError):
        cache_id, crc = "", 0  # refused for its header already
    about = {"format": "nemo_tutornet.cache 1", "belongs": cache_id, "index_crc32": str(crc)}
    path.write_bytes(save(arrays, metadata=about))
    if isinstance(header.get("shards"), list):
        for shard in header["shards"]:
            if isinstance(shard, dict) and "bytes" in shard:
                shard.update(bytes=path.stat().st_size, index_crc32=crc)
    if isinstance(header.get("files"), list):
        for file in header["files"]:
            if isinstance(file, dict) and (folder / str(file.get("name"))[:200].replace("\0", "")).is_file():
                file["sha256"] = sha256_of(folder / file["name"])
    # In ASCII, so that a text may have half of a character.
    signed = {**header, "checksum": _checksum(header)}
    (folder / "cache.json").write_text(json.dumps(signed))


def spoil(folder: Path, data: st.DataObject) -> None:
    """Changes one thing of a cache."""
    draw, shard, header = data.draw, shards(folder)[0], folder / "cache.json"
    kind = draw(st.sampled_from(["header", "signed", "signed", "signed", "shard", "array", "head", "place"]))
    if kind == "header":
        header.write_bytes(draw(damaged(header.read_bytes())))
    elif kind == "signed":
        value = draw(with_one_value_changed(header_of(folder)))
        if isinstance(value, dict):
            forge(folder, value, load_file(shard))
        else:
            header.write_bytes(json.dumps(value).encode())
    elif kind == "shard":
        shard.write_bytes(draw(damaged(shard.read_bytes())))
    elif kind == "array":
        arrays = load_file(shard)
        name = draw(st.sampled_from(sorted(arrays)))
        shape = draw(st.sampled_from([arrays[name].shape, (0,), (1,), (3, 3), (10**3,)]))
        dtype = draw(st.sampled_from([arrays[name].dtype, np.float32, np.int8, np.uint64]))
        arrays[name] = np.full(shape, draw(st.sampled_from([0, 1, 127])), dtype)
        forge(folder, header_of(folder), arrays)
    elif kind == "head":
        shapes = [("weight", (6, 4, 1)), ("weight", (1,)), ("x", (6, 4)), ("bias", (5,))]
        name, shape = draw(st.sampled_from(shapes))
        value = np.full(shape, draw(st.sampled_from([1.0, np.nan, np.inf])), np.float32)
        (folder / "head.safetensors").write_bytes(save({**HEAD, name: value}))
        forge(folder, header_of(folder), load_file(shard))
    else:
        path = draw(st.sampled_from([shard, header, folder / "head.safetensors", folder / "vocab.txt"]))
        path.unlink()
        draw(st.sampled_from([os.mkfifo, os.mkdir, lambda at: os.symlink("/dev/zero", at)]))(path)


def copied(sound: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sound, folder / "cache"))


def test_the_sound_one_is_read(sound: Path) -> None:
    assert read_everything(sound).ctc_projection() is not None


@examples(250)
@given(data=st.data())
def test_a_cache_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, sound: Path, data: st.DataObject
) -> None:
    folder = copied(sound, tmp_path_factory.mktemp("fuzz"))
    spoil(folder, data)
    before = files_in(folder)
    loads(read_everything, folder)
    assert files_in(folder) == before


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda at: os.symlink("/dev/zero", at)], ids=["pipe", "folder", "device"]
)
@pytest.mark.parametrize(
    "name", ["shard-00000-00000.safetensors", "cache.json", "head.safetensors", "vocab.txt"]
)
def test_what_is_no_file_is_not_opened(sound: Path, tmp_path: Path, make: Any, name: str) -> None:
    folder = copied(sound, tmp_path)
    (folder / name).unlink()
    make(folder / name)
    assert str(folder) in refusal(read_everything, folder)


@pytest.mark.parametrize(
    "head",
    [
        {"weight": np.ones((6, 5, 1), np.float32)},
        {"weight": np.ones((6,), np.float32)},
        {"weight": np.full((6, 4, 1), np.nan, np.float32)},
        {"weight": np.ones((6, 4, 1), np.float16)},
        {"bias": np.ones(6, np.float32)},
        {**HEAD, "more": np.ones(1, np.float32)},
    ],
)
def test_a_wrong_head_is_refused(sound: Path, tmp_path: Path, head: dict[str, np.ndarray]) -> None:
    folder = copied(sound, tmp_path)
    (folder / "head.safetensors").write_bytes(save(head))
    forge(folder, header_of(folder), load_file(shards(folder)[0]))
    assert "head.safetensors is damaged" in refusal(read_everything, folder)
