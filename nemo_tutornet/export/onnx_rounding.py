# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Rounding of an ONNX graph's weights to int8 so that the outputs of its layers change little.

Rounding each weight to the nearest integer is not best for the output, because the errors of a row add up.
The weights of a dense convolution of width 1 are rounded one input channel after the other, and the error of
each is made up for by those that are left, according to the covariance of the inputs (Frantar et al., GPTQ,
2023, https://arxiv.org/abs/2210.17323). What is left of the mean error goes into the bias (Nagel et al.,
2019, https://arxiv.org/abs/1906.04721).

Legend: `F` mel bins, `T` frames, `C` input channels, `O` output channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_tutornet.export.onnx_calibration import evenly_spread
from nemo_tutornet.export.onnx_run import feed, open_session

# The largest integer. The eighth bit of dense weights is left unused: on processors with AVX2 and without
# VNNI, ONNX Runtime adds two products of 8 bits in 16, which would saturate. Its depthwise kernel adds in 32.
DENSE_LIMIT, DEPTHWISE_LIMIT = 64, 127
_MOST_UTTERANCES = 32  # for the covariances, which need fewer utterances than the ranges
_DAMPING = 0.01  # of the mean variance, added to each variance, as in GPTQ
_BLOCK = 64  # channels after which the weights that are left are brought up to date


# Mean `[C]` and covariance `[C, C]` of activations, by their names.
Moments = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Rounded:
    """Weights that are multiples of the scales of int8, and the biases that go with them.

    Attributes:
        values: by the name of a convolution, its initializers by name.
        scales: by the name of the weights, one a row, as onnxruntime's `TensorQuantOverrides`.
    """

    values: dict[str, dict[str, np.ndarray]]
    scales: dict[str, list[dict[str, Any]]]

    def replaced(self, graph: Any, unrounded: Collection[str] = ()) -> Any:
        """Copies a graph and gives its convolutions the rounded weights, in fp32.

        Args:
            graph: the `onnx.ModelProto` that was rounded.
            unrounded: names of convolutions that keep their weights.
        """
        import onnx
        from onnx import numpy_helper

        proto = onnx.ModelProto()
        proto.CopyFrom(graph)
        kept = [values for name, values in self.values.items() if name not in unrounded]
        new = {name: value for values in kept for name, value in values.items()}
        for item in proto.graph.initializer:
            if item.name in new:
                item.CopyFrom(numpy_helper.from_array(new[item.name], item.name))
        return proto


def round_weights(graph: Any, moments: Moments) -> Rounded:
    """Rounds the weights of a graph's convolutions, each row to multiples of a scale of its own.

    Dense convolutions of width 1 are rounded with regard to their outputs, the others to the nearest integer.

    Args:
        graph: an `onnx.ModelProto` in fp32. It stays as it is.
        moments: what `input_moments` measured on it.
    """
    from onnx import numpy_helper

    initializers = {item.name: item for item in graph.graph.initializer}
    readers = Counter(name for node in graph.graph.node for name in node.input)
    nodes = [
        node
        for node in graph.graph.node
        if node.op_type == "Conv"
        and all(name in initializers and readers[name] == 1 for name in node.input[1:])
    ]
    rounded = Rounded({}, {})
    for node in nodes:
        weights = numpy_helper.to_array(initializers[node.input[1]])
        bias = numpy_helper.to_array(initializers[node.input[2]]) if len(node.input) > 2 else None
        rows = weights.reshape(len(weights), -1)
        limit = DEPTHWISE_LIMIT if weights.shape[1] == 1 else DENSE_LIMIT
        largest = np.abs(rows).max(axis=1)
        scales = (np.where(largest > 0, largest, 1) / limit).astype(np.float32)
        if is_dense(node, weights.shape) and node.input[0] in moments:
            mean, covariance = moments[node.input[0]]
            if bias is None:  # the mean error has nowhere to go
                covariance = covariance + np.outer(mean, mean)
            integers = round_for_outputs(rows, covariance, scales, limit)
            if bias is not None:
                bias = (bias + (rows - integers * scales[:, None]) @ mean).astype(np.float32)
        else:
            integers = np.clip(np.round(rows / scales[:, None]), -limit, limit)
        values = {node.input[1]: (integers * scales[:, None]).astype(np.float32).reshape(weights.shape)}
        if bias is not None:
            values[node.input[2]] = bias
        rounded.values[node.name] = values
        rounded.scales[node.input[1]] = [
            {"axis": 0, "scale": scale, "zero_point": np.int8(0)} for scale in scales
        ]
    return rounded


def round_for_outputs(
    weights: np.ndarray, covariance: np.ndarray, scales: np.ndarray, limit: int
) -> np.ndarray:
    """Rounds the weights of a linear layer so that its outputs change little (GPTQ).

    Args:
        weights: `[O, C]`.
        covariance: of the inputs `[C, C]`.
        scales: of each row `[O]`.
        limit: the largest integer.

    Returns:
        Integers `[O, C]` as floating-point numbers, from `-limit` to `limit`.
    """
    count = len(covariance)
    order = np.argsort(-np.diag(covariance))  # the channels that matter most are rounded first
    damped = covariance[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices(count)] += _DAMPING * max(float(np.diag(covariance).mean()), 1e-12)
    # Row j: how the error of channel j is made up for by the channels after it.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weights[:, order].astype(np.float32) / scales[:, None].astype(np.float32)
    integers = np.zeros_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.zeros((len(left), stop - start), np.float32)
        for j in range(start, stop):
            integers[:, j] = np.clip(np.round(left[:, j]), -limit, limit)
            errors[:, j - start] = (left[:, j] - integers[:, j]) / upper[j, j]
            left[:, j + 1 : stop] -= np.outer(errors[:, j - start], upper[j, j + 1 : stop])
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    result = np.empty_like(integers)
    result[:, order] = integers
    return result


def is_dense(node: Any, shape: Sequence[int]) -> bool:
    """Whether a convolution has one group and reads one frame at a time.

    Args:
        node: the convolution.
        shape: of its weights.
    """
    groups = next((int(item.i) for item in node.attribute if item.name == "group"), 1)
    return groups == 1 and shape[1] > 1 and int(np.prod(shape[2:])) == 1


def input_moments(graph: Any, features: Sequence[np.ndarray]) -> Moments:
    """Measures the mean and the covariance of what each dense convolution of width 1 reads.

    Args:
        graph: an `onnx.ModelProto` in fp32.
        features: utterances `[1, F, T]`, of which at most 32 are run.

    Returns:
        Mean `[C]` and covariance `[C, C]` over all frames, by the name of the activation.
    """
    import onnx

    shapes = {item.name: item.dims for item in graph.graph.initializer}
    inputs = {item.name for item in graph.graph.input}
    names = sorted(
        {
            node.input[0]
            for node in graph.graph.node
            if node.op_type == "Conv" and is_dense(node, shapes.get(node.input[1], (0, 0)))
        }
        - inputs
    )
    if not names:
        return {}
    measured = onnx.ModelProto()
    measured.CopyFrom(graph)
    for name in names:
        measured.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(measured)
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    products: dict[str, Any] = dict.fromkeys(names, 0.0)
    frames: dict[str, int] = dict.fromkeys(names, 0)
    for i in evenly_spread(len(features), _MOST_UTTERANCES):
        for name, found in zip(names, session.run(names, feed(session, features[i])), strict=True):
            values = found.reshape(found.shape[1], -1)
            sums[name] = sums[name] + values.sum(axis=1, dtype=np.float64)
            products[name] = products[name] + values @ values.T
            frames[name] += values.shape[1]
    means = {name: sums[name] / frames[name] for name in names}
    return {
        name: (means[name], products[name] / frames[name] - np.outer(means[name], means[name]))
        for name in names
    }
