# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Early exit of a live teacher: the encoder stops after the hint layer, which saves the layers behind it.

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
    """Raised when the hint layer has run, to skip the layers behind it."""


@dataclass(frozen=True)
class EarlyExit:
    """A shortened forward pass of an encoder, which ends after one layer and returns the output lengths.

    Attributes:
        layer: the last layer that runs.
        lengths_from: path of a module that runs before the exit and returns the lengths of the encoder's
            output. None if these lengths equal those of the features.
        lengths_dtype: data type of the lengths that the encoder returns.
    """

    layer: Layer
    lengths_from: str | None
    lengths_dtype: torch.dtype

    def run(self, model: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the encoder up to the layer.

        Args:
            model: the model that owns the encoder.
            features: output of the front end `[B, D, T]`.
            lengths: valid frames of the features `[B]`.

        Returns:
            The layer's output `[B, D, T']`, and the lengths `[B]` that the whole encoder would return.
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
    """Finds an early exit for a layer, and verifies that it returns the same tensors as the whole encoder.

    Args:
        model: a model in eval mode.
        layer: a layer inside the model's encoder.
        features: output of the front end `[B, D, T]`, for utterances whose lengths cover every case of
            rounding.
        lengths: valid frames of the features `[B]`.

    Returns:
        The early exit, or None if the whole encoder has to run. The latter holds if the layer runs more than
        once, or if no module before the exit returns the lengths of the encoder's output.
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
        # The outermost module: inner modules may process parts of a batch.
        source = min(sources, key=lambda path: path.count("."))
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
    """Returns the lengths `[B]` from a module's output, the second item of a pair; None if it has none."""
    second = output[1] if isinstance(output, tuple) and len(output) == 2 else None
    return second if isinstance(second, Tensor) and second.shape == (batch,) else None


def _same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and torch.equal(found.to(expected.dtype), expected)
