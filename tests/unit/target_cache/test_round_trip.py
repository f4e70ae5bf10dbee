# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk: what is written comes back."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.target_cache import codec, layout
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from tests.properties import examples
from tests.unit.target_cache.caches import PROVENANCE, RATE, SPARSE, build, refused, shards, targets


def decoded(given: UtteranceTargets, schema: CacheSchema) -> UtteranceTargets:
    """What the codec makes of targets without any storage."""
    log_probs = hidden = None
    if given.log_probs is not None and schema.min_posterior is None:
        log_probs = codec.decode_whole(codec.encode_whole(given.log_probs))
    elif given.log_probs is not None:
        log_probs = codec.decode_sparse(
            codec.encode_sparse(given.log_probs, schema.min_posterior), schema.labels
        )
    if given.hidden is not None:
        hidden = codec.decode_hidden(codec.encode_hidden(given.hidden))
    return UtteranceTargets(given.samples, given.frames, log_probs, hidden, given.text, given.confidence)


def some_schema(labels: int | None, sparse: bool, width: int | None, hypotheses: bool) -> CacheSchema:
    return CacheSchema(labels, 1e-3 if labels and sparse else None, width, hypotheses)


SCHEMAS = st.builds(
    some_schema,
    labels=st.none() | st.integers(1, 40),
    sparse=st.booleans(),
    width=st.none() | st.integers(1, 9),
    hypotheses=st.booleans(),
)
# What the system can call a file: text, and bytes that are not UTF-8, which Python has as U+DC80 to U+DCFF.
BYTES = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | BYTES, min_size=1, max_size=12
)


def key_of(row: tuple) -> str:
    return Utterance(*row[:3]).key


ROWS = st.lists(
    st.tuples(
        NAMES,
        st.floats(0, 1e5),
        st.none() | st.floats(0, 100),
        st.integers(0, 5),
        st.integers(0, 5),
        st.text(max_size=5),
    ),
    min_size=1,
    max_size=6,
    unique_by=key_of,
)


@examples(25)
@given(
    schema=SCHEMAS,
    rows=ROWS,
    max_shard_bytes=st.sampled_from([1, 300, 10**6]),
    order=st.randoms(use_true_random=False),
)
def test_what_is_written_comes_back(
    schema: CacheSchema, rows: list, max_shard_bytes: int, order: Any
) -> None:
    expected: dict[Utterance, UtteranceTargets] = {}
    with tempfile.TemporaryDirectory() as name:
        with CacheWriter(
            Path(name) / "new", PROVENANCE, schema, RATE, max_shard_bytes=max_shard_bytes
        ) as writer:
            for audio, offset, duration, frames, hidden_frames, text in rows:
                utterance = Utterance(audio, offset, duration)
                given_targets = targets(utterance, schema, frames, hidden_frames, text)
                writer.add(utterance, given_targets)
                expected[utterance] = decoded(given_targets, schema)
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
                assert (found.log_probs[i, length:, -1] == 0).all() and (
                    found.log_probs[i, length:, :-1] < -1000
                ).all()
            if wanted.hidden is not None:
                width = wanted.hidden.shape[1]
                assert (
                    torch.equal(found.hidden[i, :, :width], wanted.hidden)
                    and not found.hidden[i, :, width:].any()
                )
            if schema.hypotheses:
                assert (found.texts[i], found.confidences[i]) == (wanted.text, 0.5)
        assert (found.log_probs is None, found.hidden is None) == (
            schema.labels is None,
            schema.width is None,
        )


def test_a_transducer_has_no_confidence(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, PROVENANCE, CacheSchema(hypotheses=True), RATE) as writer:
        writer.add(Utterance("a"), UtteranceTargets(640, 1, text="", confidence=None))
        writer.finish()
    found = CacheReader(tmp_path).read([Utterance("a")])
    assert found.texts == [""] and found.confidences == [None]


def test_certainty_and_half_a_character_come_back(tmp_path: Path) -> None:
    """A label that cannot be has -inf; a surrogate alone is no text that UTF-8 has."""
    sure = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    with CacheWriter(tmp_path, PROVENANCE, CacheSchema(labels=3, hypotheses=True), RATE) as writer:
        writer.add(Utterance("a"), UtteranceTargets(640, 1, sure, None, "a\ud800", 0.5))
        writer.finish()
    found = CacheReader(tmp_path).read([Utterance("a")])
    assert (
        found.log_probs is not None
        and torch.equal(found.log_probs[0].exp(), sure.exp())
        and found.texts == ["a?"]
    )


def test_keys_forgive_rounding_and_nothing_else() -> None:
    assert Utterance("a", 1.0004, 2.4996).key == Utterance("a", 1.0, 2.5).key
    different = [
        Utterance("a"),
        Utterance("a", 0.0, 0.0),
        Utterance("a", 1.0),
        Utterance("a|1000"),
        Utterance("a", 0.0, 1.0),
    ]
    assert len({key_hash(key_bytes(one)) for one in different}) == len(different)


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


def test_the_names_on_disk(tmp_path: Path) -> None:
    """They are older than the code's, and caches on users' disks have them."""
    build(tmp_path, SPARSE, count=1)
    cache_id = (
        '{"binding": {"front_end": {"features": 80, "window": "hann"}, "layer": null, "teacher": "ab12"}, '
        '"coding": {"floor": 0.0001, "hypotheses": false, "labels": 300, "width": 4}, "sample_rate": 16000}'
    )
    assert layout.description(PROVENANCE, SPARSE, RATE) == cache_id
    header = json.loads((tmp_path / "cache.json").read_bytes())
    assert list(header) == [
        *("format", "version", "complete", "binding", "coding", "sample_rate", "totals", "shards", "files"),
        "checksum",
    ]
    assert header["coding"] == {"labels": 300, "floor": 1e-4, "width": 4, "hypotheses": False}
    assert header["binding"] == PROVENANCE
    (path,) = shards(tmp_path)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["belongs"] == cache_id and file.metadata()["format"] == "nemo_tutornet.cache 1"
        assert {name.split(".")[1] for name in set(file.keys()) if name.startswith("sparse.")} == {
            *("counts", "ids", "values", "rest")
        }
