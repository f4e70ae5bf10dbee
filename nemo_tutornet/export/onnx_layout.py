# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Rewriting of one-dimensional convolutions as two-dimensional ones, which ONNX Runtime computes faster.

ONNX Runtime has blocked kernels (its NCHWc layout) for convolutions over images only. A one-dimensional
depthwise convolution runs as one small matrix product for each channel instead, which took more than half of
the time of a QuartzNet 15x5 with 8 % of its arithmetic. A convolution over an image of height 1 is the same
sum, and its kernels are fast.

Legend: `B` utterances, `C` channels, `T` frames, `O` output channels, `G` groups, `K` width of a kernel.
"""

from __future__ import annotations

from typing import Any

# Elementwise operators, through which an image passes as it is.
_UNARY = ("Relu", "Sigmoid", "Clip", "Identity", "Tanh", "HardSigmoid")
_BINARY = ("Add", "Mul")
_AXES = "image_height_axis"
_HEIGHT = 2  # the axis of the height in `[B, C, 1, T]`


def with_images(graph: Any) -> Any:
    """Copies an ONNX model and makes its one-dimensional convolutions two-dimensional.

    A convolution over `[B, C, T]` becomes one over `[B, C, 1, T]` with the same weights, which are
    `[O, C / G, 1, K]` then. Elementwise operators between such convolutions work on images too. Inputs and
    outputs of the model keep their shapes. The sums are the same, in another order.

    Args:
        graph: an `onnx.ModelProto`. Convolutions whose weights are not initializers stay as they are.

    Returns:
        The copy.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    weights = {item.name: item for item in proto.graph.initializer}
    readers: dict[str, int] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    images: set[str] = set()
    reshaped: dict[tuple[str, str], str] = {}
    nodes: list[Any] = []

    def reshape(operator: str, name: str) -> str:
        """Appends a node that adds or removes the height, once for each tensor, and returns its output."""
        if (operator, name) not in reshaped:
            result = f"{name}_{'image' if operator == 'Unsqueeze' else 'sequence'}"
            nodes.append(helper.make_node(operator, [name, _AXES], [result], name=f"{result}_node"))
            reshaped[operator, name] = result
        return reshaped[operator, name]

    sequences = _sequences(proto)
    for node in proto.graph.node:
        inputs = [name for name in node.input if name]
        if _is_sequence_convolution(node, weights, readers):
            if node.input[0] not in images:
                node.input[0] = reshape("Unsqueeze", node.input[0])
            weight = weights[node.input[1]]
            values = np.expand_dims(numpy_helper.to_array(weight), _HEIGHT)
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
            _widen(node)
            images.update(node.output)
        elif node.op_type in _UNARY and inputs[0] in images:
            images.update(node.output)
        elif (
            node.op_type in _BINARY
            and any(name in images for name in inputs)
            and all(name in images or name in sequences for name in inputs)
        ):
            for i, name in enumerate(node.input):  # a mask `[B, 1, T]` becomes an image, once
                if name not in images:
                    node.input[i] = reshape("Unsqueeze", name)
            images.update(node.output)
        else:
            for i, name in enumerate(node.input):
                if name in images:
                    node.input[i] = reshape("Squeeze", name)
        nodes.append(node)
    for output in proto.graph.output:
        if output.name in images:  # the model's output keeps its name, and the image gets another one
            inner = f"{output.name}_as_image"
            for node in nodes:
                node.input[:] = [inner if name == output.name else name for name in node.input]
                node.output[:] = [inner if name == output.name else name for name in node.output]
            nodes.append(helper.make_node("Squeeze", [inner, _AXES], [output.name]))
    if images:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([_HEIGHT], np.int64), _AXES))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    del proto.graph.value_info[:]  # shapes of inner tensors, which have changed
    return proto


def in_fast_layout(graph: Any) -> Any:
    """Returns a graph in the layout that ONNX Runtime computes fastest: with images, or as it is.

    Args:
        graph: an `onnx.ModelProto`.
    """
    return with_images(graph) if is_convolutional(graph) else graph


def is_convolutional(graph: Any) -> bool:
    """Whether a graph has convolutions and no attention.

    Between attention, images would be reshaped to sequences and back again and again.

    Args:
        graph: an `onnx.ModelProto`.
    """
    operators = {node.op_type for node in graph.graph.node}
    return "Conv" in operators and "Softmax" not in operators


def _sequences(graph: Any) -> set[str]:
    """Names of the tensors with three axes, as far as ONNX can infer them."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(graph).graph
    return {
        item.name
        for item in (*inferred.value_info, *inferred.input)
        if len(item.type.tensor_type.shape.dim) == 3
    }


def _is_sequence_convolution(node: Any, weights: dict[str, Any], readers: dict[str, int]) -> bool:
    """Whether a node is a convolution over `[B, C, T]` whose weights no other node reads."""
    return (
        node.op_type == "Conv"
        and node.input[1] in weights
        and len(weights[node.input[1]].dims) == 3
        and readers[node.input[1]] == 1
        and all(attribute.name != "auto_pad" or attribute.s == b"NOTSET" for attribute in node.attribute)
    )


def _widen(node: Any) -> None:
    """Adds the height, of 1 and without padding, to the attributes of a convolution, in place."""
    from onnx import helper

    for attribute in list(node.attribute):
        if attribute.name in ("kernel_shape", "strides", "dilations"):
            values = [1, *attribute.ints]
        elif attribute.name == "pads":
            begin, end = attribute.ints
            values = [0, begin, 0, end]
        else:
            continue
        attribute.CopyFrom(helper.make_attribute(attribute.name, values))
