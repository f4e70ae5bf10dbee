# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The identity of an utterance in a cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Utterance:
    """A part of an audio file, by which a cache finds its targets.

    Attributes:
        audio: path or name of the file, spelled alike when the cache is built and during training.
        offset: seconds from the start of the file.
        duration: length in seconds; None means to the end of the file.
        view: name of the speed at which it is played (`views.View`); empty as it was recorded.
    """

    audio: str
    offset: float = 0.0
    duration: float | None = None
    view: str = ""

    @property
    def key(self) -> str:
        """The identity as text: the file, then offset and duration in whole milliseconds, then the view.

        Manifests round times differently; whole milliseconds make them equal.

        Example:
            >>> Utterance("a.wav", offset=0.5, duration=1.2500004).key
            'a.wav|500|1250'
            >>> Utterance("a.wav").key
            'a.wav|0|'
            >>> Utterance("a.wav", view="speed 14400/16000 scipy").key
            'a.wav|0|@speed 14400/16000 scipy'
        """
        duration = "" if self.duration is None else round(self.duration * 1000)
        # Without a view, a key ends in digits or `|`, so no two keys are alike.
        view = f"@{self.view}" if self.view else ""
        return f"{self.audio}|{round(self.offset * 1000)}|{duration}{view}"

    def __str__(self) -> str:
        length = "to its end" if self.duration is None else f"for {self.duration:g} s"
        speed = f" ({self.view})" if self.view else ""
        return f"{self.audio} from {self.offset:g} s {length}{speed}"


def key_bytes(utterance: Utterance) -> bytes:
    """Encodes the key of an utterance as it is stored in a shard; also file names that are not UTF-8.

    Example:
        >>> key_bytes(Utterance("a.wav", offset=0.5, duration=1.25))
        b'a.wav|500|1250'
    """
    return utterance.key.encode("utf-8", "surrogateescape")


def key_hash(key: bytes) -> int:
    """Hashes a key to 64 bits, by which a reader finds an utterance before it compares the key itself.

    Example:
        >>> key_hash(b"a.wav|0|") == key_hash(b"a.wav|0|") != key_hash(b"b.wav|0|")
        True
        >>> key_hash(b"a.wav|0|") < 2**64
        True
    """
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
