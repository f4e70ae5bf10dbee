# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A small adapter for unit tests."""

from __future__ import annotations

import torch

from nemo_tutornet.teachers.adapter import AdapterInfo
from nemo_tutornet.teachers.adapter_head import AdapterHead

INFO = AdapterInfo(
    labels=("a", "b", " "),
    frame_ms=20.0,
    upsampling=4,
    teacher_width=6,
    width=5,
    teacher_outputs=3,
    teacher_sha256="0" * 64,
    teacher_class="EncDecCTCModelBPE",
    wer=0.25,
    teacher_wer=0.2,
    utterances=10,
    kernel=5,
    second_kernel=3,
)


def head_of(info: AdapterInfo = INFO, seed: int = 0, dropout: float = 0.0) -> AdapterHead:
    torch.manual_seed(seed)
    sizes = info.teacher_width, info.width, info.upsampling, len(info.labels) + 1, info.teacher_outputs
    return AdapterHead(*sizes, dropout, info.kernel, info.second_kernel).eval()
