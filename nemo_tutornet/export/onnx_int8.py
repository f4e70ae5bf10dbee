# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Static quantization of an ONNX graph to int8, calibrated on utterances of a manifest.

Weights are signed integers with one scale a channel, 8 bits of depthwise convolutions and 7 of dense ones
(`onnx_rounding`). Activations are unsigned 8-bit integers with one scale a tensor. Before that, the channels
of activations are brought closer to each other (`onnx_equalize`).

Legend: `F` mel bins, `T` frames.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.export.onnx_equalize import equalize_channels
from nemo_tutornet.export.onnx_rounding import Rounded, input_moments, round_weights
from nemo_tutornet.export.onnx_run import feed, open_session

_HELD_OUT = 16  # utterances on which the quantized graph is compared with the fp32 graph, at most
# Share of frames by which a layer left in fp32 must raise the agreement.
_GAIN = 0.002


@dataclass(frozen=True)
class Quantized:
    """A statically quantized graph.

    Attributes:
        graph: the graph, an `onnx.ModelProto` with pairs of QuantizeLinear and DequantizeLinear.
        utterances: number of utterances it was calibrated on.
        agreement: share of the frames of held-out utterances whose best label is that of the fp32 graph.
        in_fp32: convolutions that were left in fp32, because that raised the agreement.
    """

    graph: Any
    utterances: int
    agreement: float
    in_fp32: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence for the user of the graph."""
        left = f", {len(self.in_fp32)} convolutions left in fp32" if self.in_fp32 else ""
        return (
            f"static int8, calibrated on {self.utterances} utterances{left}; {100 * self.agreement:.1f} % of "
            "the frames of utterances held out keep the best label of fp32."
        )


def quantize_static(graph: Any, features: Sequence[np.ndarray]) -> Quantized:
    """Quantizes a graph to int8 and leaves layers in fp32 where that keeps more frames' best labels.

    Args:
        graph: the fp32 graph, an `onnx.ModelProto` with the input `audio_signal` (and `length`).
        features: at least two utterances `[1, F, T]`. Every sixth, at most 16, is not calibrated on but
            held out, to measure the agreement.

    Returns:
        The quantized graph and its agreement.
    """
    every = max(2, min(6, len(features)))
    held_out = list(features[::every])[:_HELD_OUT]
    used = [item for i, item in enumerate(features) if i % every] or list(features)
    with tempfile.TemporaryDirectory() as folder, quiet_root_logger():
        equal = equalize_channels(graph, used)
        ranges = _ranges(equal, used, Path(folder))
        rounded = round_weights(equal, input_moments(equal, used))
        session = open_session(graph)
        expected = [_best(session, item) for item in held_out]

        def attempt(in_fp32: tuple[str, ...]) -> Quantized:
            quantized = _quantized(equal, rounded, ranges, in_fp32, Path(folder))
            session = open_session(quantized)
            found = [_best(session, item) for item in held_out]
            same = np.concatenate([a == b for a, b in zip(expected, found, strict=True)])
            return Quantized(quantized, len(used), float(same.mean()), in_fp32)

        best = attempt(())
        for layers in _sensitive(equal):
            tried = attempt((*best.in_fp32, *layers))
            if tried.agreement >= best.agreement + _GAIN:
                best = tried
    return best


def _operators(graph: Any) -> list[str]:
    """Operators to quantize. The products of attention stay in fp32: their ranges vary most."""
    has_attention = any(node.op_type == "Softmax" for node in graph.graph.node)
    return ["Conv"] if has_attention else ["Conv", "Relu", "Add"]


def _ranges(graph: Any, features: Sequence[np.ndarray], folder: Path) -> Any:
    """Measures the range of each activation, by the smallest and largest value."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    path = folder / "fp32.onnx"
    onnx.save(graph, str(path))
    calibrator = create_calibrator(
        path,
        _operators(graph),
        augmented_model_path=str(folder / "measured.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    names = {item.name for item in graph.graph.input}
    calibrator.collect_data(_Reader([feed(names, item) for item in features]))
    return calibrator.compute_data()


class _Reader:
    """An iterator over inputs, as onnxruntime's calibrators want it."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def _quantized(graph: Any, rounded: Rounded, ranges: Any, in_fp32: Sequence[str], folder: Path) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    source = folder / "rounded.onnx"
    onnx.save(rounded.replaced(graph, in_fp32), str(source))
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(source),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=list(in_fp32),
        op_types_to_quantize=_operators(graph),
        extra_options={"TensorQuantOverrides": rounded.scales},
    )
    quantizer.quantize_model()
    result = folder / "int8.onnx"
    quantizer.model.save_model_to_file(str(result))
    return onnx.load(str(result))


def _sensitive(graph: Any) -> list[tuple[str, ...]]:
    """Groups of convolutions that are tried in fp32: the decoder, and the first depthwise and dense ones."""
    names = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    return [(names[-1],), tuple(names[:2])] if len(names) > 4 else []


def _best(session: Any, features: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(["logprobs"], feed(session, features))[0][0].argmax(axis=-1))


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Hides warnings of the root logger: the quantizer recommends a preparation that is done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
