# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers by path, whatever they return, on toy modules.

Legend: `B` utterances, `T` frames, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.layers import Capture, Layer, ends_in_layer_norm, find_module, measure, measure_all

WIDTH = 5


class Returns(nn.Module):
    """A layer that returns what `form` makes of `[B, D, T]` and its lengths."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(x, torch.full((x.shape[0],), x.shape[2]))


class Toy(nn.Module):
    """An encoder with a layer under test, frames of `shift` milliseconds, and a layer that never runs."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], shift: float = 20.0) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList([nn.Identity(), Returns(form)]), "unused": nn.Identity()}
        )
        self.shift = shift
        self.seconds: list[float] = []
        self.grad_enabled: list[bool] = []

    def forward(self, x: Tensor) -> Any:
        layers = self.encoder["layers"]
        return layers[1](layers[0](x))

    def run(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.grad_enabled.append(torch.is_grad_enabled())
        frames = round(1000 * seconds / self.shift)
        self(torch.arange(float(WIDTH * frames)).reshape(1, WIDTH, frames))


FORMS = {
    "[B, D, T]": (lambda x, n: x, 2),
    "[B, T, D]": (lambda x, n: x.transpose(1, 2), 1),
    "([B, D, T], lengths)": (lambda x, n: (x, n), 2),
    "([B, T, D], lengths)": (lambda x, n: (x.transpose(1, 2), n), 1),
    "(list, lengths), a JasperBlock": (lambda x, n: ([x[:, :2] - 1, x], n), 2),
    "list of one": (lambda x, n: [x], 2),
    "((list,), lengths)": (lambda x, n: (([x],), n), 2),
    "([B, T, D], cache, lengths)": (lambda x, n: (x.transpose(1, 2), None, n), 1),
}
LAYER = "encoder.layers.1"


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# --- Capture


def test_a_module_is_found_without_a_walk_through_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy(lambda x, n: x)
    monkeypatch.setattr(nn.Module, "named_modules", None)
    assert find_module(model, LAYER) is model.encoder["layers"][1]


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_is_captured_as_width_by_time(form: str) -> None:
    make, time_axis = FORMS[form]
    model, x = Toy(make), torch.randn(3, WIDTH, 7)
    with Capture(model, LAYER) as captured:
        model(x)
    assert torch.equal(captured.tensor(time_axis), x)


def test_the_captured_tensor_keeps_its_graph() -> None:
    model, x = Toy(lambda x, n: (x * 2, n)), torch.randn(1, WIDTH, 4, requires_grad=True)
    with Capture(model, LAYER) as captured:
        model(x)
    captured.tensor(2).sum().backward()
    assert x.grad is not None and (x.grad == 2).all()


def test_the_models_own_result_is_not_changed() -> None:
    model, x = Toy(lambda x, n: x), torch.randn(1, WIDTH, 4)
    with Capture(model, LAYER):
        assert model(x) is x


def test_the_last_run_counts_and_later_ones_do_not() -> None:
    model = Toy(lambda x, n: x)
    with Capture(model, LAYER) as captured:
        model(torch.zeros(1, WIDTH, 3))
        model(torch.ones(1, WIDTH, 4))
    model(torch.zeros(1, WIDTH, 5))
    assert torch.equal(captured.tensor(2), torch.ones(1, WIDTH, 4))


def test_the_first_run_counts_where_that_is_wanted() -> None:
    model = Toy(lambda x, n: x)
    with Capture(model, LAYER, first=True) as captured:
        model(torch.zeros(1, WIDTH, 3))
        model(torch.ones(1, WIDTH, 4))
    assert torch.equal(captured.tensor(2), torch.zeros(1, WIDTH, 3))


class Overwriting(Toy):
    """An activation after the layer under test changes its output in place, as in NeMo's ConvASREncoder."""

    def __init__(self) -> None:
        super().__init__(lambda x, n: x - 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        return self.activation(super().forward(x)) + 1


def test_a_layer_that_is_overwritten_is_refused() -> None:
    model, x = Overwriting(), torch.randn(1, WIDTH, 4, requires_grad=True)
    with Capture(model, LAYER) as captured, Capture(model, "activation") as after:
        model(x)
    with pytest.raises(TutorError, match=r"layer 'encoder\.layers\.1' of Overwriting returns .* in place"):
        captured.tensor(2)
    assert (after.tensor(2) >= 0).all()
    with pytest.raises(TutorError, match=r"overwrites in place, e\.g\. an activation; choose the block"):
        measure(model, LAYER, model.run)
    assert measure(model, "activation", model.run).width == WIDTH
    paths = {path: find_module(model, path) for path in (LAYER, "activation")}
    assert [layer.path for layer in measure_all(paths, model.run, batch=1)] == ["activation"]


def test_in_inference_mode_pytorch_counts_no_changes() -> None:
    model = Overwriting()
    with torch.inference_mode(), Capture(model, LAYER) as captured:
        model(torch.ones(1, WIDTH, 4))
        assert captured.tensor(2).shape == (1, WIDTH, 4)


def test_the_hook_lives_as_long_as_the_context() -> None:
    model = Toy(lambda x, n: x)
    capture = Capture(model, LAYER)
    assert hooks(model) == 0
    with capture:
        assert hooks(model) == 1
    assert hooks(model) == 0


def test_the_hook_goes_with_an_exception() -> None:
    def fail(x: Tensor, n: Tensor) -> Any:
        raise ZeroDivisionError

    model = Toy(fail)
    with pytest.raises(ZeroDivisionError), Capture(model, LAYER), Capture(model, "encoder.layers.0"):
        model(torch.zeros(1, WIDTH, 3))
    assert hooks(model) == 0


def test_two_captures_of_one_layer_do_not_meet() -> None:
    model, x = Toy(lambda x, n: x), torch.randn(1, WIDTH, 4)
    with Capture(model, LAYER) as outer:
        with Capture(model, LAYER) as inner:
            model(x)
        assert hooks(model) == 1
    assert outer.tensor(2) is inner.tensor(2) is x


# --- find_module


def test_a_module_is_found_by_its_path() -> None:
    model = Toy(lambda x, n: x)
    assert find_module(model, "encoder") is model.encoder
    assert find_module(model, LAYER) is model.encoder["layers"][1]


@pytest.mark.parametrize(
    "path, nearest",
    [
        ("encoder.layer.1", LAYER),
        ("encoder.layers.2", LAYER),
        ("encodr", "encoder"),
        ("encoder.unusd", "encoder.unused"),
    ],
)
def test_a_missing_path_names_the_nearest(path: str, nearest: str) -> None:
    for look in (find_module, Capture, lambda model, path: measure(model, path, model.run)):
        with pytest.raises(TutorError) as error:
            look(Toy(lambda x, n: x), path)
        assert f"no layer {path!r} in Toy" in str(error.value)
        assert repr(nearest) in str(error.value)


@pytest.mark.parametrize("path", ["", "0123456789"])
def test_a_path_like_no_other_still_gets_an_answer(path: str) -> None:
    with pytest.raises(TutorError) as error:
        find_module(Toy(lambda x, n: x), path)
    assert "'encoder'" in str(error.value)


# --- measure


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", [10.0, 20.0, 40.0, 80.0])
def test_a_layer_is_measured(form: str, shift: float) -> None:
    make, time_axis = FORMS[form]
    model = Toy(make, shift)
    assert measure(model, LAYER, model.run) == Layer(LAYER, WIDTH, time_axis, shift)
    assert hooks(model) == 0
    assert len(set(model.seconds)) == 2
    assert not any(model.grad_enabled) and torch.is_grad_enabled()


def test_padding_to_a_multiple_does_not_change_the_shift() -> None:
    """A front end that pads to 16 hops adds the same to both lengths."""
    model = Toy(lambda x, n: nn.functional.pad(x, (0, 3)), 20.0)
    assert measure(model, LAYER, model.run).frame_ms == 20.0


def test_a_width_that_equals_a_frame_count_is_no_riddle() -> None:
    model = Toy(
        lambda x, n: x.expand(1, WIDTH, x.shape[2]).transpose(1, 2)[:, :, :1].expand(1, x.shape[2], 128), 20.0
    )
    assert measure(model, LAYER, model.run) == Layer(LAYER, 128, 1, 20.0)


@pytest.mark.parametrize(
    "form, words",
    [
        (lambda x, n: n, r"shape \[1\]"),
        (lambda x, n: x[0], r"shape \[5, 128\]"),
        (lambda x, n: x[:, None], r"shape \[1, 1, 5, 128\]"),
        (lambda x, n: x.mean(dim=2, keepdim=True), r"returns \[1, 5, 1\] and \[1, 5, 1\]"),
        (lambda x, n: x.transpose(1, 2) @ x, r"returns \[1, 128, 128\] and \[1, 256, 256\]"),
    ],
)
def test_what_is_no_sequence_of_frames_is_refused(form: Callable[[Tensor, Tensor], Any], words: str) -> None:
    model = Toy(form)
    with pytest.raises(TutorError, match=words) as error:
        measure(model, LAYER, model.run)
    assert f"layer {LAYER!r} of Toy" in str(error.value)
    assert hooks(model) == 0


def test_a_layer_that_does_not_run_is_refused() -> None:
    model = Toy(lambda x, n: x)
    with pytest.raises(TutorError, match=r"layer 'encoder\.unused' of Toy .*did not run"):
        measure(model, "encoder.unused", model.run)


@pytest.mark.parametrize(
    "form", [lambda x, n: {"x": x}, lambda x, n: None, lambda x, n: [], lambda x, n: (None, n)]
)
def test_a_layer_without_a_tensor_is_refused_and_not_said_to_be_idle(
    form: Callable[[Tensor, Tensor], Any],
) -> None:
    model = Toy(form)
    with pytest.raises(TutorError) as error:
        measure(model, LAYER, model.run)
    assert "did not run" not in str(error.value)


def test_hooks_go_when_the_model_fails_while_it_is_measured() -> None:
    model = Toy(lambda x, n: x / 0 if x.shape[2] < 200 else [][1])
    with pytest.raises(IndexError):
        measure(model, LAYER, model.run)
    assert hooks(model) == 0


class _Conformer(nn.Module):
    """The parts of NeMo's ConformerEncoder that `ends_in_layer_norm` looks at."""

    def __init__(self, out_proj: bool) -> None:
        super().__init__()
        self.pre_encode = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
        self.out_proj = nn.Linear(4, 4) if out_proj else None


@pytest.mark.parametrize(
    ("path", "out_proj", "expected"),
    [
        ("encoder", False, True),
        ("encoder", True, False),  # the projection comes after the last layer's norm
        ("encoder.layers.0", True, True),
        ("encoder.layers.0.1", False, True),
        ("encoder.layers.0.0", False, False),
        ("encoder.pre_encode", False, False),
        ("encoder.layers", False, False),  # its last child is a layer and no norm
    ],
)
def test_a_layer_that_ends_in_a_layer_norm_is_found(path: str, out_proj: bool, expected: bool) -> None:
    model = nn.Module()
    model.encoder = _Conformer(out_proj)
    assert ends_in_layer_norm(model, Layer(path, 4, 1, 10.0)) is expected


def test_an_encoder_of_convolutions_ends_in_no_layer_norm() -> None:
    model = nn.Module()
    model.encoder = nn.Sequential(nn.LayerNorm(4), nn.Conv1d(4, 4, 1))
    assert not ends_in_layer_norm(model, Layer("encoder", 4, 2, 10.0))
