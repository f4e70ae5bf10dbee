# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Linear regression in parts is numpy's of the whole."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.functional.least_squares import LeastSquares
from tests.properties import examples


@examples(50)
@given(
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 4),
    parts=st.integers(1, 4),
    ridge=st.sampled_from([0.0, 0.1]),
)
def test_equals_numpys(inputs: int, outputs: int, parts: int, ridge: float) -> None:
    random = np.random.default_rng(inputs + 10 * outputs)
    x, y = random.standard_normal((40, inputs)), random.standard_normal((40, outputs))
    fit = LeastSquares()
    for index in np.array_split(np.arange(40), parts):
        fit.add(torch.from_numpy(x[index]), torch.from_numpy(y[index]))
    weight, bias = fit.solve(ridge)
    # The penalty as further samples: one for each input, whose output is zero.
    design = np.hstack([x, np.ones((40, 1))])
    penalty = np.sqrt(ridge * np.mean(np.sum(design**2, axis=0))) * np.eye(inputs + 1)
    wanted, *_ = np.linalg.lstsq(
        np.vstack([design, penalty]), np.vstack([y, np.zeros((inputs + 1, outputs))]), rcond=None
    )
    np.testing.assert_allclose(np.vstack([weight.T.numpy(), bias.numpy()]), wanted, atol=1e-9)


def test_a_constant_input_is_no_problem() -> None:
    fit = LeastSquares()
    fit.add(torch.ones(10, 2), torch.full((10, 1), 3.0))
    weight, bias = fit.solve()
    torch.testing.assert_close(
        weight.sum() + bias.sum(), torch.tensor(3.0, dtype=torch.float64), atol=1e-4, rtol=0
    )
