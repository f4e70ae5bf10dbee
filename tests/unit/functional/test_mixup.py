# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Mixtures of two waveforms."""

from __future__ import annotations

import pytest
import torch

from nemo_tutornet.functional.mixup import draw_mixtures, mix_waveforms


def test_the_mixtures_are_those_of_loops() -> None:
    """Also where there is noise behind the end of an utterance, and a row without a sample."""
    torch.manual_seed(0)
    signal, lengths = torch.randn(6, 50), torch.tensor([50, 1, 0, 30, 49, 50])
    partners, weights = torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([1.0, 0.25, 0.5, 0.0, 0.9, 1.0])
    mixtures, longer = mix_waveforms(signal, lengths, partners, weights)
    for b, (partner, weight) in enumerate(zip(partners.tolist(), weights.tolist(), strict=True)):
        if weight == 1:
            assert torch.equal(mixtures[b], signal[b]) and longer[b] == lengths[b]
            continue
        assert longer[b] == max(int(lengths[b]), int(lengths[partner]))
        for n in range(50):
            own = float(signal[b, n]) if n < lengths[b] else 0.0
            other = float(signal[partner, n]) if n < lengths[partner] else 0.0
            assert mixtures[b, n].item() == pytest.approx(weight * own + (1 - weight) * other, abs=1e-6)


@pytest.mark.parametrize("alpha, spread", [(1.0, 1 / 12), (0.4, 0.25 / 1.8), (10.0, 0.25 / 21)])
def test_the_draws_have_the_share_and_the_distribution(alpha: float, spread: float) -> None:
    torch.manual_seed(1)
    partners, weights = draw_mixtures(20_000, 0.3, alpha)
    mixed = weights[weights < 1]
    assert abs(len(mixed) / 20_000 - 0.3) < 0.02
    assert abs(mixed.mean() - 0.5) < 0.02 and abs(mixed.var() / spread - 1) < 0.05
    assert not (partners == torch.arange(20_000)).any() and partners.unique().numel() == 20_000


def test_two_rows_are_mixed_with_each_other() -> None:
    assert draw_mixtures(2, 0.5, 1.0)[0].tolist() == [1, 0]
