# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Lengths of layers, and when a decoder is warm-started, without a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nemo_tutornet.distill.matching import (
    ModelMatch,
    _eval_mode,
    _no_warm_start,
    _order_on,
    layer_lengths,
    resolve_frame_weighting,
)
from nemo_tutornet.distill.warm_start import compose_decoder
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.nemo_io.restore import pointwise_decoder


def test_each_layer_has_its_own_lengths() -> None:
    encoder, inner = Layer("encoder", 1, 2, 30.0), Layer("h", 1, 2, 20.0)
    assert layer_lengths(torch.tensor([0, 1, 2, 3]), encoder, inner, 4).tolist() == [0, 1, 2, 4]
    assert layer_lengths(torch.tensor([0, 1, 2, 3]), encoder, encoder, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_no_padding_is_among_the_frames_of_an_inner_layer(halvings: int) -> None:
    """For every length: at most a frame of the encoder's output is missing, and nothing is there that the
    layer has not.
    """
    true = torch.arange(200)
    encoder, inner = Layer("encoder", 1, 2, 10.0 * 2**halvings), Layer("h", 1, 2, 10.0)
    encoder_lengths = true
    for _ in range(halvings):
        encoder_lengths = (encoder_lengths + 1) // 2  # a convolution of stride 2
    found = layer_lengths(encoder_lengths, encoder, inner, 208)
    assert torch.all(found <= true) and torch.all(true - found < 2**halvings)


@pytest.mark.parametrize("order", [None, (2, 0, 1, 3)])
@pytest.mark.parametrize("frame_ms", [20.0, 40.0, 100.0])
def test_the_blank_is_aligned_as_among_the_labels(order: tuple[int, ...] | None, frame_ms: float) -> None:
    """Repeated, one to one, and pooled; the blank is last in either order."""
    encoder, layer = Layer("encoder", 1, 2, 40.0), Layer("h", 1, 2, frame_ms)
    match = ModelMatch(layer, layer, (), encoder, encoder, order, "nonblank", None)
    log_probs = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    arguments = torch.tensor([10, 7]), int(10 * 40 / frame_ms), layer
    found = match.align_blank(log_probs, *arguments)
    assert torch.equal(found, match.align_posteriors(log_probs, *arguments)[..., -1:])


def test_an_order_of_labels_is_copied_to_a_device_once() -> None:
    order, device = (1, 0, 2), torch.device("cpu")
    with torch.inference_mode():
        found = _order_on(order, device)
    assert found.tolist() == [1, 0, 2] and not found.is_inference()
    assert _order_on((1, 0, 2), device) is found


@pytest.mark.parametrize(
    ("asked", "has_posteriors", "ends_in_layer_norm", "weighting"),
    [
        ("auto", True, True, "nonblank"),
        ("auto", True, False, "energy"),
        ("auto", False, True, "uniform"),
        ("auto", False, False, "energy"),
        *[
            (asked, True, norm, asked)
            for asked in ("nonblank", "energy", "uniform")
            for norm in (True, False)
        ],
        *[(asked, False, norm, asked) for asked in ("energy", "uniform") for norm in (True, False)],
    ],
)
def test_a_frame_weighting_is_resolved(
    asked: str, has_posteriors: bool, ends_in_layer_norm: bool, weighting: str
) -> None:
    assert resolve_frame_weighting(asked, has_posteriors, ends_in_layer_norm) == weighting


def test_a_transducer_has_no_nonblank_weighting() -> None:
    for norm in (True, False):
        with pytest.raises(TutorError, match="frame_weighting is nonblank, but the teacher has no CTC head"):
            resolve_frame_weighting("nonblank", False, norm)


def test_a_decoder_is_composed_between_the_ends_of_both_encoders_only() -> None:
    end, inner = Layer("encoder", 1, 2, 20.0), Layer("encoder.layers.0", 1, 2, 20.0)
    decoder = SimpleNamespace(decoder_layers=[torch.nn.Conv1d(1, 2, 1)])
    student = SimpleNamespace(decoder=decoder)
    teacher = SimpleNamespace(ctc_projection=lambda: decoder.decoder_layers[0], encoder_layer=end)
    assert _no_warm_start(student, teacher, end, end) is None
    adapter = Layer("adapter", 1, 2, 20.0)
    for pair in ((inner, end), (end, inner), (inner, inner), (end, adapter)):
        assert _no_warm_start(student, teacher, *pair)
    # The decoder of an adapter reads the adapter's hidden vectors, not the encoder's output.
    adapted = SimpleNamespace(ctc_projection=teacher.ctc_projection, encoder_layer=adapter)
    assert _no_warm_start(student, adapted, end, adapter) is None
    assert "must both be the encoder's output and the adapter" in str(
        _no_warm_start(student, adapted, end, end)
    )


def test_at_rest_leaves_each_module_in_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).train()
    model[1].eval()
    with _eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


@pytest.mark.parametrize(
    "layers", [[torch.nn.Conv1d(2, 3, 3)], [torch.nn.Conv1d(2, 3, 1)] * 2, [torch.nn.Linear(2, 3)], []]
)
def test_only_one_pointwise_convolution_is_composed(layers):
    assert pointwise_decoder(SimpleNamespace(decoder_layers=layers)) is None


def test_a_decoder_without_bias_is_composed():
    theirs, projection = torch.nn.Conv1d(2, 3, 1, bias=False), torch.nn.Conv1d(4, 2, 1)
    weight, bias = compose_decoder(theirs, projection, None)
    hidden = torch.randn(1, 4, 5)
    torch.testing.assert_close(torch.nn.functional.conv1d(hidden, weight, bias), theirs(projection(hidden)))
