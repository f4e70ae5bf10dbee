# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: what is written comes back, nothing finished is lost, and nothing wrong is read.

Legend: `B` utterances, `T` frames of the encoder's output, `T'` of the hint layer, `V` labels with the blank last, `D` width.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as save_tensors

from nemo_tutornet.cache import codec, layout, shard
from nemo_tutornet.cache.layout import Coding, Utterance
from nemo_tutornet.cache.reader import CacheReader
from nemo_tutornet.cache.records import UtteranceTargets
from nemo_tutornet.cache.store import CacheWriter, read_coding
from nemo_tutornet.errors import TutorError

pytestmark = pytest.mark.unit
BINDING = {"teacher": "ab12", "front_end": {"features": 80, "window": "hann"}, "layer": None}
FULL = Coding(labels=6, width=4, hypotheses=True)
SPARSE = Coding(labels=300, floor=1e-4, width=4)
RATE = 16000


def utterances(count: int, audio: str = "a.wav") -> List[Utterance]:
    return [Utterance(audio, offset=float(i), duration=1.0) for i in range(count)]


def targets(utterance: Utterance, coding: Coding, frames: int = 5, hidden_frames: int = 7, text: str = "hé") -> UtteranceTargets:
    generator = torch.Generator().manual_seed(layout.key_hash(layout.key_bytes(utterance)) % 2**31)
    log_probs = hidden = None
    if coding.labels is not None:
        log_probs = (4 * torch.randn(frames, coding.labels, generator=generator)).log_softmax(-1)
    if coding.width is not None:
        hidden = torch.randn(coding.width, hidden_frames, generator=generator)
    return UtteranceTargets(frames * 640, frames, log_probs, hidden, text if coding.hypotheses else None, 0.5)


def decoded(given: UtteranceTargets, coding: Coding) -> UtteranceTargets:
    """What the codec makes of targets without any storage."""
    log_probs = hidden = None
    if given.log_probs is not None and coding.floor is None:
        log_probs = codec.decode_whole(codec.encode_whole(given.log_probs))
    elif given.log_probs is not None:
        log_probs = codec.decode_sparse(codec.encode_sparse(given.log_probs, coding.floor), coding.labels)
    if given.hidden is not None:
        hidden = codec.decode_hidden(codec.encode_hidden(given.hidden))
    return UtteranceTargets(given.samples, given.frames, log_probs, hidden, given.text, given.confidence)


def build(folder: Path, coding: Coding = FULL, count: int = 5, most_bytes: int = 1, **files: bytes) -> List[Utterance]:
    """A finished cache; of one utterance a shard unless told otherwise."""
    keys = utterances(count)
    with CacheWriter(folder, BINDING, coding, RATE, most_bytes=most_bytes) as writer:
        for key in keys:
            writer.add(key, targets(key, coding))
        writer.finish({name.replace("__", "."): content for name, content in files.items()})
    return keys


def shards(folder: Path) -> List[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def read_all(folder: Path, keys: Sequence[Utterance]) -> None:
    reader = CacheReader(folder)
    for key in keys:
        reader.read([key])


def rewrite_header(folder: Path, **changes: Any) -> None:
    """What somebody writes who knows how to compute the checksum."""
    header = json.loads((folder / "cache.json").read_bytes())
    del header["checksum"]
    (folder / "cache.json").write_bytes(layout.header_bytes({**header, **changes}))


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """One sentence that names all the words, and nothing but a `TutorError`."""
    with pytest.raises(TutorError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 700
    for word in words:
        assert word in message


# --- What is written comes back --------------------------------------------------------------------------------------


def some_coding(labels: Optional[int], sparse: bool, width: Optional[int], hypotheses: bool) -> Coding:
    return Coding(labels, 1e-3 if labels and sparse else None, width, hypotheses)


CODINGS = st.builds(
    some_coding,
    labels=st.none() | st.integers(1, 40), sparse=st.booleans(), width=st.none() | st.integers(1, 9), hypotheses=st.booleans(),
)  # fmt: skip
NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)


def key_of(row: tuple) -> str:
    return Utterance(*row[:3]).key


ROWS = st.lists(
    st.tuples(NAMES, st.floats(0, 1e5), st.none() | st.floats(0, 100), st.integers(0, 5), st.integers(0, 5), st.text(max_size=5)),
    min_size=1, max_size=6, unique_by=key_of,
)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True)
@given(coding=CODINGS, rows=ROWS, most_bytes=st.sampled_from([1, 300, 10**6]), order=st.randoms(use_true_random=False))
def test_what_is_written_comes_back(coding: Coding, rows: list, most_bytes: int, order: Any) -> None:
    expected: Dict[Utterance, UtteranceTargets] = {}
    with tempfile.TemporaryDirectory() as name:
        with CacheWriter(Path(name) / "new", BINDING, coding, RATE, most_bytes=most_bytes) as writer:
            for audio, offset, duration, frames, hidden_frames, text in rows:
                utterance = Utterance(audio, offset, duration)
                given_targets = targets(utterance, coding, frames, hidden_frames, text)
                writer.add(utterance, given_targets)
                expected[utterance] = decoded(given_targets, coding)
                assert utterance in writer
            totals = writer.finish()
        reader = CacheReader(Path(name) / "new")
        assert len(reader) == totals["utterances"] == len(rows) and reader.totals == totals
        assert totals["seconds"] == sum(one.samples for one in expected.values()) / RATE
        batch = list(expected)
        order.shuffle(batch)
        batch.append(batch[0])  # a batch may name one twice
        found = reader.read(batch)
        for i, utterance in enumerate(batch):
            wanted = expected[utterance]
            length = int(found.lengths[i])
            assert (length, int(found.samples[i])) == (wanted.frames, wanted.samples)
            if wanted.log_probs is not None:
                torch.testing.assert_close(found.log_probs[i, :length], wanted.log_probs, rtol=0, atol=1e-5)
                assert (found.log_probs[i, length:, -1] == 0).all() and (found.log_probs[i, length:, :-1] < -1000).all()
            if wanted.hidden is not None:
                width = wanted.hidden.shape[1]
                assert torch.equal(found.hidden[i, :, :width], wanted.hidden) and not found.hidden[i, :, width:].any()
            if coding.hypotheses:
                assert (found.texts[i], found.confidences[i]) == (wanted.text, 0.5)
        assert (found.log_probs is None, found.hidden is None) == (coding.labels is None, coding.width is None)


def test_a_transducer_has_no_confidence(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, BINDING, Coding(hypotheses=True), RATE) as writer:
        writer.add(Utterance("a"), UtteranceTargets(640, 1, text="", confidence=None))
        writer.finish()
    found = CacheReader(tmp_path).read([Utterance("a")])
    assert found.texts == [""] and found.confidences == [None]


def test_keys_forgive_rounding_and_nothing_else() -> None:
    assert Utterance("a", 1.0004, 2.4996).key == Utterance("a", 1.0, 2.5).key
    different = [Utterance("a"), Utterance("a", 0.0, 0.0), Utterance("a", 1.0), Utterance("a|1000"), Utterance("a", 0.0, 1.0)]
    assert len({layout.key_hash(layout.key_bytes(one)) for one in different}) == len(different)


def test_a_reader_holds_no_file_and_can_be_sent_away(tmp_path: Path) -> None:
    keys = build(tmp_path)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    reader = pickle.loads(pickle.dumps(CacheReader(tmp_path)))
    assert torch.equal(reader.read(keys).lengths, torch.full((5,), 5))
    assert not before or len(os.listdir("/proc/self/fd")) <= len(before)


def test_files_beside_the_shards(tmp_path: Path) -> None:
    build(tmp_path, head__safetensors=b"weights")
    reader = CacheReader(tmp_path)
    assert reader.path("head.safetensors").read_bytes() == b"weights"
    with refused("no tokenizer.model"):
        reader.path("tokenizer.model")
    (tmp_path / "head.safetensors").write_bytes(b"Weights")
    with refused("head.safetensors", "checksum"):
        reader.path("head.safetensors")
    (tmp_path / "head.safetensors").unlink()
    with refused("no head.safetensors"):
        reader.path("head.safetensors")


# --- Nothing finished is lost ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from nemo_tutornet.cache import layout
from tests.unit.test_cache_store import BINDING, FULL, RATE, CacheWriter, targets, utterances
assert not any(name.split(".")[0] in ("nemo", "lightning") for name in sys.modules)
writer = CacheWriter(Path(sys.argv[1]), BINDING, FULL, RATE, most_bytes=1)
synced, whole = os.fsync, [0]
def fsync(file):
    synced(file)
    whole[0] += 1
    if whole[0] == 7:  # two calls a shard: in the middle of the fourth, which is written but has no name yet
        os.kill(os.getpid(), signal.SIGKILL)
layout.os.fsync = fsync
for key in utterances(6):
    writer.add(key, targets(key, FULL))
"""


def test_a_killed_builder_goes_on(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(root)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards(tmp_path)}
    assert len(finished) == 3 and list(tmp_path.glob(".shard-*.tmp"))
    with refused("not finished", "again"):
        CacheReader(tmp_path)

    keys = utterances(6)
    assert read_coding(tmp_path) == FULL
    with CacheWriter(tmp_path, BINDING, FULL, RATE, most_bytes=1) as writer:
        assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
        assert [key in writer for key in keys] == [i < len(finished) for i in range(6)]
        for key in keys:
            writer.add(key, targets(key, FULL))
        writer.finish()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished} == finished
    assert len(shards(tmp_path)) == 6
    read_all(tmp_path, keys)


def test_an_abandoned_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    keys = utterances(3)
    with pytest.raises(KeyboardInterrupt), CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        writer.add(keys[0], targets(keys[0], FULL))
        writer.flush()
        writer.add(keys[1], targets(keys[1], FULL))
        raise KeyboardInterrupt
    with CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        assert [key in writer for key in keys] == [True, False, False] and len(writer) == 1


def test_a_finished_cache_grows(tmp_path: Path) -> None:
    keys = build(tmp_path)
    more = [*keys, *utterances(2, "b.wav")]
    with CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        for key in more:
            writer.add(key, targets(key, FULL))
        writer.flush()
        read_all(tmp_path, keys)  # until the new one is finished, the old one is
        assert len(CacheReader(tmp_path)) == 5
        writer.finish()
    read_all(tmp_path, more)


def test_ranks_write_side_by_side(tmp_path: Path) -> None:
    keys = utterances(6)
    first = CacheWriter(tmp_path, BINDING, FULL, RATE, rank=0)
    second = CacheWriter(tmp_path, BINDING, FULL, RATE, rank=1)
    for key in keys[:4]:
        first.add(key, targets(key, FULL, text="first"))
    for key in keys[3:]:  # a sampler repeats an utterance to fill up the last batch
        second.add(key, targets(key, FULL, text="second"))
    second.close()
    totals = first.finish()
    first.close()
    assert totals["utterances"] == 6 and totals["seconds"] == 6 * 5 * 640 / RATE and len(shards(tmp_path)) == 2
    reader = CacheReader(tmp_path)
    assert len(reader) == 6 and reader.read(keys).texts == ["first"] * 4 + ["second"] * 2


def test_two_builders_on_one_folder(tmp_path: Path) -> None:
    first = CacheWriter(tmp_path, BINDING, FULL, RATE)
    with refused("another builder", str(tmp_path)):
        CacheWriter(tmp_path, BINDING, FULL, RATE)
    first.close()
    CacheWriter(tmp_path, BINDING, FULL, RATE).close()


@pytest.mark.parametrize("how", ["no space", "limit"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    keys = utterances(4)
    writer = CacheWriter(tmp_path, BINDING, FULL, RATE, most_bytes=1)
    writer.add(keys[0], targets(keys[0], FULL))
    finished = {path: path.read_bytes() for path in shards(tmp_path)}
    reason = os.strerror(errno.ENOSPC if how == "no space" else errno.EFBIG)
    if how == "no space":
        with monkeypatch.context() as patch:
            patch.setattr(layout.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, reason)))
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
    assert not list(tmp_path.glob(".*.tmp")) and {path: path.read_bytes() for path in shards(tmp_path)} == finished
    with pytest.raises(TutorError), writer:  # and what left the writer so can go on
        raise TutorError("full")
    with CacheWriter(tmp_path, BINDING, FULL, RATE, most_bytes=1) as writer:
        assert [key in writer for key in keys] == [True, False, False, False]
        for key in keys:
            writer.add(key, targets(key, FULL))
        writer.finish()
    read_all(tmp_path, keys)


# --- Nothing wrong is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [FULL, SPARSE], ids=["whole", "sparse"])
def test_a_flipped_bit_anywhere_in_a_shard(tmp_path: Path, coding: Coding) -> None:
    keys = build(tmp_path, coding, count=2, most_bytes=10**6)
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
    with CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        writer.add(key, targets(key, FULL))
    path = shards(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with refused(path.name, "utterance 0", "a.wav|0|1000"), CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        writer.finish()
    path.unlink()  # as the message says
    with CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
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
        CacheWriter(tmp_path, BINDING, FULL, RATE)


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
    reader = CacheReader(tmp_path)
    reader.check_binding(BINDING)
    reader.check_binding({"teacher": "ab12"})
    with refused('teacher is "ab12" there and "cd34" here', "front_end.window", "build one"):
        reader.check_binding({**BINDING, "teacher": "cd34", "front_end": {"features": 80, "window": "hamming"}})
    with refused("hint is null there"):
        reader.check_binding({"hint": "encoder"})
    with refused('binding.teacher is "ab12" there and "cd34" here', "--output"):
        CacheWriter(tmp_path, {**BINDING, "teacher": "cd34"}, FULL, RATE)
    with refused("coding.width is 4 there and null here"):
        CacheWriter(tmp_path, BINDING, Coding(labels=6, hypotheses=True), RATE)


def test_a_shard_of_another_cache(tmp_path: Path) -> None:
    build(tmp_path / "ours")
    with CacheWriter(tmp_path / "theirs", {"teacher": "cd34"}, FULL, RATE) as writer:
        writer.add(Utterance("c"), targets(Utterance("c"), FULL))
    shards(tmp_path / "theirs")[0].rename(tmp_path / "ours" / "shard-00001-00000.safetensors")
    with refused("shard-00001-00000", "another cache"):
        CacheWriter(tmp_path / "ours", BINDING, FULL, RATE)
    assert len(CacheReader(tmp_path / "ours")) == 5  # a finished one reads what it lists


def test_a_shard_of_the_same_cache_built_anew(tmp_path: Path) -> None:
    """Whole, of the same size, binding and utterances: only the checksum in `cache.json` tells it."""
    (key,) = build(tmp_path / "ours", count=1)
    with CacheWriter(tmp_path / "theirs", BINDING, FULL, RATE) as writer:
        writer.add(key, targets(Utterance("other"), FULL))
    (ours,), (theirs,) = shards(tmp_path / "ours"), shards(tmp_path / "theirs")
    assert ours.stat().st_size == theirs.stat().st_size
    theirs.replace(ours)
    with refused(ours.name, "header"):
        CacheReader(tmp_path / "ours")


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


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"x"', b"{}", b"\xff", b"[" * 100000, b'{"checksum": 0}'])
def test_a_header_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with refused("cache.json", "not readable"):
        CacheReader(tmp_path)
    with refused("cache.json", "not readable"):
        CacheWriter(tmp_path, BINDING, FULL, RATE)


def entry(**changes: Any) -> List[Dict[str, Any]]:
    return [{"name": "shard-00000-00000.safetensors", "bytes": 1, "utterances": 1, "header_crc32": 0, **changes}]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"shards": entry(name="../shard-00000-00000.safetensors")}, "no name of a shard"),
        ({"shards": entry(name="/etc/passwd")}, "no name of a shard"),
        ({"shards": entry(name=None)}, "no name of a shard"),
        ({"shards": entry(bytes=-1)}, "is no number"),
        ({"shards": entry(bytes=True)}, "is no number"),
        ({"shards": 3}, "damaged"),
        ({"shards": [{}]}, "damaged"),
        ({"files": [{"name": "../x", "sha256": ""}]}, "no name of a file"),
        ({"files": [{"name": ".bashrc", "sha256": ""}]}, "no name of a file"),
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
)  # fmt: skip
def test_a_made_up_header(tmp_path: Path, changes: Dict[str, Any], word: str) -> None:
    build(tmp_path)
    rewrite_header(tmp_path, **changes)
    with refused(word):
        CacheReader(tmp_path)


def forge(folder: Path, **changes: np.ndarray) -> None:
    """A cache of one shard with other arrays, whose checksums are all right."""
    (path,) = shards(folder)
    tensors = {**load_file(path), **{name.replace("__", "."): value for name, value in changes.items()}}
    coding = read_coding(folder)
    tensors["index.checksum"] = np.array([shard.checksum([tensors[name] for name in layout.arrays_of(coding)])], np.uint32)
    belongs = layout.description(BINDING, coding, RATE)
    index = str(shard.checksum([tensors[name] for name in layout.index_of(coding)]))
    path.write_bytes(
        save_tensors(tensors, metadata={"format": "nemo_tutornet.cache 1", "belongs": belongs, "index_crc32": index})
    )
    crc = shard._header_crc32(path)
    rewrite_header(folder, shards=entry(name=path.name, bytes=path.stat().st_size, header_crc32=crc))


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
def test_a_made_up_index(tmp_path: Path, changes: Dict[str, np.ndarray]) -> None:
    build(tmp_path, SPARSE, count=1)
    forge(tmp_path, **changes)
    with refused("shard-00000-00000", "not readable"):
        CacheReader(tmp_path)


# --- What a builder must not do --------------------------------------------------------------------------------------


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    with refused("thesis.tex", "empty folder"):
        CacheWriter(tmp_path, BINDING, FULL, RATE)
    with refused("thesis.tex", "cannot be a cache's folder"):
        CacheWriter(tmp_path / "thesis.tex", BINDING, FULL, RATE)
    with refused("has no cache.json"):
        CacheReader(tmp_path)


def test_an_empty_cache(tmp_path: Path) -> None:
    with refused("holds no utterance"), CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        writer.finish()


def test_a_teacher_that_gives_nonsense(tmp_path: Path) -> None:
    key = utterances(1)[0]
    sound = targets(key, FULL)
    assert sound.log_probs is not None and sound.hidden is not None
    with CacheWriter(tmp_path, BINDING, FULL, RATE) as writer:
        bad = UtteranceTargets(1, 5, sound.log_probs.clone().fill_(float("nan")), sound.hidden, "")
        with refused("log-probabilities for a.wav from 0 s", "not finite"):
            writer.add(key, bad)
        with refused("hidden vectors for a.wav", "not finite"):
            writer.add(key, UtteranceTargets(1, 5, sound.log_probs, sound.hidden / 0, ""))
        assert key not in writer
