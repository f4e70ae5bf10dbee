# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What makes a live teacher cheaper: an encoder that stops behind the hint layer, and a CUDA stream of its
own.

Legend: `B` utterances, `D` width, `T` frames.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.nemo_io.layers import Capture, Layer, find_module


class _Reached(Exception):
    """The hint layer has run; nothing behind it is wanted."""


@dataclass(frozen=True)
class EarlyExit:
    """A way through an encoder that ends behind one of its layers and still knows the lengths of the
    encoder's output.

    Attributes:
        layer: the last that runs.
        lengths_from: path of a module on the way that returns those lengths; None where they are the
            features' own.
        lengths_dtype: of the lengths that the encoder returns.
    """

    layer: Layer
    lengths_from: str | None
    lengths_dtype: torch.dtype

    def run(self, model: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The layer `[B, D, T']` and the lengths `[B]` that the whole encoder would return, from a front
        end's output.
        """
        with ExitStack() as stack:
            hidden = stack.enter_context(Capture(model, self.layer.path))
            source = (
                None if self.lengths_from is None else stack.enter_context(Capture(model, self.lengths_from))
            )
            stack.callback(find_module(model, self.layer.path).register_forward_hook(_stop).remove)
            with suppress(_Reached):
                model.encoder(audio_signal=features, length=lengths)
        found = lengths if source is None else _lengths_in(source.output, len(lengths))
        assert found is not None, "find_early_exit() accepted this module"
        return hidden.tensor(self.layer.time_axis), found.to(self.lengths_dtype)


@torch.no_grad()
def find_early_exit(model: Any, layer: Layer, features: Tensor, lengths: Tensor) -> EarlyExit | None:
    """Looks for a cut by running the whole encoder, and keeps it only if it gives the very same tensors.

    Args:
        model: in eval mode.
        layer: inside its encoder.
        features: `[B, D, T]`, of utterances whose lengths show every way of rounding.
        lengths: valid frames of them `[B]`.

    Returns:
        None where the whole encoder has to run: the layer runs more than once or is changed in place behind
        it, or nothing on the way there returns the lengths of the encoder's output.
    """
    ended: list[tuple[str, Tensor | None]] = []

    def keep(path: str, module: Any, args: Any, output: Any) -> None:
        ended.append((path, _lengths_in(output, len(lengths))))

    with ExitStack() as stack:
        for path, module in model.encoder.named_modules(prefix="encoder"):
            stack.callback(module.register_forward_hook(partial(keep, path)).remove)
        whole = stack.enter_context(Capture(model, layer.path))
        expected = model.encoder(audio_signal=features, length=lengths)[1]
    paths = [path for path, _ in ended]
    if paths.count(layer.path) != 1:
        return None
    way = ended[: paths.index(layer.path) + 1]
    sources = [path for path, found in way if _same(found, expected) and paths.count(path) == 1]
    if _same(lengths, expected):
        source = None
    elif sources:
        source = min(
            sources, key=lambda path: path.count(".")
        )  # the outermost: what is inside may work through parts of a batch
    else:
        return None
    cut = EarlyExit(layer, source, expected.dtype)
    hidden, found = cut.run(model, features, lengths)
    return (
        cut if torch.equal(hidden, whole.tensor(layer.time_axis)) and torch.equal(found, expected) else None
    )


def _stop(module: Any, args: Any, output: Any) -> None:
    raise _Reached


def _lengths_in(output: Any, batch: int) -> Tensor | None:
    """The lengths `[B]` in what a module returns: the second of a pair; None where there are none."""
    second = output[1] if isinstance(output, tuple) and len(output) == 2 else None
    return second if isinstance(second, Tensor) and second.shape == (batch,) else None


def _same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and torch.equal(found.to(expected.dtype), expected)
