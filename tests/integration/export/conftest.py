# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A student in the middle of its training, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel, export_student
from tests.conftest import student_config


@pytest.fixture(scope="module")
def model(corpus: Path) -> Any:
    """A student in the middle of a training: train mode, gradients, a frozen layer."""
    torch.manual_seed(0)
    model = TutorCTCModel(OmegaConf.create({"model": student_config(corpus, corpus / "teacher.nemo")}).model)
    model.train()
    signals = torch.randn(2, 16000)
    model(input_signal=signals, input_signal_length=torch.tensor([16000, 12000]))[0].sum().backward()
    next(model.encoder.parameters()).requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student.nemo` and `student.onnx`."""
    folder = tmp_path_factory.mktemp("exported")
    return export_student(model, folder / "student.nemo", onnx=folder / "student.onnx").path
