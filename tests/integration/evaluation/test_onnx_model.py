# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The example without NeMo says of the shortest audio what the package says of it."""

from __future__ import annotations

import numpy as np
import torch

from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_export import write_onnx
from tests.integration.export.test_onnx_export import run_example
from tests.integration.students import build


def test_the_example_takes_audio_of_no_frame_and_of_one(tmp_path, monkeypatch):
    import soundfile

    write_onnx(build("quartznet", tmp_path), tmp_path / "student.onnx")
    audio = [
        np.random.default_rng(n).standard_normal(n).astype(np.float32) / 10
        for n in (0, 1, 159, 160, 319, 320, 500)
    ]
    files = [tmp_path / f"{len(samples)}.wav" for samples in audio]
    for path, samples in zip(files, audio, strict=True):
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    expected = OnnxCTCModel(tmp_path / "student.onnx").transcribe(audio)
    # NeMo's front end refuses a single frame on a machine with a GPU, even on the CPU.
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert OnnxCTCModel(tmp_path / "student.onnx").transcribe(audio) == expected
    assert expected[:3] == [""] * 3 and all(text.strip() for text in expected[3:])
    assert run_example("transcribe_onnxruntime.py", tmp_path / "student.onnx", *files) == expected
