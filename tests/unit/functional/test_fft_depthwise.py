# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions through the Fourier transform are PyTorch's, and no recorded graph has any."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nemo_tutornet.functional import fft_depthwise as depthwise
from nemo_tutornet.functional.fft_depthwise import (
    FourierConv1d,
    depthwise_conv1d,
    fourier_depthwise,
    with_fourier_depthwise,
)
from tests.properties import examples

QUICK = examples(150)


def gradients(output: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    weights = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).sin()
    return list(
        torch.autograd.grad((output * weights).sum(), [given for given in inputs if given is not None])
    )


@QUICK
@given(
    batch=st.integers(1, 3),
    width=st.integers(1, 4),
    frames=st.integers(1, 60),
    kernel=st.integers(1, 40),
    stride=st.integers(1, 4),
    padding=st.integers(0, 45),
    dilation=st.integers(1, 4),
    biased=st.booleans(),
)
def test_equals_pytorch(
    batch: int, width: int, frames: int, kernel: int, stride: int, padding: int, dilation: int, biased: bool
) -> None:
    random = torch.Generator().manual_seed(frames)
    signal = torch.randn(batch, width, frames, dtype=torch.float64, generator=random, requires_grad=True)
    weight = torch.randn(width, 1, kernel, dtype=torch.float64, generator=random, requires_grad=True)
    bias = torch.randn(width, dtype=torch.float64, generator=random, requires_grad=True) if biased else None
    given = signal, weight, bias, stride, padding, dilation
    if dilation * (kernel - 1) + 1 > frames + 2 * padding:
        with pytest.raises(
            ValueError, match=f"{dilation * (kernel - 1) + 1} frames does not fit into {frames + 2 * padding}"
        ):
            depthwise_conv1d(*given)
        return
    mine, theirs = depthwise_conv1d(*given), nn.functional.conv1d(*given, groups=width)
    torch.testing.assert_close(mine, theirs)
    for one, other in zip(gradients(mine, *given[:3]), gradients(theirs, *given[:3]), strict=True):
        torch.testing.assert_close(one, other)


def depthwise_layer(**different: Any) -> nn.Conv1d:
    return nn.Conv1d(
        **{"in_channels": 6, "out_channels": 6, "groups": 6, "kernel_size": 33, "padding": 16, **different}
    )


@pytest.fixture
def model() -> nn.Sequential:
    """Two that are meant, and one of each kind that is not."""
    torch.manual_seed(0)
    return nn.Sequential(
        depthwise_layer(),
        depthwise_layer(stride=2, dilation=2, bias=False),
        depthwise_layer(kernel_size=depthwise.SHORTEST_KERNEL - 2, padding=0),
        depthwise_layer(groups=3),
        depthwise_layer(groups=1),
        depthwise_layer(out_channels=12),
        nn.Conv1d(12, 6, 1),
        depthwise_layer(padding="same"),
        depthwise_layer(padding_mode="circular"),
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What went through the Fourier transform."""
    found: list[tuple] = []
    monkeypatch.setattr(
        depthwise, "depthwise_conv1d", lambda *given: found.append(given) or depthwise_conv1d(*given)
    )
    return found


def test_touches_what_it_should(model: nn.Sequential) -> None:
    before = dict(model.named_parameters())
    assert fourier_depthwise(model) == 2
    assert [i for i, layer in enumerate(model) if type(layer) is FourierConv1d] == [0, 1]
    assert all(isinstance(layer, nn.Conv1d) for layer in model)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert fourier_depthwise(model) == 0, "what is fast already is not counted again"


def test_trains_and_validates_as_pytorch(model: nn.Sequential, calls: list[tuple]) -> None:
    plain, signal = copy.deepcopy(model), torch.randn(2, 6, 300)
    fourier_depthwise(model)

    mine, theirs = model(signal), plain(signal)
    assert len(calls) == 2
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    pairs = zip(gradients(mine, *model.parameters()), gradients(theirs, *plain.parameters()), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    model.eval()
    plain.eval()
    torch.testing.assert_close(model(signal), plain(signal), rtol=1e-4, atol=1e-5)
    assert len(calls) == 4
    model.double().train()
    assert torch.equal(model(signal.double()), plain.double()(signal.double())) and len(calls) == 4


def test_recorded_graphs_are_pytorchs(model: nn.Sequential, calls: list[tuple]) -> None:
    """A student that is exported from memory has PyTorch's convolutions."""
    fourier_depthwise(model.eval())
    signal = torch.randn(2, 6, 300)
    traced = torch.jit.trace(model, signal, check_trace=False)
    assert "aten::fft" not in str(traced.inlined_graph) and not calls
    exported = torch.export.export(model, (signal,))
    assert "fft" not in str(exported.graph) and not calls


def test_single_signals_stay_pytorchs(calls: list[tuple]) -> None:
    layer = depthwise_layer()
    fourier_depthwise(layer)
    signal = torch.randn(2, 6, 50)
    assert layer(signal[0]).shape == (6, 50) and not calls
    assert layer(signal).dtype == torch.float32 and len(calls) == 1


@pytest.mark.parametrize("mixed", [True, False], ids=["bf16-mixed", "bf16-true"])
def test_bfloat16_is_rounded_once(mixed: bool, calls: list[tuple]) -> None:
    """Only the signal and the output are rounded; in mixed precision the weights stay float32."""
    layer = depthwise_layer()
    fourier_depthwise(layer)
    if not mixed:
        layer.bfloat16()
    signal = torch.randn(2, 6, 300).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        output = layer(signal)
    assert output.dtype == torch.bfloat16 and len(calls) == 1
    exact = nn.functional.conv1d(
        signal.double(), layer.weight.double(), layer.bias.double(), padding=16, groups=6
    )
    torch.testing.assert_close(output.double(), exact, rtol=2**-8, atol=1e-5)
    output.float().sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype and layer.weight.grad.abs().sum() > 0


def test_frozen_parts_get_no_gradient() -> None:
    signal, weight = torch.randn(2, 3, 40), torch.randn(3, 1, 11)
    for trained in (signal, weight):
        trained.requires_grad_()
        depthwise_conv1d(signal, weight, padding=5).sum().backward()
        assert trained.grad is not None
        trained.grad = None
        trained.requires_grad_(False)
    assert signal.grad is None and weight.grad is None


def test_inside_the_context_only(model: nn.Sequential, calls: list[tuple]) -> None:
    """What was replaced before stays so."""
    fourier_depthwise(model[0])
    before = [type(module) for module in model.modules()]
    signal = torch.randn(2, 6, 300)
    with pytest.raises(KeyError), with_fourier_depthwise(model.eval()):
        model(signal)
        inside = len(calls)
        raise KeyError
    assert inside > 1
    assert [type(module) for module in model.modules()] == before
