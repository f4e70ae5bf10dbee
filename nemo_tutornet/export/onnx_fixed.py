# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of one fixed length, for clients and converters that allow no dynamic axes.

Legend: `F` mel bins, `T` frames of the front end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.export.onnx_metadata import samples_of

SECONDS = (0.1, 600.0)  # shortest and longest fixed length
# Operators of the ONNX standard that onnx2tf writes as LiteRT's built-in operators, and that a mobile
# accelerator usually has. Without control flow, without shapes that depend on data.
MOBILE_OPERATORS = frozenset(
    (
        *("Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div"),
        *("Exp", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "HardSigmoid", "Identity"),
        *("LogSoftmax", "MatMul", "MaxPool", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "ReduceMax"),
        *("ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt"),
        *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    )
)


def frames_of(front_end: Mapping[str, Any], seconds: float) -> int:
    """Computes the frames of the front end in a fixed length.

    Args:
        front_end: the parameters of the front end.
        seconds: the length.

    Returns:
        Number of frames.

    Raises:
        TutorError: the length is outside `SECONDS`.
    """
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise TutorError(
            f"a graph of {seconds:g} s cannot be written; give --fixed-seconds a number from {SECONDS[0]:g} "
            f"to {SECONDS[1]:g}."
        )
    return int(round(seconds * front_end["sample_rate"]) // samples_of(front_end, "stride"))


def with_fixed_shapes(graph: Any, frames: int) -> Any:
    """Copies an ONNX model and fixes its input at one utterance of a given number of frames.

    The input `length`, where the graph has one, becomes a constant. What only depends on shapes is computed
    now.

    Args:
        graph: an `onnx.ModelProto` with the input `audio_signal` `[B, F, T]`.
        frames: frames of the front end.

    Returns:
        The copy. Its only input is `audio_signal` `[1, F, frames]`, and no shape in it is dynamic.

    Raises:
        TutorError: the graph cannot have this length.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    for item in list(proto.graph.input):
        if item.name == "length":
            proto.graph.input.remove(item)
            proto.graph.initializer.append(numpy_helper.from_array(np.array([frames], np.int64), "length"))
        else:
            sizes = item.type.tensor_type.shape.dim
            sizes[0].dim_value, sizes[2].dim_value = 1, frames
    for item in proto.graph.output:
        item.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    options = SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    # This level folds constants and writes standard operators only.
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "folded.onnx")
        options.optimized_model_filepath = path
        try:
            session = InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            bins = session.get_inputs()[0].shape[1]
            found = session.run(["logprobs"], {"audio_signal": np.zeros((1, bins, frames), np.float32)})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class
            raise TutorError(
                f"the model cannot run on {frames} frames ({first_line(error)}); give another "
                "--fixed-seconds."
            ) from None
        folded = onnx.load(path)
    sizes = folded.graph.output[0].type.tensor_type.shape
    sizes.ClearField("dim")
    for size in found.shape:
        sizes.dim.add().dim_value = size
    # ONNX Runtime lists the domains of its own operators, whether the graph has them or not.
    domains = {node.domain for node in folded.graph.node}
    kept = [item for item in folded.opset_import if item.domain in ("", "ai.onnx", *domains)]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def mobile_note(graph: Any) -> str | None:
    """Lists the operators of a graph that converters for phones may refuse.

    Args:
        graph: an `onnx.ModelProto`.

    Returns:
        One sentence; None where every operator is of `MOBILE_OPERATORS`.
    """
    others = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
            for node in graph.graph.node
            if node.domain not in ("", "ai.onnx") or node.op_type not in MOBILE_OPERATORS
        }
    )
    if not others:
        return None
    return f"converters for phones may refuse {', '.join(others)}."
