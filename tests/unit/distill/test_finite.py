# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The search for values that are not finite: one norm where all is well, and the first name where not."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_tutornet.distill.finite import first_nonfinite
from tests.operators import Operators

NAMED = {
    "single": torch.ones(3, 4),
    "double": torch.ones(5, dtype=torch.float64),
    "half": torch.full((2, 2), 3e4, dtype=torch.float16),  # the norm is above the largest value of its type
    "brain": torch.ones(7, dtype=torch.bfloat16),
    "large": torch.full((9,), 1e30),  # so is this one
    "count": torch.tensor(3),
    "empty": torch.zeros(0),
    "none": None,
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["single", "double", "half", "brain", "large"])
def test_the_first_value_that_is_not_finite_is_named(name: str, value: float) -> None:
    named = {key: tensor if tensor is None else tensor.clone() for key, tensor in NAMED.items()}
    assert first_nonfinite(named.items()) is None
    named[name].view(-1)[-1] = value
    assert first_nonfinite(named.items()) == name


def test_nothing_is_finite() -> None:
    assert first_nonfinite([]) is None and first_nonfinite([("count", torch.tensor(3))]) is None


def test_many_tensors_share_an_operator() -> None:
    """On a GPU each operator is a kernel, and there are hundreds of gradients in each step."""
    with Operators() as ran:
        first_nonfinite([(str(i), torch.ones(2)) for i in range(50)])
    assert ran.counts["_foreach_norm.Scalar"] == 1 and ran.counts["sum.default"] == 0
