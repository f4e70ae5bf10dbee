# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime sessions of graphs in memory, and what they are fed.

Legend: `F` mel bins, `T` frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def open_session(graph: Any) -> Any:
    """Opens a graph on the CPU, with as many threads as torch has.

    Args:
        graph: an `onnx.ModelProto`.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised anyway
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feed(names: set[str] | Any, features: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of a graph for one utterance, `length` where it has one.

    Args:
        names: the names of the graph's inputs, or a session of it.
        features: `[1, F, T]`, valid frames only.
    """
    if not isinstance(names, set):
        names = {item.name for item in names.get_inputs()}
    given: dict[str, np.ndarray] = {
        "audio_signal": np.ascontiguousarray(features, dtype=np.float32),
        "length": np.array([features.shape[2]], np.int64),
    }
    return {name: value for name, value in given.items() if name in names}
