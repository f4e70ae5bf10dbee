# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: nothing finished is lost, and what a builder must not do."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.unfinished import read_schema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.utils import files
from tests.unit.target_cache.caches import (
    FULL,
    PROVENANCE,
    RATE,
    build,
    read_all,
    refused,
    shards,
    targets,
    utterances,
)

# --- Nothing finished is lost

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from nemo_tutornet.utils import files
from tests.unit.target_cache.caches import PROVENANCE, FULL, RATE, CacheWriter, targets, utterances
assert not any(name.split(".")[0] in ("nemo", "lightning") for name in sys.modules)
writer = CacheWriter(Path(sys.argv[1]), PROVENANCE, FULL, RATE, max_shard_bytes=1)
synced, whole = os.fsync, [0]
def fsync(file):
    synced(file)
    whole[0] += 1
    if whole[0] == 7:  # two calls a shard: in the middle of the fourth, which is written but has no name yet
        os.kill(os.getpid(), signal.SIGKILL)
files.os.fsync = fsync
for key in utterances(6):
    writer.add(key, targets(key, FULL))
"""


def test_a_killed_builder_goes_on(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(root)], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards(tmp_path)}
    assert len(finished) == 3 and list(tmp_path.glob(".shard-*.tmp"))
    with refused("not finished", "again"):
        CacheReader(tmp_path)

    keys = utterances(6)
    assert read_schema(tmp_path) == FULL
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE, max_shard_bytes=1) as writer:
        assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
        assert [key in writer for key in keys] == [i < len(finished) for i in range(6)]
        for key in keys:
            writer.add(key, targets(key, FULL))
        writer.finish()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished} == finished
    assert len(shards(tmp_path)) == 6
    read_all(tmp_path, keys)


def test_a_shard_is_written_after_some_time_too(tmp_path: Path) -> None:
    """Otherwise a kill would cost hours of a slow teacher: a shard holds hours of small targets."""
    keys, now = utterances(4), [0.0]
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE, max_shard_seconds=10, clock=lambda: now[0]) as writer:
        for key, time, written in zip(keys, (9.0, 10.0, 19.0, 20.0), (0, 1, 1, 2), strict=True):
            now[0] = time
            writer.add(key, targets(key, FULL))
            assert len(shards(tmp_path)) == written
        writer.finish()
    read_all(tmp_path, keys)


def test_an_abandoned_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    keys = utterances(3)
    with pytest.raises(KeyboardInterrupt), CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        writer.add(keys[0], targets(keys[0], FULL))
        writer.flush()
        writer.add(keys[1], targets(keys[1], FULL))
        raise KeyboardInterrupt
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        assert [key in writer for key in keys] == [True, False, False] and len(writer) == 1


def test_a_finished_cache_grows(tmp_path: Path) -> None:
    keys = build(tmp_path)
    more = [*keys, *utterances(2, "b.wav")]
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        for key in more:
            writer.add(key, targets(key, FULL))
        writer.flush()
        read_all(tmp_path, keys)  # until the new one is finished, the old one is
        assert len(CacheReader(tmp_path)) == 5
        writer.finish()
    read_all(tmp_path, more)


def test_ranks_write_side_by_side(tmp_path: Path) -> None:
    keys = utterances(6)
    first = CacheWriter(tmp_path, PROVENANCE, FULL, RATE, rank=0)
    second = CacheWriter(tmp_path, PROVENANCE, FULL, RATE, rank=1)
    for key in keys[:4]:
        first.add(key, targets(key, FULL, text="first"))
    for key in keys[3:]:  # a sampler repeats an utterance to fill up the last batch
        second.add(key, targets(key, FULL, text="second"))
    second.close()
    totals = first.finish()
    first.close()
    assert (
        totals["utterances"] == 6 and totals["seconds"] == 6 * 5 * 640 / RATE and len(shards(tmp_path)) == 2
    )
    reader = CacheReader(tmp_path)
    assert len(reader) == 6 and reader.read(keys).texts == ["first"] * 4 + ["second"] * 2


def test_two_builders_on_one_folder(tmp_path: Path) -> None:
    first = CacheWriter(tmp_path, PROVENANCE, FULL, RATE)
    with refused("another builder", str(tmp_path)):
        CacheWriter(tmp_path, PROVENANCE, FULL, RATE)
    first.close()
    CacheWriter(tmp_path, PROVENANCE, FULL, RATE).close()


@pytest.mark.parametrize("how", ["no space", "limit"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    keys = utterances(4)
    writer = CacheWriter(tmp_path, PROVENANCE, FULL, RATE, max_shard_bytes=1)
    writer.add(keys[0], targets(keys[0], FULL))
    finished = {path: path.read_bytes() for path in shards(tmp_path)}
    reason = os.strerror(errno.ENOSPC if how == "no space" else errno.EFBIG)
    if how == "no space":
        with monkeypatch.context() as patch:
            patch.setattr(
                files.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, reason))
            )
            with refused("cannot be written", reason, "shard-00000-00001", "again"):
                writer.add(keys[1], targets(keys[1], FULL))
    else:  # the system's own refusal, in the middle of a file
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
        try:
            with refused("cannot be written", reason, "again"):
                writer.add(keys[1], targets(keys[1], FULL))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        not list(tmp_path.glob(".*.tmp"))
        and {path: path.read_bytes() for path in shards(tmp_path)} == finished
    )
    with pytest.raises(TutorError), writer:  # and what left the writer so can go on
        raise TutorError("full")
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE, max_shard_bytes=1) as writer:
        assert [key in writer for key in keys] == [True, False, False, False]
        for key in keys:
            writer.add(key, targets(key, FULL))
        writer.finish()
    read_all(tmp_path, keys)


# --- What a builder must not do


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with refused("thesis.tex", "empty folder"):
        CacheWriter(tmp_path, PROVENANCE, FULL, RATE)
    with refused("thesis.tex", "cannot be a cache's folder"):
        CacheWriter(tmp_path / "thesis.tex", PROVENANCE, FULL, RATE)
    with refused("has no cache.json"):
        CacheReader(tmp_path)


def test_an_empty_cache(tmp_path: Path) -> None:
    with refused("holds no utterance"), CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        writer.finish()


def test_a_teacher_that_gives_nonsense(tmp_path: Path) -> None:
    key = utterances(1)[0]
    sound = targets(key, FULL)
    assert sound.log_probs is not None and sound.hidden is not None
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE) as writer:
        bad = UtteranceTargets(1, 5, sound.log_probs.clone().fill_(float("nan")), sound.hidden, "")
        with refused("log-probabilities for a.wav from 0 s", "not finite"):
            writer.add(key, bad)
        with refused("hidden vectors for a.wav", "not finite"):
            writer.add(key, UtteranceTargets(1, 5, sound.log_probs, sound.hidden / 0, ""))
        assert key not in writer


def test_a_removed_shard_is_replaced_and_no_other_overwritten(tmp_path: Path) -> None:
    keys = build(tmp_path)
    shards(tmp_path)[1].unlink()  # as the message about a damaged one advises
    with CacheWriter(tmp_path, PROVENANCE, FULL, RATE, max_shard_bytes=1) as writer:
        for key in keys:
            writer.add(key, targets(key, FULL))
        writer.finish()
    read_all(tmp_path, keys)


def test_a_shard_is_as_large_as_asked(tmp_path: Path) -> None:
    build(tmp_path / "one", count=1)
    one = sum(array.nbytes for array in CacheReader(tmp_path / "one")._shards[0].read([0])[0].values())
    build(tmp_path / "many", count=6, max_shard_bytes=2 * one)
    assert len(shards(tmp_path / "many")) == 3


def test_what_another_rank_is_writing_is_left(tmp_path: Path) -> None:
    temporary = tmp_path / ".shard-00001-00000.safetensors.tmp"
    temporary.touch()
    folder = tmp_path / ".shard-00001-00001.safetensors.x7.tmp"
    folder.mkdir()
    CacheWriter(tmp_path, PROVENANCE, FULL, RATE, rank=0).close()
    assert temporary.exists() and folder.exists()


def test_what_any_killed_builder_was_writing_goes_at_the_end(tmp_path: Path) -> None:
    for name in ("shard-00001-00000.safetensors", "cache.json", "head.safetensors"):
        (tmp_path / f".{name}.x7.tmp").mkdir()
        (tmp_path / f".{name}.x7.tmp" / name).write_bytes(b"half")
    (tmp_path / ".shard-00000-00000.safetensors.tmp").touch()  # an earlier version's
    read_all(tmp_path, build(tmp_path))
    assert not list(tmp_path.glob(".*.tmp"))


def test_offsets_are_rounded() -> None:
    assert Utterance("a", 0.9996, 1.0).key == Utterance("a", 1.0, 0.9996).key
