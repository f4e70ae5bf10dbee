# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcripts that a student cannot learn: characters without a label, and more labels than frames.

NeMo drops characters without a label from the targets and says nothing. With a character student in lower
case, for example, a transcript in capitals becomes a row of spaces. The losses fall as usual.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

_SHOWN = 12  # characters in a message
# Of Unicode's punctuation, what a speaker reads out: percent, and, at, number, section, per mille.
_SPOKEN_MARKS = "%&@#\u00a7\u2030"


@dataclass
class TranscriptLosses:
    """The transcripts of a data set that a student cannot learn as they are.

    Attributes:
        transcripts: rows with a transcript.
        characters: letters, digits, symbols and white space without a label, each with the number of rows
            that hold it. Punctuation is not counted: a student without it is usual.
        losing: rows with such a character.
        empty: rows without any letter, digit, mark or symbol that has a label.
        first: name and transcript of the first row with such a character.
        too_long: rows whose labels do not fit their frames, so that their CTC loss counts as 0.
        first_too_long: name of the first of these rows, its labels and its frames.
    """

    transcripts: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    losing: int = 0
    empty: int = 0
    first: tuple[str, str] | None = None
    too_long: int = 0
    first_too_long: tuple[str, int, int] | None = None

    def in_words(self, what: str, remedy: str) -> list[str]:
        """Returns a sentence for each kind of loss.

        Args:
            what: the data set, e.g. `model.train_ds`.
            remedy: what to do about characters without a label.
        """
        sentences = []
        if self.first is not None:
            shown = " ".join(map(repr, [c for c, _ in self.characters.most_common(_SHOWN)]))
            more = " ..." if len(self.characters) > _SHOWN else ""
            sentences.append(
                f"{what}: {self.losing} of {self.transcripts} transcripts hold characters that the student "
                f"has no label for, and that are left out: {shown}{more} (first in {self.first[0]}: "
                f"{self.first[1][:60]!r}); {remedy}."
            )
        if self.first_too_long is not None:
            name, labels, frames = self.first_too_long
            sentences.append(
                f"{what}: {self.too_long} of {self.transcripts} transcripts have more labels than the "
                f"student has frames, and CTC cannot learn them (first {name}: {labels} labels, {frames} "
                "frames); correct the text or the duration, or take a student with shorter frames or with "
                "subwords."
            )
        return sentences


def find_losses(
    rows: Iterable[tuple[str, str, list[int] | None, float | None]],
    is_lost: Callable[[str], bool],
    frame_seconds: float,
) -> TranscriptLosses:
    """Counts what a student cannot learn.

    Args:
        rows: name, transcript, labels and seconds of each utterance; None where they are not known.
        is_lost: whether the student has no label for a character.
        frame_seconds: seconds from one frame of the student to the next.

    Returns:
        The counts.

    Example:
        >>> rows = [("a.wav", "Go", [1], 1.0), ("b.wav", "no, stop", [2], 1.0), ("c.wav", "oo", [3, 3], 0.04)]
        >>> lost = find_losses(rows, is_lost=str.isupper, frame_seconds=0.02)
        >>> lost.losing, dict(lost.characters), lost.too_long, lost.first_too_long
        (1, {'G': 1}, 1, ('c.wav', 3, 2))
    """
    found, known = TranscriptLosses(), dict[str, bool]()
    for name, text, labels, seconds in rows:
        if not text.strip():
            continue
        found.transcripts += 1
        characters = {c for c in text if not is_punctuation(c)}
        for c in characters - known.keys():
            known[c] = is_lost(c)
        lost = {c for c in characters if known[c]}
        if lost:
            found.losing += 1
            found.characters.update(sorted(lost))
            found.first = found.first or (name, text)
            found.empty += not any(not c.isspace() for c in characters - lost)
        if labels and seconds is not None:
            # CTC needs a blank between equal neighbours.
            needed = len(labels) + sum(a == b for a, b in pairwise(labels))
            frames = math.ceil(seconds / frame_seconds)
            if needed > frames:
                found.too_long += 1
                found.first_too_long = found.first_too_long or (name, needed, frames)
    return found


def is_punctuation(character: str) -> bool:
    """Returns whether a character is a mark that is not spoken.

    Letters, digits, combining marks (the vowel signs of Devanagari and Thai, for example) and symbols are
    spoken, and so are a few marks that Unicode counts as punctuation.

    Example:
        >>> [c for c in "a7\u093e$%&.,-'" if is_punctuation(c)]
        ['.', ',', '-', "'"]
    """
    return unicodedata.category(character).startswith("P") and character not in _SPOKEN_MARKS
