# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Channels of an ONNX graph's activations, brought closer to each other before static int8.

A channel is divided by a power of two in front of a ReLU, and the weights that read it are multiplied by the
same number. That changes no result: powers of two are exact, and a ReLU passes a positive factor on. It
follows Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019
(https://arxiv.org/abs/1906.04721), with the ranges of the activations in it, as Xiao et al., SmoothQuant,
2023 (https://arxiv.org/abs/2211.10438).

Legend: `F` mel bins, `T` frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_tutornet.export.onnx_run import feed, open_session

# Exponents of a channel's range and of the largest weight that reads it, chosen on AN4.
_RANGE, _WEIGHT = 0.3, 0.3


def equalize_channels(graph: Any, features: Sequence[np.ndarray]) -> Any:
    """Copies a graph and brings the ranges of the channels of its activations closer to each other.

    It changes activations that convolutions write through a ReLU, with an addition in between or without, and
    that only convolutions read. The results are the same to the bit, but for sums that leave the range of
    fp32.

    Args:
        graph: an `onnx.ModelProto` in fp32.
        features: utterances `[1, F, T]` to measure the ranges on.

    Returns:
        The copy.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    places = _places(proto.graph)
    largest = _largest_of_channels(proto, [name for name, _, _ in places], features)
    weights = {item.name: item for item in proto.graph.initializer}

    def scale(name: str, factors: np.ndarray, axis: int) -> None:
        values = numpy_helper.to_array(weights[name])
        shape = [1] * values.ndim
        shape[axis] = -1
        scaled = np.ascontiguousarray(values * factors.reshape(shape).astype(values.dtype))
        weights[name].CopyFrom(numpy_helper.from_array(scaled, name))

    for name, writers, readers in places:
        peaks = largest[name]
        dense = [node for node in readers if _groups(node) == 1]
        if not dense:
            continue  # a depthwise convolution has a scale for each channel anyway
        reach = np.max([_reach(numpy_helper.to_array(weights[node.input[1]])) for node in dense], axis=0)
        alive = peaks > 1e-4 * peaks.max()
        if not alive.any():
            continue
        factors = np.where(alive, peaks, 1.0) ** _RANGE / np.maximum(reach, 1e-2) ** _WEIGHT
        typical = np.exp(np.log(factors[alive]).mean())
        factors = np.where(alive, 2.0 ** np.round(np.log2(factors / typical)), 1.0)
        for node in writers:
            for item in node.input[1:]:
                scale(item, 1 / factors, axis=0)
        for node in readers:
            scale(node.input[1], factors, axis=1 if _groups(node) == 1 else 0)
    return proto


def _places(graph: Any) -> list[tuple[str, list[Any], list[Any]]]:
    """Finds activations whose channels can be scaled: name, convolutions that write it, and that read it."""
    writer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    initializers = {item.name for item in graph.initializer}
    outputs = {item.name for item in graph.output}

    def sole(name: str, kind: str) -> Any:
        node = writer.get(name)
        fits = node is not None and node.op_type == kind and len(readers[name]) == 1 and name not in outputs
        return node if fits else None

    def own_weights(node: Any) -> bool:
        return all(name in initializers and len(readers[name]) == 1 for name in node.input[1:])

    found = []
    for name, node in writer.items():
        after = readers.get(name, [])
        if name in outputs or not after or any(r.op_type != "Conv" or r.input[0] != name for r in after):
            continue
        if node.op_type != "Relu":
            # The output of a depthwise convolution stays as it is: its channels have rare large values, and
            # ranges that were narrowed to those of the calibration set cut them off in other speech.
            continue
        source = sole(node.input[0], "Conv") or sole(node.input[0], "Add")
        if source is None:
            continue
        is_sum = source.op_type == "Add"
        writers = [sole(item, "Conv") for item in source.input] if is_sum else [source]
        known = all(item is not None and own_weights(item) for item in (*writers, *after))
        # a grouped convolution that is not depthwise would need the factors group by group
        shapes = {item.name: item.dims for item in graph.initializer}
        if known and all(_groups(r) == 1 or _is_depthwise(r, shapes[r.input[1]]) for r in after):
            found.append((name, writers, after))
    return found


def _groups(node: Any) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def _is_depthwise(node: Any, shape: Sequence[int]) -> bool:
    return _groups(node) == shape[0] and shape[1] == 1


def _reach(weights: np.ndarray) -> np.ndarray:
    """Computes how large the weights that read each channel are, as a share of the largest of their row."""
    largest = np.abs(weights).reshape(*weights.shape[:2], -1).max(axis=2)
    return np.asarray((largest / np.maximum(largest.max(axis=1, keepdims=True), 1e-12)).max(axis=0))


def _largest_of_channels(proto: Any, names: list[str], features: Sequence[np.ndarray]) -> dict[str, Any]:
    """Measures the largest magnitude of each channel of activations `[1, C, ...]` over all utterances."""
    import onnx

    measured = onnx.ModelProto()
    measured.CopyFrom(proto)
    for name in names:
        measured.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(measured)
    largest: dict[str, Any] = {}
    for item in features:
        for name, value in zip(names, session.run(names, feed(session, item)) if names else (), strict=True):
            peaks = np.abs(value).max(axis=(0, *range(2, value.ndim)))
            largest[name] = np.maximum(largest.get(name, 0.0), peaks)
    return largest
