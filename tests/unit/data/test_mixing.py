# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The share of each epoch that comes from each manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from nemo.collections.asr.data.audio_to_text import AudioToCharDataset
from nemo.collections.asr.parts.utils.asr_batching import SemiSortBatchSampler
from torch.utils.data import DataLoader

from nemo_tutornet.data.mixing import ManifestMix, MixSampler, manifest_shares, mixed_loader
from tests.conftest import LABELS, refusal

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(SIZES, st.data(), st.integers(0, 5))
def test_an_epoch_has_its_shares_and_every_utterance_its_turn(sizes: list[int], data: Any, seed: int) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    members = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    mix = ManifestMix(members, weights, seed)
    assert len(mix) == sum(sizes) == sum(mix.sizes)
    for size, weight in zip(mix.sizes, weights, strict=True):
        assert abs(size - sum(sizes) * weight / sum(weights)) <= 1
    counts: Counter[int] = Counter()
    for epoch in range(6):
        drawn = mix.draw(epoch).tolist()
        counts.update(drawn)
        for manifest, size in zip(members, mix.sizes, strict=True):
            assert sum(one in manifest for one in drawn) == size
            # Every utterance is heard as often as any other of its manifest, or once more.
            heard = [counts[one] for one in manifest]
            assert max(heard) - min(heard) <= 1
    assert mix.draw(3).tolist() == ManifestMix(members, weights, seed).draw(3).tolist()


def test_ranks_share_an_epoch_and_a_seed_has_its_order() -> None:
    mix = ManifestMix([list(range(30)), list(range(30, 40))], [1.0, 1.0], seed=1)
    ranks = [MixSampler(mix, rank, 2, shuffle=True) for rank in range(2)]
    epochs = []
    for epoch in range(2):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        parts = [list(sampler) for sampler in ranks]
        assert sorted(parts[0] + parts[1]) == sorted(mix.draw(epoch).tolist())
        epochs.append(parts)
    assert epochs[0] != epochs[1]
    mix.seed = 2  # as a resumed run has it from its checkpoint
    assert [list(sampler) for sampler in ranks] != epochs[1]


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    found = []
    for name, durations in (("long", [1.0, 2.0, 30.0, 3.0]), ("short", [0.5, 0.25])):
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {"audio_filepath": f"{name}{i}.wav", "duration": seconds, "text": "a"}
            for i, seconds in enumerate(durations)
        ]
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")  # NeMo skips empty lines
        found.append(str(path))
    return found


def loader_of(manifests: list[str], **how: Any) -> Any:
    dataset = AudioToCharDataset(manifests, LABELS, 16000, max_duration=16.7)
    return DataLoader(dataset, collate_fn=dataset.collate_fn, **(how or {"batch_size": 2}))


def test_rows_are_those_that_the_training_keeps(manifests: list[str]) -> None:
    shares = manifest_shares(loader_of(manifests), {"manifest_filepath": manifests}, [1.0, 4.0])
    assert [str(one) for one in shares] == [
        "1 utterance, 0.00 h an epoch (3 in it, each drawn 0.33 times)",
        "4 utterances, 0.00 h an epoch (2 in it, each drawn 2 times)",
    ]
    plain = manifest_shares(loader_of(manifests), {"manifest_filepath": ",".join(manifests)}, None)
    assert [(one.rows, one.drawn, one.hours) for one in plain] == [(3, 3, 6 / 3600), (2, 2, 0.75 / 3600)]


def test_batches_of_similar_length_are_of_the_mix(manifests: list[str]) -> None:
    durations = [1.0, 2.0, 3.0, 0.5, 0.25]
    like = SemiSortBatchSampler(0, 1, durations, batch_size=2, randomization_factor=0.0)
    loader = loader_of(manifests, sampler=like, batch_size=None)
    trainer = SimpleNamespace(global_rank=0, world_size=1)
    section = {"manifest_filepath": manifests}
    mixed, mix = mixed_loader(loader, section, [1.0, 4.0], trainer)
    batches = [sorted(durations[i] for i in batch) for batch in mixed.sampler]
    flat = sorted(length for batch in batches for length in batch)
    assert flat[:4] == [0.25, 0.25, 0.5, 0.5] and len(flat) == 5 and [0.25, 0.25] in batches
    assert mixed_loader(mixed, section, [1.0, 4.0], trainer) == (mixed, mix)


def test_weights_that_do_not_fit(manifests: list[str], tmp_path: Path) -> None:
    section, trainer = {"manifest_filepath": manifests}, SimpleNamespace(global_rank=0, world_size=1)
    said = refusal(mixed_loader, loader_of(manifests), section, [1.0], trainer)
    assert "has 1 weights, and model.train_ds.manifest_filepath 2 manifests; give one each" in said
    rows = {"audio_filepath": "a.wav", "duration": 99.0, "text": "a"}
    (tmp_path / "none.jsonl").write_text(json.dumps(rows) + "\n")
    more = [*manifests, str(tmp_path / "none.jsonl")]
    said = refusal(mixed_loader, loader_of(more), {"manifest_filepath": more}, [1.0, 1.0, 1.0], trainer)
    assert said.endswith("none.jsonl; leave it and its weight out.")
