# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers of an ONNX graph whose results suffer most from static int8, found without a search.

An activation has one scale. Where its channels differ much in range, as outputs of depthwise convolutions do,
its rounding error is large for most of them. How much of it reaches the output of the next layer follows from
the weights of that layer and the covariance of its input. Ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_tutornet.export.onnx_rounding import Moments, is_dense

# Share of the graph's weights, and so of its arithmetic, that may stay in fp32 for this.
_BUDGET = 0.16
_NOISY = 3.0  # times the median of the layers
_STEPS = 255


def noisy_layers(graph: Any, moments: Moments, ranges: Any) -> tuple[str, ...]:
    """Names depthwise convolutions, and the dense ones that read them, between which int8 loses most.

    Args:
        graph: an `onnx.ModelProto` in fp32.
        moments: of the inputs of its dense convolutions.
        ranges: of its activations, onnxruntime's `TensorsData`.

    Returns:
        Names of convolutions, the noisiest pair first, with at most 16 % of the weights of the graph.
    """
    from onnx import numpy_helper

    weights = {item.name: item for item in graph.graph.initializer}
    writers = {name: node for node in graph.graph.node for name in node.output}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    found = []
    for node in convolutions:
        name, shape = node.input[0], weights[node.input[1]].dims
        writer = writers.get(name)
        if writer is None or writer not in convolutions or name not in moments or not is_dense(node, shape):
            continue
        rows = numpy_helper.to_array(weights[node.input[1]]).reshape(shape[0], -1)
        low, high = (float(np.min(value)) for value in ranges[name].range_value)
        noise = ((high - low) / _STEPS) ** 2 / 12 * float((rows**2).sum())
        signal = float(((rows @ moments[name][1]) * rows).sum())
        size = int(np.prod(shape)) + int(np.prod(weights[writer.input[1]].dims))
        found.append((noise / max(signal, 1e-12), size, (writer.name, node.name)))
    if not found:
        return ()
    limit = _NOISY * float(np.median([ratio for ratio, _, _ in found]))
    left = _BUDGET * sum(int(np.prod(weights[node.input[1]].dims)) for node in convolutions)
    names: list[str] = []
    for ratio, size, pair in sorted(found, reverse=True):
        if ratio > limit and size <= left:
            names += pair
            left -= size
    return tuple(names)
