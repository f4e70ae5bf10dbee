# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Utterances at several speeds in a cache, and how a training tells them apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import ORIGINAL, View
from nemo_tutornet.target_cache.layout import HEADER, header_bytes, read_header
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from nemo_tutornet.teachers.cached_views import check_views, stored_lengths, with_views
from tests.unit.target_cache.caches import PROVENANCE, RATE, build, refused, targets, utterances

SCHEMA = CacheSchema(labels=6)
SLOW, FAST = (
    View(f"speed {rate}/100 scipy", rate / 100, rate / 100, 100, "scipy", (0.9, 1.1)) for rate in (110, 90)
)
VIEWS = (ORIGINAL, FAST, SLOW)


class TrainData:
    """The utterances of a training set."""

    def __init__(self, known: list[Utterance], views: Any = VIEWS, is_iterable: bool = False) -> None:
        self.manifest_utterances, self.views, self.is_iterable = known, views, is_iterable


def store(folder: Path, known: list[Utterance], views: Any = VIEWS, samples: int = 3200) -> CacheReader:
    """A cache of utterances whose lengths differ by one sample."""
    with CacheWriter(folder, PROVENANCE, SCHEMA, RATE) as writer:
        for view in views:
            for i, one in enumerate(known):
                there = replace(one, view=view.name)
                length = view.samples_of(samples + i)
                writer.add(there, replace(targets(there, SCHEMA), samples=length))
        writer.finish(views=[view.name for view in views])
    return CacheReader(folder)


def batch(known: list[Utterance], lengths: list[int], views: Any = VIEWS) -> TrainingBatch:
    return TrainingBatch(torch.zeros(1), torch.tensor(lengths), utterances=known, views=views)


def test_the_number_of_samples_identifies_the_speed(tmp_path):
    known = utterances(3)
    reader = store(tmp_path / "cache", known)
    assert len(reader) == 9 and set(reader.views) == {view.name for view in VIEWS}
    check_views(reader, TrainData(known))
    assert stored_lengths(reader, known, VIEWS).tolist() == [
        [3200, 2880, 3521],
        [3201, 2881, 3522],
        [3202, 2882, 3523],
    ]
    found = with_views(reader, batch([known[2], known[0], known[0]], [3523, 3200, 2880]))
    assert found == [replace(known[2], view=SLOW.name), known[0], replace(known[0], view=FAST.name)]
    for one in found:
        assert int(reader.read([one]).samples[0]) in (3523, 3200, 2880)
    # A training without a perturbation, and the cuts of Lhotse, which say their speed, are left as they are.
    assert with_views(reader, batch(known, [1, 2, 3], (ORIGINAL,))) == known
    lhotse = (ORIGINAL, View("perturb_speed 0.9", 1 / 0.9))
    assert with_views(reader, batch(known, [1, 2, 3], lhotse)) == known


def test_a_length_that_is_none_of_the_speeds(tmp_path):
    known = utterances(2)
    reader = store(tmp_path / "cache", known)
    held = "3200 (as recorded), 2880 (rate 0.9), 3521 (rate 1.1)"
    with refused("a.wav from 0 s for 1 s has 3000 samples in training", held, "at another speed"):
        with_views(reader, batch(known, [3000, 3201]))
    with refused("has no targets for b.wav", "run `nemo-tutornet cache` with the arguments of this training"):
        with_views(reader, batch(utterances(1, "b.wav"), [3200]))
    with refused("3200 samples at two speeds", "(as recorded and rate 1.1)"):
        store(tmp_path / "same", known, [SLOW], samples=2909)
        with CacheWriter(tmp_path / "same", PROVENANCE, SCHEMA, RATE) as writer:
            writer.add(known[0], replace(targets(known[0], SCHEMA), samples=3200))
            writer.finish()
        with_views(CacheReader(tmp_path / "same"), batch(known[:1], [3200], (ORIGINAL, SLOW)))


def test_what_a_training_finds_out_before_it_begins(tmp_path):
    known = utterances(3)
    reader = store(tmp_path / "cache", known, VIEWS[:2])
    with refused("holds 2 of the 3 speeds", "(missing: rate 1.1)"):
        check_views(reader, TrainData(known))
    with refused("holds 2 of the 3 speeds"):  # Lhotse, and tars
        check_views(reader, TrainData([], is_iterable=True))
    check_views(reader, TrainData(known, VIEWS[:2]))
    check_views(reader, TrainData(known, (FAST,)))
    more = [*known, *utterances(2, "b.wav")]
    with refused("has no targets for b.wav", "(as recorded) and 1 more of 5"):
        check_views(reader, TrainData(more, VIEWS[:2]))
    check_views(reader, TrainData(more, VIEWS[:2], is_iterable=True))  # no tar may have them
    with CacheWriter(tmp_path / "cache", PROVENANCE, SCHEMA, RATE) as writer:
        writer.add(more[3], targets(more[3], SCHEMA))
        writer.finish()
    reader = CacheReader(tmp_path / "cache")
    with refused("has no targets for b.wav from 0 s for 1 s (rate 0.9);"):
        check_views(reader, TrainData(more, VIEWS[:2], is_iterable=True))
    with refused("a.wav from 0 s for 1 s has 3 samples at two speeds", "(as recorded and rate 1.1)"):
        short = store(tmp_path / "short", known, VIEWS[::2], samples=0)
        lengths = short.samples([replace(one, view=view.name) for one in known for view in VIEWS[::2]])
        assert lengths.tolist() == [0, 0, 1, 2, 2, 3]
        with CacheWriter(tmp_path / "shorter", PROVENANCE, SCHEMA, RATE) as writer:
            for view in (ORIGINAL, SLOW):
                one = replace(known[0], view=view.name)
                writer.add(one, replace(targets(one, SCHEMA), samples=3))
            writer.finish(views=["", SLOW.name])
        check_views(CacheReader(tmp_path / "shorter"), TrainData(known[:1], VIEWS[::2]))


def test_views_are_added_to_what_is_there(tmp_path):
    known = build(tmp_path / "cache", SCHEMA)
    plain = (tmp_path / "cache" / HEADER).read_bytes()
    assert b"views" not in plain, "a cache of one speed is as earlier versions write it"
    assert CacheReader(tmp_path / "cache").views == ("",)
    reader = store(tmp_path / "cache", known, [FAST])
    assert set(reader.views) == {"", FAST.name} and len(reader) == 10
    assert set(store(tmp_path / "cache", known, [SLOW]).views) == {view.name for view in VIEWS}
    assert store(tmp_path / "other", known, [FAST]).views == (FAST.name,)
    empty = reader.samples([])
    assert empty.dtype == np.int64 and len(empty) == 0


@pytest.mark.parametrize("views", [None, "speed", [1], ["a\nb"], ["x" * 200], {"a": 1}])
def test_a_header_with_other_views_is_refused(tmp_path, views):
    build(tmp_path / "cache", SCHEMA)
    header = {**read_header(tmp_path / "cache"), "views": views}
    (tmp_path / "cache" / HEADER).write_bytes(header_bytes(header))
    with refused("is damaged", "views"):
        CacheReader(tmp_path / "cache")
