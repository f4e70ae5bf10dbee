# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The receptive field of an exported graph, which a client that reads audio in chunks must know.

It is read off the graph's convolutions, so it holds for every convolutional model that NeMo exports.

Legend: `B` utterances, `F` mel bins, `T` frames of the front end.
"""

from __future__ import annotations

from typing import Any

# Operators that leave frames where they are and compute each by itself.
_POINTWISE = frozenset(
    [
        "Abs",
        "Add",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Mish",
        "Mul",
        "Neg",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
    ]
)
# Of the labels, which are last when NeMo's decoder applies these.
_OVER_LABELS = frozenset(("LogSoftmax", "Softmax"))


def receptive_field(graph: Any) -> tuple[int, int] | None:
    """Computes how far a frame of the output reaches into the input.

    Frame `t` of the output depends on the frames `s * t - left` to `s * t + right` of the front end, where
    `s` is the stride of the network.

    Args:
        graph: an `onnx.ModelProto` whose first input is `audio_signal` `[B, F, T]`.

    Returns:
        `left` and `right`, in frames of the front end; None if the graph has an operator that reads all
        frames (attention, squeeze-and-excitation over the utterance), or one that is not known here.
    """
    # Of each tensor with frames: frames to the left and to the right, stride, and the axis of the frames.
    reach: dict[str, tuple[int, int, int, int]] = {graph.graph.input[0].name: (0, 0, 1, 2)}
    for node in graph.graph.node:
        fields = [reach[name] for name in node.input if name in reach]
        if not fields:
            continue  # a computation on weights
        left, right, (stride, axis) = max(f[0] for f in fields), max(f[1] for f in fields), fields[0][2:]
        if any(field[2:] != (stride, axis) for field in fields):
            return None
        attributes = {item.name: item for item in node.attribute}
        if node.op_type == "Conv" and node.input[0] in reach and axis == 2:
            kernel = list(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else []
            pads = list(attributes["pads"].ints) if "pads" in attributes else [0, 0]
            step = list(attributes["strides"].ints) if "strides" in attributes else [1]
            dilation = list(attributes["dilations"].ints) if "dilations" in attributes else [1]
            automatic = attributes["auto_pad"].s.decode() if "auto_pad" in attributes else "NOTSET"
            if len(kernel) != 1 or automatic != "NOTSET":
                return None
            left += stride * pads[0]
            right += stride * ((kernel[0] - 1) * dilation[0] - pads[0])
            stride *= step[0]
        elif node.op_type == "Transpose":
            axis = list(attributes["perm"].ints).index(axis)
        elif node.op_type in _OVER_LABELS:
            if ("axis" in attributes and attributes["axis"].i not in (-1, 2)) or axis == 2:
                return None
        elif node.op_type not in _POINTWISE:
            return None
        for name in node.output:
            reach[name] = (left, right, stride, axis)
    field = reach.get(graph.graph.output[0].name)
    return None if field is None else (field[0], max(0, field[1]))
