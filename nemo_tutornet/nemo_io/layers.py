# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hint and guided layers: found by module path, measured, and captured during a forward.

NeMo's layers return different things: a `JasperBlock` (list of `[B, D, T]`, lengths), a `ConformerLayer`
`[B, T, D]`, an encoder (`[B, D, T]`, lengths). `measure` finds the time axis once, by running the model.

Legend: `B` utterances, `T` frames, `D` width.
"""

from __future__ import annotations

import copy
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
# Lengths of audio, in hops of the model's front end, by which `measure` finds the time axis and the frame
# length. Both are multiples of all common strides and paddings, so padding adds the same number of frames to
# both.
PROBE_HOPS = (256, 512)
# Lengths of audio, in seconds, on which the frame counts of two encoders are compared. For odd values like
# these rounding differs most.
CHECKED_SECONDS = (0.31, 0.77, 1.5, 2.93, 4.2)
# The shape of the tensor that a layer returned, or a description of anything else.
_Returned = tuple[int, ...] | str
_OVERWRITTEN = "a tensor that a later module overwrites in place, e.g. an activation"


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
    """Captures the output of a module in every forward inside the context; the last output counts.

    Args:
        model: the model that the path starts from.
        path: module path, e.g. `encoder` or `encoder.layers.3`.
        first: the first output counts. NeMo runs the decoder on the encoder's output first, and with InterCTC
            then on each intermediate layer.

    Attributes:
        output: what the module returned; None before its first forward.

    Raises:
        TutorError: the model has no such module.
    """

    def __init__(self, model: nn.Module, path: str, first: bool = False) -> None:
        self._module, self._first = find_module(model, path), first
        self._name = f"layer {path!r} of {type(model).__name__}"
        self._handle: Any = None
        self._version: int | None = None
        self.output: Any = None

    def __enter__(self) -> Capture:
        self._handle = self._module.register_forward_hook(self._capture)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _capture(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._first and self.output is not None:
            return
        self.output, self._version = output, _version_of(_unwrap(output))

    def tensor(self, time_axis: int) -> Tensor:
        """Returns the captured output as `[B, D, T]`.

        Args:
            time_axis: the axis of time, as `Layer` has it: 1 or 2.

        Raises:
            TutorError: the model has changed the output in place since.
        """
        tensor = _unwrap(self.output)
        assert tensor is not None, "measure() accepted this layer"
        if _version_of(tensor) != self._version:
            raise TutorError(f"{self._name} returns {_OVERWRITTEN}; choose the block that it is in.")
        return tensor if time_axis == 2 else tensor.transpose(1, 2)


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Finds a module by its path.

    Args:
        model: the model that the path starts from.
        path: module path, e.g. `encoder.layers.3`.

    Raises:
        TutorError: the model has no such module; the message has the most similar paths.
    """
    if path:
        with suppress(AttributeError):
            return model.get_submodule(path)
    names = [name for name, _ in model.named_modules() if name]
    similar = difflib.get_close_matches(path, names, n=3, cutoff=0.3)
    similar = similar or [name for name, _ in model.named_children()]
    raise TutorError(
        f"there is no layer {path!r} in {type(model).__name__}; the most similar are "
        f"{', '.join(map(repr, similar))}."
    )


def measure(
    model: nn.Module, path: str, run: Callable[[float], Any], key: str | None = None, hop: float = 0.01
) -> Layer:
    """Measures a layer's width, time axis and frame length by running the model on audio of two lengths.

    Args:
        model: the model that the path starts from.
        path: module path.
        run: runs the model on the given number of seconds of audio.
        key: the config's key for the layer, for the error message.
        hop: seconds from one frame of the front end to the next.

    Returns:
        The measured layer.

    Raises:
        TutorError: the model has no such layer, the layer does not return frames, or a later module
            overwrites them.
    """
    try:
        returned = _observe({path: find_module(model, path)}, run, hop)
        return _as_layer(type(model).__name__, path, returned[path], hop)
    except TutorError as error:
        raise TutorError(f"{key}: {error}" if key else str(error)) from None


def measure_all(
    modules: Mapping[str, nn.Module], run: Callable[[float], Any], batch: int, hop: float = 0.01
) -> list[Layer]:
    """Measures many layers of one model in the same two runs, and leaves out those that `measure` rejects.

    Args:
        modules: the modules by their paths in the model.
        run: runs the model on a batch with the given number of seconds of audio.
        batch: number of utterances in that batch. More than one distinguishes the frames of each utterance
            from a tensor that all utterances share, such as a positional embedding.
        hop: seconds from one frame of the front end to the next.

    Returns:
        The layers that return frames of each utterance, in the order of `modules`.
    """
    layers = []
    for path, returned in _observe(modules, run, hop).items():
        if all(isinstance(shape, str) or shape[:1] == (batch,) for shape in returned):
            with suppress(TutorError):
                layers.append(_as_layer(type(modules[path]).__name__, path, returned, hop))
    return layers


@torch.no_grad()
def encode_silence(model: Any, seconds: float, batch: int = 1) -> int:
    """Runs the front end and the encoder of a NeMo model on silence.

    The model's device and mode (training or evaluation) stay as they are.

    Args:
        model: a NeMo model with a preprocessor and an encoder.
        seconds: length of the silence.
        batch: number of utterances.

    Returns:
        Number of frames of the encoder's output.
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
    """Returns the hop of a NeMo model's front end in seconds, or 0.01 where it is unknown."""
    samples = getattr(getattr(model.preprocessor, "featurizer", None), "hop_length", None)
    return int(samples) / int(model.preprocessor._sample_rate) if samples else 0.01


def measure_encoder(model: Any) -> Layer:
    """The output of a NeMo model's encoder, measured on silence.

    Raises:
        TutorError: its output is not a sequence of frames.
    """
    return measure(model, ENCODER, partial(encode_silence, model), hop=hop_of(model))


def unshare_activations(model: nn.Module) -> None:
    """Gives each layer of a model an activation of its own.

    NeMo's Conformer layers take theirs from a default argument, so that all Conformers of a process share one
    object, which has one mode and is one module under many paths.
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, "activation", None), nn.Module):
            module.activation = copy.deepcopy(module.activation)


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
    """Finds out what each module returns for audio of each length in `PROBE_HOPS`.

    For a module that runs several times, the last run counts. Only shapes are kept. The tensors of the
    shorter run are kept until it ends, to find out whether a later module overwrites them.
    """
    returned: dict[str, list[_Returned]] = {
        path: ["nothing: it did not run" for _ in PROBE_HOPS] for path in modules
    }
    kept: dict[str, tuple[Tensor, int | None]] = {}

    def note(path: str, turn: int, module: nn.Module, args: Any, output: Any) -> None:
        tensor = _unwrap(output)
        returned[path][turn] = (
            f"a {type(output).__name__} without a tensor" if tensor is None else tuple(tensor.shape)
        )
        if tensor is not None and not turn:
            kept[path] = tensor, _version_of(tensor)

    for turn, hops in enumerate(PROBE_HOPS):
        with ExitStack() as hooks, torch.no_grad():
            for path, module in modules.items():
                hooks.callback(module.register_forward_hook(partial(note, path, turn)).remove)
            run(hops * hop)
        for path, (tensor, version) in kept.items():
            if _version_of(tensor) != version:
                returned[path][turn] = _OVERWRITTEN
        kept.clear()
    return returned


def _as_layer(owner: str, path: str, returned: Sequence[_Returned], hop: float) -> Layer:
    """Makes a layer from what it returned for audio of each length.

    Raises:
        TutorError: the layer does not return frames.
    """
    shapes: list[tuple[int, ...]] = []
    for shape in returned:
        if isinstance(shape, str) or len(shape) != 3:
            what = shape if isinstance(shape, str) else f"a tensor of shape {list(shape)}"
            other = "the block that it is in" if what == _OVERWRITTEN else "a layer that returns frames"
            raise TutorError(f"layer {path!r} of {owner} returns {what}; choose {other}.")
        shapes.append(shape)
    axes = [axis for axis in (1, 2) if shapes[0][axis] != shapes[1][axis]]
    if len(axes) != 1:
        short, long = (f"{hops * hop:g} s" for hops in PROBE_HOPS)
        raise TutorError(
            f"layer {path!r} of {owner} returns {list(shapes[0])} and {list(shapes[1])} for {short} and "
            f"{long} of audio; choose a layer with one time axis and one axis of fixed width."
        )
    (axis,) = axes
    frames = shapes[1][axis] - shapes[0][axis]
    frame_ms = 1000 * (PROBE_HOPS[1] - PROBE_HOPS[0]) * hop / frames
    return Layer(path=path, width=shapes[0][3 - axis], time_axis=axis, frame_ms=round(frame_ms, 3))


def _unwrap(output: Any) -> Tensor | None:
    """Finds the tensor in an output: the output itself, the first item of a tuple, the last of a list."""
    while isinstance(output, (tuple, list)) and output:
        output = output[-1] if isinstance(output, list) else output[0]
    return output if isinstance(output, Tensor) else None


def _version_of(tensor: Tensor | None) -> int | None:
    """Returns how often a tensor was changed in place; None where PyTorch does not count that."""
    return None if tensor is None or tensor.is_inference() else tensor._version
