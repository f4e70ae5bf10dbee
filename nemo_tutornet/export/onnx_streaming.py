# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a cache-aware student for streaming clients: a graph that reads one chunk of features at a time.

NeMo exports such a graph itself, but treats every chunk alike: it drops the first frames of each, because
the chunk before had them already. In NeMo's own streaming the first chunk is shorter, and nothing of it is
dropped. A client whose chunks all have one size, as sherpa-onnx's, must put silence in front of the audio
instead. The subsampling convolutions then read that silence where they read zeros offline, and the first
words change. The graph made here sets all frames before the audio to zero, in front of each convolution. Its
log-probabilities are those of the whole utterance.

Legend: `B` utterances, `F` mel bins, `T` frames of the front end, `V` labels with the blank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.verify_graphs import MOST_CONTEXT
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs


def is_cache_aware(model: Any) -> bool:
    """Whether a model was trained to read an utterance in chunks, each once.

    It has chunked attention with a limited past, causal convolutions and causal subsampling.

    Args:
        model: a NeMo CTC model.
    """
    encoder = model.encoder
    if getattr(encoder, "att_context_style", None) != "chunked_limited":
        return False
    causal = encoder.conv_context_size[1] == 0 and encoder.att_context_size[0] > 0
    subsampling = encoder.pre_encode
    # Other kinds of subsampling have no masks, by which the frames before the audio become zero.
    masked = hasattr(getattr(subsampling, "conv", None), "_create_mask")
    return causal and masked and getattr(subsampling, "is_causal", False)


def refuse_large_context(model: Any, called: Path) -> None:
    """Refuses a model whose chunks or caches would take any amount of memory, as a hostile file's could.

    Args:
        model: a cache-aware model.
        called: the model's file, for the message.

    Raises:
        TutorError: the model's attention spans more than `MOST_CONTEXT` frames.
    """
    context = max(model.encoder.att_context_size)
    if context > MOST_CONTEXT:
        raise TutorError(
            f"the attention of {called} spans {context} frames (encoder.att_context_size); a graph for "
            f"streaming is written for at most {MOST_CONTEXT}."
        )


def streaming_entries(model: Any) -> dict[str, str]:
    """Returns the metadata that a streaming client reads besides those of every exported graph.

    `window_size` and `chunk_shift` are the frames of a chunk and from one chunk to the next;
    `frames_in_front` are those that the client puts in front of the audio, whose values do not matter. The
    other entries are the shapes of the caches, without the batch.

    Args:
        model: a cache-aware model.
    """
    streaming = model.encoder.streaming_cfg
    channel, time, _ = model.encoder.get_initial_cache_state(batch_size=1)
    entries = {
        "window_size": streaming.chunk_size[1] + streaming.pre_encode_cache_size[1],
        "chunk_shift": streaming.shift_size[1],
        "frames_in_front": _frames_in_front(model.encoder),
    }
    for name, cache in (("cache_last_channel", channel), ("cache_last_time", time)):
        layers, _, *shape = cache.shape
        entries.update({f"{name}_dim{i}": size for i, size in enumerate((layers, *shape), 1)})
    return {key: str(value) for key, value in entries.items()}


@contextmanager
def exports_chunks(model: Any) -> Iterator[None]:
    """Makes `model.export` write the streaming graph while the context is open.

    Its inputs are `audio_signal` `[B, F, T]`, `length` `[B]` and the caches of the chunk before; its outputs
    are `logprobs`, `encoded_lengths` and the caches for the next chunk. A chunk whose
    `cache_last_channel_len` is 0 is the first of an utterance.

    Args:
        model: a cache-aware model.
    """
    encoder, convolutions = model.encoder, model.encoder.pre_encode.conv
    with suppress_nemo_logs():
        model.set_export_config({"cache_support": "True"})
    whole_mask, forward = convolutions._create_mask, encoder.forward_for_export
    first: Tensor | None = None
    in_front = 0

    def create_mask(self: Any, tensor: Tensor, lengths: Tensor) -> Tensor:
        """NeMo's mask of the valid frames `[B, T, F]`, without the frames before the audio."""
        nonlocal in_front
        mask = whole_mask(tensor, lengths)
        if first is None:
            return mask
        before = torch.arange(tensor.shape[2], device=tensor.device)[None, :, None] < in_front
        in_front //= 2  # the next convolution has a stride of two
        return mask * (~(before & first[:, None, None])).to(mask.dtype)

    def forward_for_export(
        audio_signal: Tensor,
        length: Tensor,
        cache_last_channel: Tensor | None = None,
        cache_last_time: Tensor | None = None,
        cache_last_channel_len: Tensor | None = None,
    ) -> Any:
        nonlocal first, in_front
        first = None if cache_last_channel_len is None else cache_last_channel_len == 0
        in_front = _frames_in_front(encoder)
        return forward(audio_signal, length, cache_last_channel, cache_last_time, cache_last_channel_len)

    convolutions._create_mask = MethodType(create_mask, convolutions)
    encoder.forward_for_export = forward_for_export
    try:
        yield
    finally:
        del convolutions._create_mask, encoder.forward_for_export
        encoder.export_cache_support = False


def _frames_in_front(encoder: Any) -> int:
    """Frames that make the first chunk as long as the others: those whose encoded frames are dropped."""
    return int(encoder.streaming_cfg.drop_extra_pre_encoded * encoder.subsampling_factor)
