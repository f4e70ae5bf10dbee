# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of audio: the same for the same recording, and for no other of its length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.target_cache.fingerprint import SIZE, _signs_on, fingerprints, same_audio
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter
from tests.unit.target_cache.caches import PROVENANCE, RATE


def of(signal: Tensor) -> Tensor:
    return fingerprints(signal[None], torch.tensor([len(signal)]))


def same(one: Tensor, other: Tensor) -> bool:
    return bool(same_audio(of(one), of(other)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 50_000), st.integers(0, 20_000), st.integers(0, 10_000))
def test_padding_and_the_other_utterances_change_nothing(samples: int, padding: int, seed: int) -> None:
    signal = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    batch = torch.full((2, samples + padding), 9.0)
    batch[0, :samples] = signal
    found = fingerprints(batch, torch.tensor([samples, samples + padding]))
    assert found.shape == (2, SIZE) and torch.allclose(found[:1], of(signal), rtol=1e-4, atol=1e-2)
    assert float(found[0, 0]) == pytest.approx(float(signal.norm()), rel=1e-5)


def tone(hertz: float, seconds: float = 2.0) -> Tensor:
    return 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * 16000)) / 16000)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: tone(700),
        lambda x: -x,
        lambda x: x.flip(0),
        lambda x: 0.95 * x,
        lambda x: torch.zeros_like(x),
        lambda x: x.roll(1),
        lambda x: torch.cat([x[:16384], -x[16384:]]),
        lambda x: torch.cat([x[: len(x) // 2], torch.zeros(len(x) - len(x) // 2)]),
    ],
)
def test_other_audio_of_the_same_length_is_found(change) -> None:
    assert not same(tone(300), change(tone(300)))


def test_a_second_whole_period_counts_too() -> None:
    signal = torch.randn(2**15, generator=torch.Generator().manual_seed(0))
    assert not same(signal, signal.roll(2**14))


@pytest.mark.parametrize(
    "change", [lambda x: x.half().float(), lambda x: x.bfloat16(), lambda x: x + 1e-5 * torch.randn_like(x)]
)
def test_rounding_is_no_other_audio(change) -> None:
    torch.manual_seed(0)
    assert same(tone(300), change(tone(300))) and same(torch.zeros(9), torch.zeros(9))


def test_autocast_changes_nothing() -> None:
    expected = of(tone(300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(of(tone(300)), expected)


def test_the_signs_are_copied_to_a_device_once() -> None:
    device = torch.device("meta")
    assert _signs_on(device) is _signs_on(torch.device("meta")) and _signs_on(device)[0].device == device


def test_they_come_back_from_a_cache(tmp_path: Path) -> None:
    schema = CacheSchema(hypotheses=True, fingerprints=True)
    key, known = Utterance("a.wav"), of(tone(300))[0]
    with CacheWriter(tmp_path, PROVENANCE, schema, RATE) as writer:
        writer.add(key, UtteranceTargets(32000, 1, text="a", fingerprint=known))
        writer.finish()
    reader = CacheReader(tmp_path)
    assert reader.schema == schema
    stored = reader.read([key, key]).fingerprints
    assert stored is not None and torch.equal(stored, torch.stack([known, known]))
