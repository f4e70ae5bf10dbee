# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Faster training of depthwise convolutions on a CPU, by the convolution theorem (ours, not the paper's).

Every block of a QuartzNet has depthwise convolutions with kernels of 33 to 87 frames. PyTorch computes them
slowly on a CPU: they take three quarters of a training step of a QuartzNet 5x5. Through the Fourier transform
they take a fifth of that time (33 frames) to a tenth (87 frames; `benchmarks/depthwise.py`).

Legend: `B` utterances, `D` width, `T` frames, `K` kernel frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

# In frames; shorter kernels are not faster through the Fourier transform (`benchmarks/depthwise.py`).
SHORTEST_KERNEL = 11


def depthwise_conv1d(
    signal: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Computes a depthwise convolution through the Fourier transform.

    The result equals `torch.nn.functional.conv1d` with one group for each channel, up to rounding.

    Args:
        signal: `[B, D, T]`, float32 or float64.
        weight: `[D, 1, K]`.
        bias: `[D]`, or None.
        stride: step of the kernel, in frames.
        padding: zeros added on both sides, in frames.
        dilation: distance between neighbouring frames of the kernel, in frames.

    Returns:
        `[B, D, (T + 2 padding - dilation (K - 1) - 1) // stride + 1]`.

    Raises:
        ValueError: the dilated kernel is longer than the padded signal.

    Example:
        >>> signal, weight = torch.randn(2, 3, 50), torch.randn(3, 1, 11)
        >>> output = depthwise_conv1d(signal, weight, padding=5)
        >>> torch.allclose(output, F.conv1d(signal, weight, padding=5, groups=3), atol=1e-4)
        True
    """
    kernel = weight[:, 0]
    if dilation > 1:
        kernel = F.pad(kernel.unsqueeze(2), (0, dilation - 1)).flatten(1)[:, : 1 - dilation]
    padded = signal.shape[2] + 2 * padding
    if kernel.shape[1] > padded:
        raise ValueError(f"A kernel of {kernel.shape[1]} frames does not fit into {padded}.")
    output = _Correlation.apply(signal, kernel, padding)[..., ::stride]
    return output if bias is None else output + bias[:, None]


class _Correlation(torch.autograd.Function):
    """Correlates each channel with a kernel, by multiplying spectra.

    PyTorch's own gradient of a real Fourier transform is a complex one, twice as long. This one takes real
    transforms only, and adds the kernels' spectra over the batch before it transforms them back.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, kernel: Tensor, padding: int) -> Tensor:
        """`[B, D, T]` and `[D, K]` give `[B, D, T + 2 padding - K + 1]`."""
        frames, taps = signal.shape[2], kernel.shape[1]
        outputs = frames + 2 * padding - taps + 1
        # Circular, so `padding` zeros behind the signal are those before it, too.
        length = next_fast_len(max(frames + padding, taps, outputs), real=True)
        placed = F.pad(kernel, (0, length - taps)).roll(-padding, 1)
        spectrum = torch.fft.rfft(signal, length)
        reverse = torch.fft.rfft(placed).conj().resolve_conj()
        ctx.save_for_backward(spectrum, reverse)
        ctx.sizes = frames, taps, padding, length
        return torch.fft.irfft(spectrum * reverse, length)[..., :outputs]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The adjoint of `forward`."""
        spectrum, reverse = ctx.saved_tensors
        frames, taps, padding, length = ctx.sizes
        arrived = torch.fft.rfft(gradient, length)
        of_signal = of_kernel = None
        if ctx.needs_input_grad[1]:
            total = torch.zeros_like(reverse)
            for one, other in zip(spectrum, arrived, strict=True):
                total.addcmul_(one, other.conj())
            of_kernel = torch.fft.irfft(total, length).roll(padding, 1)[:, :taps]
        if ctx.needs_input_grad[0]:
            of_signal = torch.fft.irfft(arrived.mul_(reverse.conj()), length)[..., :frames]
        return of_signal, of_kernel, None


class FourierConv1d(nn.Conv1d):
    """A depthwise `torch.nn.Conv1d` that uses the Fourier transform on a CPU, in float32 and in bfloat16. The
    transforms are float32.

    On a GPU, in other dtypes and while a graph is recorded (tracing, ONNX, `torch.compile`) it computes
    PyTorch's own convolution, so exports are those of the stock model.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if (
            input.device.type != "cpu"
            or input.dtype not in (torch.float32, torch.bfloat16)
            or input.dim() != 3
            or torch.jit.is_tracing()
            or torch.compiler.is_compiling()
        ):
            return super()._conv_forward(input, weight, bias)
        bias = None if bias is None else bias.float()
        sizes = self.stride[0], int(self.padding[0]), self.dilation[0]
        return depthwise_conv1d(input.float(), weight.float(), bias, *sizes).to(input.dtype)


def fourier_depthwise(model: nn.Module) -> int:
    """Replaces the class of a model's depthwise convolutions by `FourierConv1d`, in place.

    Parameters and their names do not change.

    Args:
        model: any module. Only exact `torch.nn.Conv1d` with one group for each channel, a kernel of at least
            `SHORTEST_KERNEL` frames, and a number of zeros as padding are replaced.

    Returns:
        Number of replaced convolutions.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(8, 8, 33, padding=16, groups=8), nn.Conv1d(8, 16, 1))
        >>> fourier_depthwise(model)
        1
    """
    convolutions = _long_depthwise(model)
    for module in convolutions:
        # Only the class changes, so hooks, references to the module and `isinstance(module, nn.Conv1d)` stay
        # valid.
        module.__class__ = FourierConv1d
    return len(convolutions)


@contextmanager
def with_fourier_depthwise(model: nn.Module) -> Iterator[None]:
    """Computes a model's depthwise convolutions as `fourier_depthwise` does, inside the context only.

    Args:
        model: see `fourier_depthwise`.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(8, 8, 33, padding=16, groups=8))
        >>> with with_fourier_depthwise(model):
        ...     type(model[0]).__name__
        'FourierConv1d'
        >>> type(model[0]).__name__
        'Conv1d'
    """
    convolutions = _long_depthwise(model)
    fourier_depthwise(model)
    try:
        yield
    finally:
        for module in convolutions:
            module.__class__ = nn.Conv1d


def _long_depthwise(model: nn.Module) -> list[nn.Conv1d]:
    return [
        module
        for module in model.modules()
        if type(module) is nn.Conv1d
        and module.groups == module.in_channels == module.out_channels
        and module.kernel_size[0] >= SHORTEST_KERNEL
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ]
