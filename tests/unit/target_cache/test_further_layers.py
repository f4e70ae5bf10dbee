# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Caches of several hint layers (`tutor.rkd.pairs`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tutornet.target_cache import codec
from nemo_tutornet.target_cache.fingerprint import SIZE
from nemo_tutornet.target_cache.layout import header_bytes
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import EVERYTHING, Kinds
from nemo_tutornet.target_cache.schema import (
    MOST_FURTHER_LAYERS,
    CacheSchema,
    arrays_of,
    schema_of,
    schema_to_disk,
)
from nemo_tutornet.target_cache.writer import CacheWriter
from tests.unit.target_cache.caches import FULL, PROVENANCE, RATE, build, refused, targets, utterances

THREE = CacheSchema(labels=6, width=4, hypotheses=True, further_widths=(9, 4))


def test_each_layer_comes_back_with_its_own_width_and_frames(tmp_path: Path) -> None:
    keys = build(tmp_path, THREE, count=3)
    stored = CacheReader(tmp_path).read(keys)
    assert stored.hidden is not None and [layer.shape[1] for layer in stored.further_hidden] == [9, 4]
    for row, key in enumerate(keys):
        given = targets(key, THREE)
        assert given.hidden is not None
        for found, wanted in zip(
            (stored.hidden, *stored.further_hidden), (given.hidden, *given.further_hidden), strict=True
        ):
            assert found[row].shape == wanted.shape
            torch.testing.assert_close(found[row], wanted, rtol=0, atol=0.02 * wanted.abs().max().item())


@pytest.mark.parametrize("floor", [None, 1e-4])
@pytest.mark.parametrize(
    "kinds",
    [
        Kinds(),
        Kinds(hidden=True),
        Kinds(log_probs=True),
        Kinds(texts=True),
        Kinds(further=[1]),
        Kinds(hidden=True, further=[1, 0]),
        EVERYTHING,
    ],
    ids=str,
)
def test_only_the_kinds_that_are_wanted_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: Kinds, floor: float | None
) -> None:
    """They are equal to those of a reading of everything; decoding another kind would fail."""
    keys = build(tmp_path, replace(THREE, min_posterior=floor), count=3)
    reader = CacheReader(tmp_path)
    everything = reader.read(keys)
    chosen = range(2) if kinds.further is None else kinds.further
    if not kinds.log_probs:
        monkeypatch.setattr(codec, "decode_whole", None)
        monkeypatch.setattr(codec, "decode_sparse", None)
    if not kinds.hidden and not chosen:
        monkeypatch.setattr(codec, "decode_hidden", None)
    found = reader.read(keys, kinds)
    assert torch.equal(found.lengths, everything.lengths) and torch.equal(found.samples, everything.samples)
    for name, wanted in (("log_probs", kinds.log_probs), ("hidden", kinds.hidden)):
        value = getattr(found, name)
        assert torch.equal(value, getattr(everything, name)) if wanted else value is None
    assert len(found.further_hidden) == len(chosen)
    for i, layer in zip(chosen, found.further_hidden, strict=True):
        assert torch.equal(layer, everything.further_hidden[i])
    texts = (everything.texts, everything.confidences) if kinds.texts else (None, None)
    assert (found.texts, found.confidences) == texts


def test_fingerprints_are_read_whatever_is_wanted(tmp_path: Path) -> None:
    key = utterances(1)[0]
    schema = CacheSchema(labels=6, fingerprints=True)
    with CacheWriter(tmp_path, PROVENANCE, schema, RATE) as writer:
        writer.add(key, replace(targets(key, schema), fingerprint=torch.ones(SIZE)))
        writer.finish()
    assert torch.equal(CacheReader(tmp_path).read([key], Kinds()).fingerprints, torch.ones(1, SIZE))


def test_a_cache_of_one_layer_is_on_disk_as_before(tmp_path: Path) -> None:
    assert set(schema_to_disk(FULL)) == {"labels", "floor", "width", "hypotheses"}
    names = [name for name in arrays_of(FULL) if name.startswith("hidden")]
    assert names == ["hidden.values", "hidden.frames", "hidden.channels", "hidden.peak"]
    assert schema_of({"coding": schema_to_disk(THREE)}) == THREE
    build(tmp_path, FULL, count=1)
    assert not CacheReader(tmp_path).schema.further_widths


@pytest.mark.parametrize(
    "widths",
    [9, "94", [None], [0], [2**31], [True], [4.0], [[4]], {"a": 1}, [4] * (MOST_FURTHER_LAYERS + 1), [9]],
)
def test_other_widths_are_refused(tmp_path: Path, widths: Any) -> None:
    keys = build(tmp_path, THREE, count=1)
    header = json.loads((tmp_path / "cache.json").read_text())
    header.pop("checksum")
    header["coding"]["further_widths"] = widths
    (tmp_path / "cache.json").write_bytes(header_bytes(header))
    with refused(str(tmp_path)):
        CacheReader(tmp_path).read(keys)
    with pytest.raises(ValueError, match="no first ones"):
        CacheSchema(further_widths=(4,))
