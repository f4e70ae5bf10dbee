# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hint and guided layers by module path, whatever the layer returns.

NeMo's layers do not agree on what they return: a `JasperBlock` gives (list of `[B, D, T]`, lengths), a `ConformerLayer`
`[B, T, D]`, an encoder (`[B, D, T]`, lengths). Which axis is time is measured once (`measure`), not guessed from names.

Legend: `B` utterances, `T` frames, `D` width.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, List, Optional, Tuple, Type

import torch
from torch import Tensor, nn

from nemo_tutornet.errors import TutorError

ENCODER = "encoder"
# Audio of two lengths tells the axis of time; both are multiples of every stride in use, in 10 ms hops at 16 kHz.
PROBE_SECONDS = (2.56, 5.12)


@dataclass(frozen=True)
class Layer:
    """A layer that can serve as hint or guided layer.

    Attributes:
        path: module path in the model, e.g. `encoder.layers.3`.
        width: `D`.
        time_axis: 2 for `[B, D, T]`, 1 for `[B, T, D]`.
        shift: milliseconds per frame.
    """

    path: str
    width: int
    time_axis: int
    shift: float


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
        self.ran = False

    def __enter__(self) -> Capture:
        self._handle = self._module.register_forward_hook(self._keep)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.output, self.ran = output, True

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
    raise TutorError(f"there is no layer {path!r} in {type(model).__name__}; the nearest are {', '.join(map(repr, near))}.")


def measure(model: nn.Module, path: str, run: Callable[[float], Any]) -> Layer:
    """Measures a layer's width, axis of time and frame shift by running the model on audio of two lengths.

    Args:
        model: the root of the path.
        path: module path.
        run: runs the model on that many seconds of audio.

    Raises:
        TutorError: no such layer, or its output is not a sequence of frames.
    """
    shapes: List[Tuple[int, ...]] = []
    for seconds in PROBE_SECONDS:
        with Capture(model, path) as captured, torch.no_grad():
            run(seconds)
        tensor = _unwrap(captured.output)
        if tensor is None or tensor.dim() != 3:
            what = f"a {type(captured.output).__name__} without a tensor" if captured.ran else "nothing: it did not run"
            what = what if tensor is None else f"a tensor of shape {list(tensor.shape)}"
            raise TutorError(f"layer {path!r} of {type(model).__name__} returns {what}; choose a layer that returns frames.")
        shapes.append(tuple(tensor.shape))
    axes = [axis for axis in (1, 2) if shapes[0][axis] != shapes[1][axis]]
    if len(axes) != 1:
        raise TutorError(
            f"layer {path!r} of {type(model).__name__} returns {list(shapes[0])} and {list(shapes[1])} "
            f"for {PROBE_SECONDS[0]} s and {PROBE_SECONDS[1]} s of audio; choose a layer with one axis of time and one of width."
        )
    (axis,) = axes
    frames = shapes[1][axis] - shapes[0][axis]
    shift = 1000 * (PROBE_SECONDS[1] - PROBE_SECONDS[0]) / frames
    return Layer(path=path, width=shapes[0][3 - axis], time_axis=axis, shift=round(shift, 3))


def _unwrap(output: Any) -> Optional[Tensor]:
    """The tensor of frames in a layer's output: the output itself, the first of a tuple, the last of a list."""
    while isinstance(output, (tuple, list)) and output:
        output = output[-1] if isinstance(output, list) else output[0]
    return output if isinstance(output, Tensor) else None
