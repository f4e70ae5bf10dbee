# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's InterCTC beside the losses of a stage, without a model."""

from __future__ import annotations

from typing import Any

import torch

from nemo_tutornet import TutorCTCModel


def test_without_interctc_the_loss_of_a_stage_stays_the_same_tensor() -> None:
    model: Any = object.__new__(TutorCTCModel)
    model._interctc_params, model._losses = {"enabled": False}, lambda **_: {}
    loss = torch.tensor(3.0)
    found, log = model.add_interctc_losses(loss, None, None, compute_wer=False)
    assert found is loss and log == {}
