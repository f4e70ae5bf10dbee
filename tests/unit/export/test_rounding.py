# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights with regard to the outputs of their layers, on layers of a few channels."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import numpy_helper  # noqa: E402

from nemo_tutornet.export.onnx_int8 import quantize_static  # noqa: E402
from nemo_tutornet.export.onnx_layout import with_images  # noqa: E402
from nemo_tutornet.export.onnx_rounding import (  # noqa: E402
    DENSE_LIMIT,
    DEPTHWISE_LIMIT,
    input_moments,
    round_for_outputs,
    round_weights,
)
from nemo_tutornet.export.onnx_run import feed, open_session  # noqa: E402
from tests.unit.export.test_graphs import features, run, separable  # noqa: E402


def initializers(graph):
    return {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}


@pytest.mark.parametrize("channels", [3, 64, 150])
def test_outputs_change_less_than_with_the_nearest_integers(channels):
    draw = np.random.default_rng(channels).standard_normal
    # Inputs that go together, as the channels of a network do: few directions and a little noise.
    inputs = draw((2000, max(2, channels // 8))) @ draw((max(2, channels // 8), channels))
    inputs += 0.1 * draw(inputs.shape)
    weights = draw((20, channels)).astype(np.float32)
    scales = np.abs(weights).max(axis=1) / 8  # 4 bits, so that the difference is large
    covariance = np.cov(inputs.T)
    rounded = round_for_outputs(weights, covariance, scales, 8)
    assert np.array_equal(rounded, np.round(rounded)) and np.abs(rounded).max() <= 8
    nearest = np.round(weights / scales[:, None])

    def error(integers):
        difference = weights - integers * scales[:, None]
        return np.einsum("oc,cd,od->", difference, covariance, difference, optimize=True)

    assert error(rounded) < 0.5 * error(nearest)


def test_inputs_that_never_vary_do_no_harm():
    weights = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    scales = np.abs(weights).max(axis=1) / 64
    rounded = round_for_outputs(weights, np.zeros((6, 6)), scales, 64)
    assert np.array_equal(rounded, np.round(weights / scales[:, None]))


def test_weights_become_multiples_of_their_scales_and_biases_take_up_the_mean():
    graph = with_images(separable(outlier=1))
    before = graph.SerializeToString()
    speech = [features(frames) + 3 for frames in range(30, 42)]
    rounded = round_weights(graph, input_moments(graph, speech))
    assert graph.SerializeToString() == before
    found = initializers(rounded.replaced(graph))
    for name, limit in (("deep2_w", DEPTHWISE_LIMIT), ("dense2_w", DENSE_LIMIT)):
        scales = np.array([row["scale"] for row in rounded.scales[name]])
        integers = found[name] / scales[:, None, None, None]
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)
        assert limit / 2 < np.abs(integers).max() <= limit + 1e-3

    def outputs(proto, name):
        shown = onnx.ModelProto()
        shown.CopyFrom(proto)
        shown.graph.output.append(onnx.ValueInfoProto(name=name))
        session = open_session(shown)
        return np.concatenate([session.run([name], feed(session, x))[0][0, :, 0] for x in speech], axis=1)

    # Only this layer is rounded, so what it reads is what the mean was measured on.
    others = [node.name for node in graph.graph.node if node.op_type == "Conv" and node.name != "dense"]
    only = rounded.replaced(graph, others)
    difference = outputs(only, "dense") - outputs(graph, "dense")
    assert np.abs(difference).max() > 1e-3 and np.abs(difference.mean(axis=1)).max() < 1e-4


def test_moments_are_of_utterances_from_the_whole_list():
    """A sorted manifest may end with other speech than it begins with."""
    graph = with_images(separable(outlier=1))
    quiet, loud = [features(30)] * 40, [features(30) + 5] * 40
    found, first = input_moments(graph, quiet + loud), input_moments(graph, quiet)
    assert all(np.abs(found[name][0] - first[name][0]).max() > 0.1 for name in first)


def test_convolutions_left_in_fp32_keep_their_weights():
    graph = with_images(separable(outlier=1))
    rounded = round_weights(graph, input_moments(graph, [features(40), features(31)]))
    found, plain = initializers(rounded.replaced(graph, ["dense"])), initializers(graph)
    for name in ("dense_w", "dense_b"):
        np.testing.assert_array_equal(found[name], plain[name])
    assert not np.array_equal(found["dense2_w"], plain["dense2_w"])


def test_rounding_protects_the_log_probabilities_of_static_int8(monkeypatch):
    """The whole path, beside the same with the nearest integers, which must be worse.

    Dense weights have 4 bits here and no layer is left in fp32, so that rounding is most of the error.
    """
    monkeypatch.setattr("nemo_tutornet.export.onnx_rounding.DENSE_LIMIT", 8)
    monkeypatch.setattr("nemo_tutornet.export.onnx_int8._sensitive", lambda graph: [])
    graph = with_images(separable(outlier=1))
    mix = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    speech = [
        np.einsum("bft,fg->bgt", features(frames)[:, :3], mix).astype(np.float32) for frames in range(60, 90)
    ]

    def error():
        quantized = quantize_static(graph, speech).graph
        return np.sqrt(np.mean([np.mean((run(quantized, x) - run(graph, x)) ** 2) for x in speech]))

    with_regard = error()
    monkeypatch.setattr(
        "nemo_tutornet.export.onnx_rounding.round_for_outputs",
        lambda weights, covariance, scales, limit: np.round(weights / scales[:, None]),
    )
    assert with_regard < 0.95 * error()  # 0.86: activations are rounded as well, the same in both
