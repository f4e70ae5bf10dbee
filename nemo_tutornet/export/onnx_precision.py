# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""An fp32 ONNX graph in another precision: fp16, or 8-bit integers."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_tutornet.export.onnx_int8 import quantize_static, quiet_root_logger

# Operators with integer kernels on the CPU for dynamic quantization.
_QUANTIZED = ("Conv", "MatMul")
_DYNAMIC = (
    "dynamic int8, which is smaller but no faster than fp32; give --calibrate MANIFEST for static int8."
)


class Converted(NamedTuple):
    """A graph in another precision.

    Attributes:
        graph: an `onnx.ModelProto`. Inputs and outputs are fp32.
        note: a sentence for its user; None if there is nothing to note.
        entries: of its metadata.
    """

    graph: Any
    note: str | None
    entries: dict[str, str]


def in_precision(plain: Any, precision: str, features: Sequence[np.ndarray] | None) -> Converted:
    """Converts a copy of an fp32 graph.

    Args:
        plain: the graph, an `onnx.ModelProto`.
        precision: one of `PRECISIONS`.
        features: what `calibration_features` returned: `int8` is then static quantization. None makes it
            dynamic quantization.
    """
    import onnx

    if precision == "int8" and features is not None:
        static = quantize_static(plain, features)
        return Converted(static.graph, static.note, {"quantization": "static"})
    copy = onnx.ModelProto()
    copy.CopyFrom(plain)
    if precision == "int8":
        return Converted(_dynamic_int8(copy), _DYNAMIC, {"quantization": "dynamic"})
    return Converted(_fp16(copy) if precision == "fp16" else copy, None, {})


def _fp16(graph: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each weight below fp16's smallest number
        converted = convert_float_to_float16(graph, keep_io_types=True)
    # The conversion appends the casts of the inputs at the end, but ONNX requires each node to follow the
    # nodes whose outputs it reads.
    OnnxModel(converted).topological_sort()
    return converted


def _dynamic_int8(graph: Any) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet_root_logger():
        path = Path(folder) / "int8.onnx"
        # Signed weights would run five times slower, because ONNX Runtime has a fast integer convolution for
        # unsigned weights only.
        quantize_dynamic(graph, path, op_types_to_quantize=list(_QUANTIZED), weight_type=QuantType.QUInt8)
        return onnx.load(str(path))
