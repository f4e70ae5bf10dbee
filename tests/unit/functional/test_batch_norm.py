# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Batch norm that was folded into a convolution gets statistics again, and says the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nemo_tutornet.functional.batch_norm import ChannelStatistics, is_folded, unfold_batch_norm


def folded(channels: int = 5) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels, eps=1e-3)
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(1))
    return norm.eval()


def test_the_output_stays_and_training_normalises_by_what_was_measured() -> None:
    norm, signal = folded(), torch.randn(8, 5, 40) * torch.tensor([0.1, 1, 3, 10, 0])[:, None] + 2
    before = norm(signal)
    statistics = ChannelStatistics()
    for row in signal:
        statistics.add(row[None])
    mean, variance = statistics.mean_and_variance()
    torch.testing.assert_close(mean.float(), signal.mean((0, 2)))
    torch.testing.assert_close(variance.float(), signal.var((0, 2), correction=0), atol=1e-6, rtol=1e-5)
    norm.load_state_dict({**norm.state_dict(), **unfold_batch_norm(norm, mean, variance)})
    torch.testing.assert_close(norm(signal), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.train()(signal), before, atol=1e-4, rtol=1e-4)


def test_any_batch_norm_keeps_its_output() -> None:
    norm = folded()
    for value in (norm.running_mean, norm.running_var, norm.weight):
        value.data.uniform_(0.5, 2)
    signal = torch.randn(2, 5, 7)
    before = norm(signal)
    norm.load_state_dict({**norm.state_dict(), **unfold_batch_norm(norm, torch.randn(5), torch.rand(5))})
    torch.testing.assert_close(norm(signal), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        ("bias", 3.0, True),
        ("weight", 1.0005, True),  # sqrt(1 + eps)
        ("running_var", 0.999, True),  # 1 - eps
        ("weight", 1.1, False),
        ("running_var", 0.9, False),
        ("running_mean", 0.01, False),
    ],
)
def test_which_batch_norms_were_folded(name: str, value: float, is_one: bool) -> None:
    norm = folded()
    getattr(norm, name).data[2] = value
    assert is_folded(norm) is is_one


def test_other_modules_were_not_folded() -> None:
    assert not is_folded(nn.LayerNorm(3)) and not is_folded(nn.BatchNorm1d(3, track_running_stats=False))
    assert not is_folded(nn.BatchNorm1d(3, affine=False))
