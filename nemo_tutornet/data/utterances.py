# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What identifies an utterance in a cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    """What a cache knows an utterance by.

    Attributes:
        audio: the file as the builder and the training both write it.
        offset: seconds into it.
        duration: seconds; None is the whole rest.
    """

    audio: str
    offset: float = 0.0
    duration: float | None = None

    @property
    def key(self) -> str:
        """Canonical text; times are in whole milliseconds, so that rounding in a manifest does not matter."""
        duration = "" if self.duration is None else round(self.duration * 1000)
        return f"{self.audio}|{round(self.offset * 1000)}|{duration}"

    def __str__(self) -> str:
        length = "to its end" if self.duration is None else f"for {self.duration:g} s"
        return f"{self.audio} from {self.offset:g} s {length}"


def key_bytes(utterance: Utterance) -> bytes:
    """A key as it stands in a shard; file names that are not UTF-8 survive."""
    return utterance.key.encode("utf-8", "surrogateescape")


def key_hash(key: bytes) -> int:
    """64 bits by which utterances are found; the key itself is compared when it is read."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
