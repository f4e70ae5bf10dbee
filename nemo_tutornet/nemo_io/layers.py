# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hint and guided layers by module path, whatever the layer returns.

NeMo's layers do not agree on what they return: a `JasperBlock` gives (list of `[B, D, T]`, lengths), a
`ConformerLayer` `[B, T, D]`, an encoder (`[B, D, T]`, lengths). Which axis is time is measured once
(`measure`), not guessed from names.

Legend: `B` utterances, `T` frames, `D` width.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import without_process_group

ENCODER = "encoder"
# Audio of two lengths tells the axis of time and the frame's length. In hops of the model's own front end
# both are multiples of every stride and padding in use, so that padding adds the same to either.
PROBE_HOPS = (256, 512)
# The shape of a layer's tensor, or in words what it returned instead.
_Returned = tuple[int, ...] | str


@dataclass(frozen=True)
class Layer:
    """A layer that can serve as hint or guided layer.

    Attributes:
        path: module path in the model, e.g. `encoder.layers.3`.
        width: `D`.
        time_axis: 2 for `[B, D, T]`, 1 for `[B, T, D]`.
        frame_ms: milliseconds from one frame to the next.
    """

    path: str
    width: int
    time_axis: int
    frame_ms: float


class Capture:
    """Keeps what a module returns while the context is open.

    Args:
        model: the root of the path.
        path: module path; the encoder for `encoder`.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self._module = find_module(model, path)
        self._handle: Any = None
        self.output: Any = None

    def __enter__(self) -> Capture:
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.output = output

    def tensor(self, time_axis: int) -> Tensor:
        """The captured layer as `[B, D, T]`."""
        tensor = _unwrap(self.output)
        assert tensor is not None, "measure() accepted this layer"
        return tensor if time_axis == 2 else tensor.transpose(1, 2)


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        TutorError: no such path; the nearest existing ones are named.
    """
    modules = dict(model.named_modules())
    if path in modules and path:
        return modules[path]
    near = difflib.get_close_matches(path, [name for name in modules if name], n=3, cutoff=0.3)
    near = near or [name for name, _ in model.named_children()]
    raise TutorError(
        f"there is no layer {path!r} in {type(model).__name__}; the nearest are {', '.join(map(repr, near))}."
    )


def measure(
    model: nn.Module, path: str, run: Callable[[float], Any], key: str | None = None, hop: float = 0.01
) -> Layer:
    """Measures a layer's width, axis of time and frame length by running the model on audio of two lengths.

    Args:
        model: the root of the path.
        path: module path.
        run: runs the model on that many seconds of audio.
        key: the config's key that names the layer, for the sentence that refuses it.
        hop: seconds from one frame of the front end to the next.

    Raises:
        TutorError: no such layer, or its output is not a sequence of frames.
    """
    try:
        seen = _observe({path: find_module(model, path)}, run, hop)
        return _as_layer(type(model).__name__, path, seen[path], hop)
    except TutorError as error:
        raise TutorError(f"{key}: {error}" if key else str(error)) from None


def measure_all(
    modules: Mapping[str, nn.Module], run: Callable[[float], Any], batch: int, hop: float = 0.01
) -> list[Layer]:
    """Measures many layers of one model in the same two runs and leaves out those that `measure` refuses.

    Args:
        modules: by their paths in the model.
        run: runs the model on a batch of that many seconds of audio.
        batch: utterances in it. With more than one, what all utterances share (a positional embedding) is
            told from frames.
        hop: seconds from one frame of the front end to the next.

    Returns:
        The layers that return frames of each utterance, in the order of `modules`.
    """
    layers = []
    for path, returned in _observe(modules, run, hop).items():
        if all(isinstance(one, str) or one[:1] == (batch,) for one in returned):
            with suppress(TutorError):
                layers.append(_as_layer(type(modules[path]).__name__, path, returned, hop))
    return layers


@torch.no_grad()
def encode_silence(model: Any, seconds: float, batch: int = 1) -> int:
    """Runs a NeMo model's front end and encoder on that much silence, on the model's device and in the mode
    that it is in.

    Args:
        model: with a preprocessor and an encoder.
        seconds: of audio.
        batch: utterances.

    Returns:
        Frames of the encoder's output.
    """
    samples = round(seconds * int(model.preprocessor._sample_rate))
    device = next(model.parameters()).device
    signal, lengths = torch.zeros(1, samples, device=device), torch.tensor([samples], device=device)
    features, lengths = model.preprocessor(input_signal=signal, length=lengths)
    with without_process_group():
        return int(
            model.encoder(audio_signal=features.repeat(batch, 1, 1), length=lengths.repeat(batch))[1][0]
        )


def hop_of(model: Any) -> float:
    """Seconds from one frame of a NeMo model's front end to the next; the usual 10 ms where it does not
    tell.
    """
    samples = getattr(getattr(model.preprocessor, "featurizer", None), "hop_length", None)
    return int(samples) / int(model.preprocessor._sample_rate) if samples else 0.01


def measure_encoder(model: Any) -> Layer:
    """The output of a NeMo model's encoder, measured on silence.

    Raises:
        TutorError: its output is not a sequence of frames.
    """
    return measure(model, ENCODER, partial(encode_silence, model), hop=hop_of(model))


def ends_in_layer_norm(model: Any, layer: Layer) -> bool:
    """True where a layer's output is layer-normalised (the Conformer family), so its energy is nearly
    constant.
    """
    module = model.get_submodule(layer.path)
    if layer.path == ENCODER and hasattr(module, "layers"):
        if getattr(module, "out_proj", None) is not None:
            return False
        module = module.layers[-1]
    children = list(module.children())
    return isinstance(module, nn.LayerNorm) or (bool(children) and isinstance(children[-1], nn.LayerNorm))


def _observe(
    modules: Mapping[str, nn.Module], run: Callable[[float], Any], hop: float
) -> dict[str, list[_Returned]]:
    """What each module returns for audio of each length; where it runs several times, the last counts. No
    tensor is kept.
    """
    seen: dict[str, list[_Returned]] = {
        path: ["nothing: it did not run" for _ in PROBE_HOPS] for path in modules
    }

    def keep(path: str, turn: int, module: nn.Module, args: Any, output: Any) -> None:
        tensor = _unwrap(output)
        seen[path][turn] = (
            f"a {type(output).__name__} without a tensor" if tensor is None else tuple(tensor.shape)
        )

    for turn, hops in enumerate(PROBE_HOPS):
        with ExitStack() as hooks, torch.no_grad():
            for path, module in modules.items():
                hooks.callback(module.register_forward_hook(partial(keep, path, turn)).remove)
            run(hops * hop)
    return seen


def _as_layer(owner: str, path: str, returned: Sequence[_Returned], hop: float) -> Layer:
    """A layer from what it returned for audio of each length; a TutorError where that is no sequence of
    frames.
    """
    shapes: list[tuple[int, ...]] = []
    for one in returned:
        if isinstance(one, str) or len(one) != 3:
            what = one if isinstance(one, str) else f"a tensor of shape {list(one)}"
            raise TutorError(f"layer {path!r} of {owner} returns {what}; choose a layer that returns frames.")
        shapes.append(one)
    axes = [axis for axis in (1, 2) if shapes[0][axis] != shapes[1][axis]]
    if len(axes) != 1:
        short, long = (f"{hops * hop:g} s" for hops in PROBE_HOPS)
        raise TutorError(
            f"layer {path!r} of {owner} returns {list(shapes[0])} and {list(shapes[1])} for {short} and "
            f"{long} of audio; "
            f"choose a layer with one axis of time and one of width."
        )
    (axis,) = axes
    frames = shapes[1][axis] - shapes[0][axis]
    frame_ms = 1000 * (PROBE_HOPS[1] - PROBE_HOPS[0]) * hop / frames
    return Layer(path=path, width=shapes[0][3 - axis], time_axis=axis, frame_ms=round(frame_ms, 3))


def _unwrap(output: Any) -> Tensor | None:
    """The tensor of frames in a layer's output: the output itself, the first of a tuple, the last of a
    list.
    """
    while isinstance(output, (tuple, list)) and output:
        output = output[-1] if isinstance(output, list) else output[0]
    return output if isinstance(output, Tensor) else None


# Lengths on which the two encoders' frame counts are compared: odd ones, where rounding differs most.
CHECKED_SECONDS = (0.31, 0.77, 1.5, 2.93, 4.2)
