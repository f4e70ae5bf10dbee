# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a graph that reads nothing behind `length`, so that clients may pad and batch utterances.

NeMo's exporter switches the masks of convolutional encoders off, and the exported convolutions then mix
padded frames into valid ones. sherpa-onnx and onnx-asr pad the utterances of a batch, and onnx-asr feeds one
frame more than `length` says even for a single utterance. The graph made here keeps a mask in front of each
convolution over time, and sets the features behind `length` to zero, as NeMo's front end does.

Legend: `B` utterances, `F` mel bins, `C` channels, `T` frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor

# An entry of the graph's metadata, which `nemo_tutornet.export.verify_graphs` holds the graph to.
PADDING_IS_IGNORED = {"padding": "ignored"}


@contextmanager
def ignores_padding(model: Any) -> Iterator[None]:
    """Makes `model.export` write a graph whose valid frames do not depend on padding, while the context is
    open.

    The graph has the inputs `audio_signal` `[B, F, T]` and `length` `[B]`. NeMo's exporter changes the model,
    which must not be used afterwards.

    Args:
        model: a NeMo CTC model.
    """
    from nemo.collections.asr.parts.submodules.jasper import MaskedConv1d, SqueezeExcite
    from nemo.core.classes.exportable import Exportable

    encoder = model.encoder
    # NeMo's features of a single frame are 0, because its standard deviation is. A client divides by zero.
    shortest = 2 if model.cfg.preprocessor.get("normalize", "per_feature") == "per_feature" else 1
    for module in encoder.modules():
        if isinstance(module, MaskedConv1d):
            # A convolution of single frames moves nothing from a padded frame to a valid one.
            module.use_mask = module.conv.kernel_size[0] > 1
            module.mask_input = MethodType(_mask_input, module)
        elif isinstance(module, SqueezeExcite):
            module.make_pad_mask = MethodType(_make_pad_mask, module)
    if hasattr(encoder, "forward_for_export"):
        forward: Callable[..., Any] = encoder.forward_for_export
    else:
        forward = encoder.forward
        # NeMo's own version switches the masks off.
        encoder._prepare_for_export = MethodType(Exportable._prepare_for_export, encoder)

    def forward_for_export(audio_signal: Tensor, length: Tensor) -> Any:
        frames = torch.arange(audio_signal.shape[2], device=audio_signal.device)
        valid = frames[None, None] < (length * (length >= shortest))[:, None, None]
        # Not a product, because padding may be anything, NaN too.
        return forward(audio_signal=audio_signal.masked_fill(~valid, 0.0), length=length)

    encoder.forward_for_export = forward_for_export
    try:
        yield
    finally:
        del encoder.forward_for_export


def reads_length(model: Any) -> bool:
    """Whether NeMo's own exporter gives a model's graph the input `length`.

    It does unless the encoder consists of convolutions alone, without squeeze-and-excitation.

    Args:
        model: a NeMo CTC model.
    """
    from nemo.collections.asr.modules import ConvASREncoder
    from nemo.collections.asr.parts.submodules.jasper import SqueezeExcite

    encoder = model.encoder
    excited = any(isinstance(module, SqueezeExcite) for module in encoder.modules())
    return excited or not isinstance(encoder, ConvASREncoder)


def pads_safely(model: Any) -> bool:
    """Whether NeMo's own result for an utterance is independent of the padding of its batch.

    It is not where a convolutional encoder has no masks, or an encoder normalises over time.

    Args:
        model: a NeMo CTC model.
    """
    from nemo.collections.asr.modules import ConvASREncoder
    from nemo.collections.asr.parts.submodules.jasper import MaskedConv1d

    modules = list(model.encoder.modules())
    if any(isinstance(module, (torch.nn.GroupNorm, torch.nn.InstanceNorm1d)) for module in modules):
        return False
    masked = {id(module.conv) for module in modules if isinstance(module, MaskedConv1d)}
    convolutions = {id(module) for module in modules if isinstance(module, torch.nn.Conv1d)}
    return not isinstance(model.encoder, ConvASREncoder) or convolutions <= masked


def _valid(frames: Tensor, lengths: Tensor) -> Tensor:
    """The valid frames `[B, 1, T]` of a tensor `[B, C, T]`."""
    # NeMo's own masks are cut from a constant, which would limit the length of an utterance.
    return torch.arange(frames.shape[2], device=frames.device)[None, None] < lengths[:, None, None]


def _mask_input(self: Any, x: Tensor, lens: Tensor) -> Tensor:
    return x * _valid(x, lens).to(x.dtype)


def _make_pad_mask(self: Any, seq_lens: Tensor, max_audio_length: int, device: Any = None) -> Tensor:
    frames = torch.arange(max_audio_length, device=seq_lens.device)
    return frames[None, None] < seq_lens[:, None, None]
