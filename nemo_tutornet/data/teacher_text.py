# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The rule by which the text of a teacher becomes text that a student can write.

The loss `pseudo`, `nemo-tutornet pseudo-labels` and `nemo-tutornet adapt` share it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from nemo_tutornet.data.transcripts import is_punctuation

_APOSTROPHES = re.compile("(?<=\\w)[\u2019\u02bc](?=\\w)")


class TeacherText:
    """Writes a teacher's text in the labels of a student.

    The text stays as it is where the student has labels for all of it. Otherwise the first of these changes
    that gives a text with labels for all characters is made:

    1. composed or decomposed characters (NFC, NFD);
    2. lower case, then upper case;
    3. in addition, punctuation without a label is left out, with a space in place of a dash or slash.

    Letters, digits, combining marks and symbols are never left out: the text is not used then.

    Args:
        encode: converts a text to the student's labels; None if a character has no label.
        decode: converts the student's labels to a text.

    Attributes:
        decode: the argument `decode`.
        missing: characters without a label, each with the number of texts in which `labels` met it in vain.

    Example:
        >>> labels = "abc "
        >>> def encode(text):
        ...     return None if set(text) - set(labels) else [labels.index(c) for c in text]
        >>> text = TeacherText(encode, lambda ids: "".join(labels[i] for i in ids))
        >>> text.written("A-B, cab."), text.labels("ab 7"), dict(text.missing)
        ('a b cab', None, {'7': 1})
    """

    def __init__(self, encode: Callable[[str], list[int] | None], decode: Callable[[list[int]], str]) -> None:
        self._encode, self.decode = encode, decode
        self.missing: Counter[str] = Counter()

    def labels(self, text: str) -> list[int] | None:
        """Converts a text to the student's labels, and counts what has no label.

        Args:
            text: the text of a teacher.

        Returns:
            The labels; None where the student has no labels for the text, or only for its spaces.
        """
        ids = self._labels(text)
        if ids is None:
            self.missing.update(sorted(self._lost(text)))
        return ids

    def written(self, text: str) -> str | None:
        """Returns a text as the student would write it; None where the student has no labels for it."""
        ids = self._labels(text)
        return None if ids is None else self.decode(ids).strip()

    def _labels(self, text: str) -> list[int] | None:
        text = " ".join(text.split())  # also tabs and no-break spaces; an aggregate tokenizer begins with one
        ids = self._first(text)
        if ids is None:
            # NeMo's parsers and tokenizers would join words at a mark without a label, or write <unk>.
            marks = {c for c in text if is_punctuation(c) and not self._encode(c)}
            bare = _without(_APOSTROPHES.sub("'", text) if self._encode("'") else text, marks)
            ids = self._first(bare) if bare != text else None
        return ids

    def _first(self, text: str) -> list[int] | None:
        for form in _forms(text):
            ids = self._encode(form)
            if ids and self.decode(ids).strip():
                return ids
        return None

    def _lost(self, text: str) -> set[str]:
        """Returns the characters of a text that have no label in any form."""
        return {
            c
            for c in text
            if not (c.isspace() or is_punctuation(c)) and all(self._encode(f) is None for f in _forms(c))
        }


def _forms(text: str) -> Iterator[str]:
    cases = (text, text.lower(), text.upper())
    forms = [
        form
        for case in cases
        for form in (case, unicodedata.normalize("NFC", case), unicodedata.normalize("NFD", case))
    ]
    yield from dict.fromkeys(forms)


def _without(text: str, marks: Collection[str]) -> str:
    """Leaves punctuation marks out of a text."""
    spaces = {c for c in marks if unicodedata.category(c) == "Pd" or c in "/\\_\u2026"}
    return " ".join("".join(" " if c in spaces else c for c in text if c in spaces or c not in marks).split())


def without_case_and_punctuation(text: str) -> str:
    """Returns a text for a comparison in which capitals and punctuation do not count.

    Example:
        >>> without_case_and_punctuation("Well-known, isn't it?")
        'well known isnt it'
    """
    text = _APOSTROPHES.sub("'", unicodedata.normalize("NFC", text).lower())
    return _without(text, {c for c in text if is_punctuation(c)})
