# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training depthwise convolutions on a CPU, as products of spectra (the convolution theorem; nothing of the
paper).

QuartzNets have depthwise convolutions with kernels of 33 to 87 frames in every block, and PyTorch is slow at
those on a CPU: they are three quarters of a training step of a QuartzNet 5x5. Through the Fourier transform
    they cost about a fifth of that.

Legend: `B` utterances, `D` width, `T` frames, `K` kernel frames.
"""

from __future__ import annotations

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

# Shorter kernels gain nothing (`benchmarks/depthwise.py`).
SHORTEST_KERNEL = 11


def depthwise_conv1d(
    signal: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv1d` with a group for every channel, by the convolution theorem; equal up to
    rounding.

    Args:
        signal: `[B, D, T]`, float32 or float64.
        weight: `[D, 1, K]`.
        bias: `[D]`.
        stride: of the kernel, in frames.
        padding: zeros on either side, in frames.
        dilation: distance of the kernel's frames.

    Returns:
        `[B, D, (T + 2 padding - dilation (K - 1) - 1) // stride + 1]`

    Raises:
        ValueError: the kernel is longer than the padded signal.
    """
    kernel = weight[:, 0]
    if dilation > 1:
        kernel = F.pad(kernel.unsqueeze(2), (0, dilation - 1)).flatten(1)[:, : 1 - dilation]
    padded = signal.shape[2] + 2 * padding
    if kernel.shape[1] > padded:
        raise ValueError(f"A kernel of {kernel.shape[1]} frames does not fit into {padded}.")
    # As long as the padded signal: the products that wrap around its end belong to no frame that is kept.
    length = next_fast_len(padded, real=True)
    spectrum = (
        torch.fft.rfft(F.pad(signal, (padding, padding)), length) * torch.fft.rfft(kernel, length).conj()
    )
    output = torch.fft.irfft(spectrum, length)[..., : padded - kernel.shape[1] + 1 : stride]
    return output if bias is None else output + bias[:, None]


class FourierConv1d(nn.Conv1d):
    """A depthwise `torch.nn.Conv1d` that is trained on a CPU through the Fourier transform, and is PyTorch's
    anywhere else.

    Validation, transcription and exports see PyTorch's convolution, as in the stock model.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if (
            not self.training
            or input.device.type != "cpu"
            or input.dtype != torch.float32
            or input.dim() != 3
        ):
            return super()._conv_forward(input, weight, bias)
        return depthwise_conv1d(input, weight, bias, self.stride[0], int(self.padding[0]), self.dilation[0])


def fourier_depthwise(model: nn.Module) -> int:
    """Makes training of a model's depthwise convolutions fast on a CPU, in place; parameters and their names
    stay as they are.

    Args:
        model: any; only plain `torch.nn.Conv1d` with a group for every channel, a long kernel and zeros as
            padding are touched.

    Returns:
        How many there are.
    """
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Conv1d
        and module.groups == module.in_channels == module.out_channels
        and module.kernel_size[0] >= SHORTEST_KERNEL
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ]
    for module in found:
        # Its class alone changes: hooks, references to the module and `isinstance(module, nn.Conv1d)` hold.
        module.__class__ = FourierConv1d
    return len(found)
