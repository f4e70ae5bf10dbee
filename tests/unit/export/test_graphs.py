# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Rewritten graphs against the graph they came from: images, equalized channels, int8 and fixed lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nemo_tutornet.errors import TutorError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nemo_tutornet.export.onnx_equalize import equalize_channels  # noqa: E402
from nemo_tutornet.export.onnx_fixed import frames_of, mobile_note, with_fixed_shapes  # noqa: E402
from nemo_tutornet.export.onnx_int8 import Quantized, quantize_static  # noqa: E402
from nemo_tutornet.export.onnx_layout import is_convolutional, with_images  # noqa: E402

BINS, LABELS = 8, 5


def separable(gate: bool = False, outlier: float = 1000) -> Any:
    """A small network as QuartzNet's: depthwise and dense convolutions, a residual, labels.

    One channel is `outlier` times larger than the others.
    """
    draw = np.random.default_rng(0).standard_normal
    weights: list[Any] = []
    nodes: list[Any] = []

    def conv(source: str, name: str, shape: tuple[int, ...], bias: bool = True, **options: Any) -> str:
        values = draw(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        if name == "dense":
            values[3] *= outlier
        if name == "deep2":
            values[3] /= outlier
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}_w"))
        inputs = [source, f"{name}_w"]
        if bias:
            weights.append(numpy_helper.from_array(draw(shape[0]).astype(np.float32), f"{name}_b"))
            inputs.append(f"{name}_b")
        width = shape[2]
        pads = [options.pop("dilation", 1) * (width // 2)] * 2
        nodes.append(
            helper.make_node("Conv", inputs, [name], name, pads=pads, kernel_shape=[width], **options)
        )
        return name

    conv("audio_signal", "deep", (BINS, 1, 7), bias=False, group=BINS, strides=[2])
    conv("deep", "dense", (16, BINS, 1))
    nodes.append(helper.make_node("Relu", ["dense"], ["relu"], "relu"))
    conv("relu", "deep2", (16, 1, 5), bias=False, group=16)
    conv("deep2", "dense2", (16, 16, 1))
    conv("relu", "residual", (16, 16, 1))
    nodes.append(helper.make_node("Add", ["dense2", "residual"], ["sum"], "sum"))
    nodes.append(helper.make_node("Relu", ["sum"], ["relu2"], "relu2"))
    last = "relu2"
    if gate:  # squeeze and excitation: a mean over time in between
        nodes.append(helper.make_node("ReduceMean", ["relu2"], ["mean"], "mean", axes=[2], keepdims=1))
        nodes.append(helper.make_node("Sigmoid", ["mean"], ["gate"], "gate"))
        nodes.append(helper.make_node("Mul", ["relu2", "gate"], ["gated"], "gated"))
        last = "gated"
    conv(last, "decoder", (LABELS, 16, 1))
    nodes.append(helper.make_node("Transpose", ["decoder"], ["frames"], "frames", perm=[0, 2, 1]))
    nodes.append(helper.make_node("LogSoftmax", ["frames"], ["logprobs"], "logprobs", axis=-1))
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["B", BINS, "T"])],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["B", "S", LABELS])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(graph: Any, features: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logprobs"], {"audio_signal": features})[0]


def features(frames: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(frames).standard_normal((batch, BINS, frames)).astype(np.float32)


@pytest.mark.parametrize("gate", [False, True])
def test_images_compute_what_sequences_compute(gate):
    plain = separable(gate)
    before = plain.SerializeToString()
    images = with_images(plain)
    onnx.checker.check_model(images, full_check=True)
    assert plain.SerializeToString() == before
    ranks = [len(item.dims) for item in images.graph.initializer if item.name.endswith("_w")]
    assert set(ranks) == {4}
    for frames, batch in ((1, 1), (2, 3), (57, 2)):
        x = features(frames, batch)
        np.testing.assert_allclose(run(images, x), run(plain, x), atol=2e-5 * 1000)
    kinds = [node.op_type for node in images.graph.node]
    assert kinds.count("Unsqueeze") + kinds.count("Squeeze") == (4 if gate else 2)


def test_a_graph_whose_output_is_an_image_keeps_its_output():
    plain = separable()
    del plain.graph.node[-2:]
    plain.graph.node[-1].output[0] = "logprobs"
    del plain.graph.output[:]
    plain.graph.output.append(helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, None))
    x = features(21)
    assert run(with_images(plain), x).shape == run(plain, x).shape == (1, LABELS, 11)


def test_only_graphs_without_attention_become_images():
    plain = separable()
    assert is_convolutional(plain)
    plain.graph.node.append(helper.make_node("Softmax", ["frames"], ["attention"]))
    assert not is_convolutional(plain)


def test_equalized_channels_change_no_bit_and_come_closer():
    images = with_images(separable())
    equal = equalize_channels(images, [features(40), features(31)])
    np.testing.assert_array_equal(run(equal, features(33)), run(images, features(33)))

    def spread(graph: Any) -> float:
        weights = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
        size = np.abs(weights["dense_w"]).reshape(16, -1).max(axis=1)
        return float(size.max() / np.median(size))

    assert spread(equal) < spread(images) / 3


def test_static_int8_keeps_the_best_labels():
    images = with_images(separable(outlier=10))
    result = quantize_static(images, [features(frames) for frames in range(30, 54)])
    assert result.utterances == 20 and result.agreement > 0.9
    assert "calibrated on 20 utterances" in result.note
    x = features(77)
    same = run(result.graph, x).argmax(-1) == run(images, x).argmax(-1)
    assert same.mean() > 0.9
    # 7 bits in dense weights, so that AVX2 without VNNI does not saturate; its depthwise kernel adds
    # in 32 bits.
    stored = [w for w in result.graph.graph.initializer if w.data_type == w.INT8 and len(w.dims) == 4]
    assert len(stored) >= 4
    for item in stored:
        limit = 127 if item.dims[1] == 1 else 64
        assert limit / 2 < np.abs(numpy_helper.to_array(item).astype(int)).max() <= limit
    scales = [w.dims for w in result.graph.graph.initializer if w.name == "dense2_w_scale"]
    assert list(scales[0]) == [16]  # one for each channel


def test_the_note_names_layers_left_in_fp32():
    assert "2 convolutions left in fp32" in Quantized(None, 7, 0.991, ("a", "b")).note
    assert "99.1 %" in Quantized(None, 7, 0.991).note


def test_a_fixed_graph_has_no_dynamic_axis_and_computes_the_same():
    plain = separable(gate=True)
    fixed = with_fixed_shapes(plain, 57)
    shapes = {
        item.name: [size.dim_value or None for size in item.type.tensor_type.shape.dim]
        for item in (*fixed.graph.input, *fixed.graph.output)
    }
    assert shapes == {"audio_signal": [1, BINS, 57], "logprobs": [1, 29, LABELS]}
    np.testing.assert_allclose(run(fixed, features(57)), run(plain, features(57)), atol=1e-3)
    assert {item.domain for item in fixed.opset_import} == {""}
    assert mobile_note(fixed) is None


def test_length_becomes_a_constant():
    plain = separable()
    plain.graph.input.append(helper.make_tensor_value_info("length", TensorProto.INT64, ["B"]))
    plain.graph.node.insert(
        0, helper.make_node("Cast", ["length"], ["float_length"], "cast", to=TensorProto.FLOAT)
    )
    plain.graph.node.insert(
        1, helper.make_node("Mul", ["audio_signal", "float_length"], ["scaled"], "scaled")
    )
    plain.graph.node[2].input[0] = "scaled"
    fixed = with_fixed_shapes(plain, 20)
    assert [item.name for item in fixed.graph.input] == ["audio_signal"]
    np.testing.assert_allclose(run(fixed, features(20)), run(separable(), features(20) * 20), atol=1e-2)


def test_operators_that_phones_may_refuse_are_listed_in_one_sentence():
    graph = separable()
    graph.graph.node.append(helper.make_node("Einsum", ["frames"], ["e"], equation="ijk->ijk"))
    graph.graph.node.append(helper.make_node("FusedConv", ["frames"], ["f"], domain="com.microsoft"))
    assert mobile_note(graph) == "converters for phones may refuse Einsum, com.microsoft.FusedConv."


FRONT_END = {"sample_rate": 16000, "window_stride": 0.01, "n_window_stride": None}


@pytest.mark.parametrize(("seconds", "frames"), [(10, 1000), (0.1, 10), (2.005, 200)])
def test_frames_of_a_fixed_length(seconds, frames):
    assert frames_of(FRONT_END, seconds) == frames


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 601])
def test_a_length_that_cannot_be_is_refused(seconds):
    with pytest.raises(TutorError, match="--fixed-seconds"):
        frames_of(FRONT_END, seconds)
