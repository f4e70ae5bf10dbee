# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The receptive field of a graph is how far a change of its input reaches."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_tutornet.export.receptive_field import receptive_field

BINS, WIDTH, LABELS, FRAMES = 3, 4, 5, 120


class Network:
    """Builds a graph of convolutions over time, as NeMo's exporter writes it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last, self.width = "audio_signal", BINS

    def add(self, kind: str, *others: str, **attributes: object) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *others], [name], **attributes))
        self.last = name
        return name

    def convolve(
        self, kernel: int, stride: int = 1, dilation: int = 1, pads: tuple[int, int] | None = None
    ) -> str:
        random = np.random.default_rng(len(self.nodes))
        weight = random.uniform(0.1, 1, (WIDTH, self.width, kernel)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(weight, f"w{len(self.nodes)}"))
        self.width = WIDTH
        around = (dilation * (kernel - 1)) // 2
        return self.add(
            "Conv",
            self.weights[-1].name,
            kernel_shape=[kernel],
            strides=[stride],
            dilations=[dilation],
            pads=list(pads or (around, around)),
        )

    def graph(self, output: str | None = None) -> onnx.ModelProto:
        shape = ["batch", BINS, "frames"]
        inputs = [helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, shape)]
        outputs = [helper.make_tensor_value_info(output or self.last, TensorProto.FLOAT, None)]
        made = helper.make_graph(self.nodes, "network", inputs, outputs, self.weights)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def reach(graph: onnx.ModelProto, stride: int) -> tuple[int, int]:
    """How far from its own frame a change of one input frame is seen, measured at every frame."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(signal: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"audio_signal": signal})[0][0], np.float64)

    signal = np.random.default_rng(1).uniform(0.1, 1, (1, BINS, FRAMES)).astype(np.float32)
    before, left, right = run(signal), 0, 0
    for t in range(FRAMES // 2 - stride, FRAMES // 2 + stride):
        other = signal.copy()
        other[:, :, t] += 1.0
        (changed,) = np.nonzero(np.abs(run(other) - before).max(axis=-1) > 0)
        left, right = max(left, stride * changed.max() - t), max(right, t - stride * changed.min())
    return left, right


def quartznet() -> Network:
    """Stride, a residual block of two convolutions, a dilated one."""
    net = Network()
    net.convolve(5, stride=2)
    before = net.last
    net.convolve(7)
    net.add("Relu")
    net.convolve(3)
    net.add("Add", before)
    net.convolve(5, dilation=2)
    net.add("Relu")
    net.convolve(1)
    net.add("Transpose", perm=[0, 2, 1])
    return net


def test_a_change_reaches_as_far_as_the_receptive_field_says() -> None:
    net = quartznet()
    graph = net.graph()
    assert receptive_field(graph) == reach(graph, 2) == (18, 18)
    net.add("LogSoftmax", axis=2)
    assert receptive_field(net.graph()) == (18, 18)
    causal = Network()
    causal.convolve(5, pads=(4, 0))
    causal.convolve(3, stride=2, pads=(1, 1))
    causal.add("Transpose", perm=[0, 2, 1])
    assert receptive_field(causal.graph()) == reach(causal.graph(), 2) == (5, 1)


@pytest.mark.parametrize("kind", ["ReduceMean", "GlobalAveragePool", "Softmax"])
def test_a_graph_that_reads_the_whole_utterance_has_none(kind: str) -> None:
    net = Network()
    net.convolve(5)
    encoded = net.last
    attributes = {"ReduceMean": {"axes": [2]}, "Softmax": {"axis": 2}}.get(kind, {})
    net.add(kind, **attributes)
    net.add("Mul", encoded)
    net.add("Transpose", perm=[0, 2, 1])
    assert receptive_field(net.graph()) is None
