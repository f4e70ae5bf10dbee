# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Linear regression over data that comes in parts.

Legend: `N` samples, `K` inputs, `D` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LeastSquares:
    """Finds the linear map from inputs to outputs with the smallest squared error and a small ridge penalty.

    Only sums of products are kept, in float64, so memory does not grow with the data.

    Example:
        >>> inputs = torch.randn(100, 3)
        >>> fit = LeastSquares()
        >>> for part in inputs.split(20):
        ...     fit.add(part, 2 * part[:, :1] - part[:, 1:2] + 0.5)
        >>> weight, bias = fit.solve()
        >>> torch.allclose(weight, torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64), atol=1e-3)
        True
        >>> round(float(bias), 2)
        0.5
    """

    def __init__(self) -> None:
        self._squares: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Adds samples.

        Args:
            inputs: `[N, K]`.
            outputs: `[N, D]`.
        """
        inputs = torch.cat([inputs.double(), inputs.new_ones(len(inputs), 1, dtype=torch.float64)], dim=1)
        self._squares = self._squares + inputs.T @ inputs
        self._products = self._products + inputs.T @ outputs.double()

    def solve(self, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
        """Minimises `sum |outputs - weight inputs - bias|² + penalty |weight, bias|²`.

        Args:
            ridge: the penalty, in units of the mean square of an input, summed over the samples.

        Returns:
            The weight `[D, K]` and the bias `[D]`, in float64.
        """
        squares, products = torch.as_tensor(self._squares), torch.as_tensor(self._products)
        penalty = ridge * squares.diagonal().mean()
        penalised = squares + penalty * torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
        solution = torch.linalg.solve(penalised, products).T
        return solution[:, :-1], solution[:, -1]
