# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Consistency of two views: its slow reference and its invariants."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nemo_tutornet.distill.consistency import consistency_loss, more_time_masks, time_maskers
from nemo_tutornet.functional.consistency import consistency, twice, warmup_factor
from nemo_tutornet.functional.frame_weighting import frame_mask

LENGTHS, FRAMES, LABELS = [6, 1, 0, 4], 6, 5


def views(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * len(LENGTHS), FRAMES, LABELS)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1).to(dtype)


def mask_of(lengths: list[int], frames: int = FRAMES) -> Tensor:
    return frame_mask(torch.tensor(2 * lengths), frames)


def slow(first: list, second: list, length: int) -> float:
    total = 0.0
    for t in range(length):
        for p, q in ((first[t], second[t]), (second[t], first[t])):
            total += 0.5 * sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
    return total


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_it_agrees_with_loops(dtype: torch.dtype, tolerance: float) -> None:
    both = views(dtype=dtype)
    found = consistency(both, mask_of(LENGTHS)).tolist()
    first, second = both.double().chunk(2)
    expected = [slow(first[b].tolist(), second[b].tolist(), n) for b, n in enumerate(LENGTHS)]
    assert found == pytest.approx(expected, rel=tolerance, abs=1e-12)


def test_equal_views_give_zero_and_no_gradient() -> None:
    same = twice(views()[: len(LENGTHS)]).requires_grad_()
    value = consistency(same, mask_of(LENGTHS))
    value.sum().backward()
    assert value.abs().max().item() < 1e-12 and same.grad is not None
    assert same.grad.abs().max().item() < 1e-12


def test_the_order_of_views_and_rows_does_not_count() -> None:
    both, mask = views(), mask_of(LENGTHS)
    first, second = both.chunk(2)
    value = consistency(both, mask)
    torch.testing.assert_close(consistency(torch.cat([second, first]), mask), value)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = torch.cat([first[order], second[order]])
    lengths = [LENGTHS[i] for i in order]
    torch.testing.assert_close(consistency(shuffled, mask_of(lengths)), value[order])


@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf, -math.inf])
def test_padding_changes_nothing(garbage: float) -> None:
    both = views()
    padded = torch.full((len(both), FRAMES + 3, LABELS), garbage, dtype=both.dtype)
    for row, length in enumerate(2 * LENGTHS):
        padded[row, :length] = both[row, :length]
    padded.requires_grad_()
    value = consistency(padded, mask_of(LENGTHS, FRAMES + 3))
    torch.testing.assert_close(value, consistency(both, mask_of(LENGTHS)))
    value.sum().backward()
    assert padded.grad is not None
    assert (padded.grad[~mask_of(LENGTHS, FRAMES + 3)] == 0).all()


def test_each_view_learns_from_the_other_as_a_constant() -> None:
    """The gradient of a view is that of half the KL divergence from the other, which has none."""
    both, mask = views().requires_grad_(), mask_of(LENGTHS)
    consistency(both, mask).sum().backward()
    first, second = (half.clone().requires_grad_() for half in views().chunk(2))
    kl = (second.detach().exp() * (second.detach() - first)).sum(-1)
    (0.5 * (kl * mask[: len(LENGTHS)])).sum().backward()
    assert both.grad is not None and first.grad is not None

    def logits(gradient: Tensor, log_probs: Tensor) -> Tensor:  # of the logits, where scales are fixed
        return gradient - log_probs.exp() * gradient.sum(-1, keepdim=True)

    mine = logits(both.grad[: len(LENGTHS)], views()[: len(LENGTHS)])
    torch.testing.assert_close(mine, logits(first.grad, views()[: len(LENGTHS)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_in_half_precision(dtype: torch.dtype) -> None:
    assert consistency((views() * 30).log_softmax(-1).to(dtype), mask_of(LENGTHS)).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean"])
def test_it_is_reduced_like_ctc_over_utterances(reduction: str) -> None:
    both, lengths = views(), torch.tensor(2 * LENGTHS)
    each = consistency(both, mask_of(LENGTHS))
    labels = torch.tensor([3, 1, 1, 2])
    expected = {
        "mean_batch": each.mean(),
        "mean_volume": each.sum() / labels.sum(),
        "mean": (each / labels).mean(),
    }[reduction]
    torch.testing.assert_close(consistency_loss(both, lengths, twice(labels), reduction), expected)
    nothing = consistency_loss(both, lengths, torch.zeros(8, dtype=torch.long), reduction)
    assert nothing.isfinite() and nothing > 0  # rows without a transcript count, too


def test_the_weight_grows() -> None:
    assert [warmup_factor(step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


def test_time_masks_are_multiplied() -> None:
    assert [more_time_masks(masks, 2.5) for masks in (0, 1, 2, 10)] == [0, 3, 5, 25]
    assert more_time_masks(7, 1.0) == 7
    augmentation = SimpleNamespace(
        spec_augment=SimpleNamespace(time_masks=2), spec_augment_numba=SimpleNamespace(time_masks=3)
    )
    assert [part.time_masks for part in time_maskers(SimpleNamespace(spec_augmentation=augmentation))] == [
        2,
        3,
    ]
    assert time_maskers(SimpleNamespace(spec_augmentation=None)) == []
