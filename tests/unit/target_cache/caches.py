# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the cache on disk share: made-up targets, and caches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nemo_tutornet.data.utterances import Utterance, key_bytes, key_hash
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import UtteranceTargets
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.target_cache.writer import CacheWriter

PROVENANCE = {"teacher": "ab12", "front_end": {"features": 80, "window": "hann"}, "layer": None}
FULL = CacheSchema(labels=6, width=4, hypotheses=True)
SPARSE = CacheSchema(labels=300, min_posterior=1e-4, width=4)
RATE = 16000


def utterances(count: int, audio: str = "a.wav") -> list[Utterance]:
    return [Utterance(audio, offset=float(i), duration=1.0) for i in range(count)]


def targets(
    utterance: Utterance, schema: CacheSchema, frames: int = 5, hidden_frames: int = 7, text: str = "hé"
) -> UtteranceTargets:
    generator = torch.Generator().manual_seed(key_hash(key_bytes(utterance)) % 2**31)
    log_probs = hidden = None
    if schema.labels is not None:
        log_probs = (4 * torch.randn(frames, schema.labels, generator=generator)).log_softmax(-1)
    if schema.width is not None:
        hidden = torch.randn(schema.width, hidden_frames, generator=generator)
    further = tuple(torch.randn(width, frames, generator=generator) for width in schema.further_widths)
    return UtteranceTargets(
        frames * 640,
        frames,
        log_probs,
        hidden,
        text if schema.hypotheses else None,
        0.5,
        further_hidden=further,
    )


def build(
    folder: Path, schema: CacheSchema = FULL, count: int = 5, max_shard_bytes: int = 1, **files: bytes
) -> list[Utterance]:
    """A finished cache; of one utterance a shard unless told otherwise."""
    keys = utterances(count)
    with CacheWriter(folder, PROVENANCE, schema, RATE, max_shard_bytes=max_shard_bytes) as writer:
        for key in keys:
            writer.add(key, targets(key, schema))
        writer.finish({name.replace("__", "."): content for name, content in files.items()})
    return keys


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def read_all(folder: Path, keys: Sequence[Utterance]) -> None:
    reader = CacheReader(folder)
    for key in keys:
        reader.read([key])


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """One sentence that names all the words, and nothing but a `TutorError`."""
    with pytest.raises(TutorError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 700
    for word in words:
        assert word in message
