# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts a convolutional student to LiteRT (`.tflite`) or Core ML (`.mlpackage`), and compares the results.

    python convert.py student.nemo student.tflite --seconds 10
    python convert.py student.nemo student.mlpackage --seconds 10

It needs NeMo, and litert-torch 0.10 for LiteRT or coremltools 9.0 for Core ML. Core ML predicts on macOS
only; elsewhere the file is written and nothing is compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.models import ASRModel
from torch import Tensor, nn


class Network(nn.Module):
    """A student without front end and masks: features `[1, F, T]` to log-probabilities `[1, T', V + 1]`."""

    def __init__(self, model: ASRModel) -> None:
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        for module in self.encoder.modules():
            if hasattr(module, "use_mask"):
                module.use_mask = False  # all frames of a fixed length are computed

    def forward(self, features: Tensor) -> Tensor:
        length = torch.tensor([features.shape[2]])
        encoded, _ = self.encoder(audio_signal=features, length=length)
        return self.decoder(encoder_output=encoded)


def main() -> None:
    """Reads the arguments, converts, and prints the largest difference from PyTorch."""
    parser = argparse.ArgumentParser(description="Converts a student for phones.")
    parser.add_argument("student", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    model = ASRModel.restore_from(str(arguments.student), map_location="cpu").eval()
    rate, hop = model.preprocessor._cfg["sample_rate"], model.preprocessor.hop_length
    frames = int(round(arguments.seconds * rate) // hop)
    network = Network(model).eval()
    features = torch.randn(1, model.preprocessor._cfg["features"], frames)
    with torch.no_grad():
        expected = network(features).numpy()
    if arguments.destination.suffix == ".tflite":
        found = to_litert(network, features, arguments.destination)
    else:
        found = to_core_ml(network, features, arguments.destination)
    print(f"{arguments.destination}: {frames} frames")
    if found is not None:
        print(f"largest difference from PyTorch {np.abs(found - expected).max():.1e}")


def to_litert(network: nn.Module, features: Tensor, destination: Path) -> np.ndarray:
    """Writes a `.tflite` file and returns what LiteRT's interpreter computes with it."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    litert_torch.convert(network, (features,)).export(str(destination))
    interpreter = Interpreter(model_path=str(destination))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], features.numpy())
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def to_core_ml(network: nn.Module, features: Tensor, destination: Path) -> np.ndarray | None:
    """Writes an `.mlpackage`, and returns what Core ML computes with it on macOS."""
    import sys

    import coremltools

    with torch.no_grad():
        traced = torch.jit.trace(network, features)
    package = coremltools.convert(
        traced,
        inputs=[coremltools.TensorType(name="audio_signal", shape=tuple(features.shape))],
        outputs=[coremltools.TensorType(name="logprobs")],
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=coremltools.precision.FLOAT32,
    )
    package.save(str(destination))
    if sys.platform != "darwin":
        return None
    return package.predict({"audio_signal": features.numpy()})["logprobs"]


if __name__ == "__main__":
    main()
