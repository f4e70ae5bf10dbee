# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Un-folds batch norm that was folded into the convolution before it (ours).

Legend: `B` utterances, `D` channels, `T` frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Values of a folded batch norm are neutral up to `eps`, which whoever folded it may have put into any of
# them.
_TOLERANCE = 2e-3


def is_folded(norm: nn.Module) -> bool:
    """Tells whether a module is a batch norm without statistics of its own.

    Args:
        norm: any module.

    Returns:
        True for a batch norm whose running mean is 0, and whose running variance and weight are 1.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    mean, variance, weight = norm.running_mean, norm.running_var, norm.weight
    if mean is None or variance is None or weight is None:
        return False
    return bool(
        mean.eq(0).all()
        and (variance - 1).abs().le(_TOLERANCE).all()
        and (weight - 1).abs().le(_TOLERANCE).all()
    )


class ChannelStatistics:
    """Mean and variance of each channel over any number of batches, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """Adds values `[B, D, T]`."""
        values = values.detach().double().transpose(0, 1).flatten(1)
        self._count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + values.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Returns the mean `[D]` and the variance `[D]`."""
        mean = torch.as_tensor(self._sum) / self._count
        return mean, (torch.as_tensor(self._squares) / self._count - mean.square()).clamp(min=0)


def unfold_batch_norm(
    norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor
) -> dict[str, Tensor]:
    """Computes the parameters of a batch norm that has the given statistics and the same output in eval mode.

    With m, v, w, b, the running mean, the running variance, the weight and the bias,

        w' = w sqrt((v' + eps) / (v + eps))        b' = b + (m' - m) w / sqrt(v + eps)

    Args:
        norm: the batch norm.
        mean: m', mean of its input `[D]`.
        variance: v', variance of its input `[D]`.

    Returns:
        The new `weight`, `bias`, `running_mean` and `running_var`, each `[D]`.
    """
    assert norm.running_mean is not None and norm.running_var is not None, "is_folded() accepted this one"
    old_mean, old_variance, weight, bias = (
        value.detach().double() for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    mean, variance = mean.to(weight), variance.to(weight)
    gain = weight / (old_variance + norm.eps).sqrt()
    new = {
        "weight": gain * (variance + norm.eps).sqrt(),
        "bias": bias + (mean - old_mean) * gain,
        "running_mean": mean,
        "running_var": variance,
    }
    return {name: value.to(norm.weight.dtype) for name, value in new.items()}
