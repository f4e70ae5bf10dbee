# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Characters of transcripts that a model cannot write: each is an error, however good the model is."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nemo_tutornet.data.teacher_text import TeacherText
from nemo_tutornet.data.transcripts import is_punctuation
from nemo_tutornet.evaluation.text_processing import TextProcessing

_SHOWN = 12  # characters in a message
_APOSTROPHES = "\u2019\u02bc"
_SPECIAL = re.compile(r"<.*>$|\[.*\]$")  # <unk>, <|en|> and [UNK] are no text


@dataclass(frozen=True)
class UnwritableCharacters:
    """The characters of transcripts that no label of a model holds.

    Attributes:
        characters: each with its number of occurrences, the most frequent first.
        transcripts: number of transcripts with such a character.
        of: number of transcripts.
        remedies: what to do about them, a phrase each.
    """

    characters: dict[str, int] = field(default_factory=dict)
    transcripts: int = 0
    of: int = 0
    remedies: tuple[str, ...] = ()

    def in_words(self, model: str) -> str:
        """Returns a sentence: how many, which, and what to do.

        Args:
            model: the model's name.
        """
        listed = list(self.characters.items())
        shown = ", ".join(f"{character!r} ({count})" for character, count in listed[:_SHOWN])
        more = " ..." if len(listed) > _SHOWN else ""
        count = sum(self.characters.values())
        return (
            f"{model} cannot write {count} character{'s' * (count != 1)} of {self.transcripts} of "
            f"{self.of} transcripts, and each is an error: {shown}{more}; {'; '.join(self.remedies)}."
        )


def find_unwritable(
    transcripts: Iterable[str], labels: Sequence[str], processing: TextProcessing | None = None
) -> UnwritableCharacters:
    """Finds what a model cannot write of transcripts, after the text processing.

    Args:
        transcripts: as they are in the manifest.
        labels: the model's characters or subword pieces. Byte pieces (`<0x41>`) write every character.
        processing: of transcripts and hypotheses.

    Returns:
        The characters.

    Example:
        >>> found = find_unwritable(["Go to gate 7.", "go"], labels=["a", "e", "g", "o", "t", " "])
        >>> found.characters, found.transcripts
        ({'G': 1, '7': 1, '.': 1}, 1)
        >>> found.remedies[:2]
        ('compare with --lowercase', 'compare with --no-punctuation')
    """
    processing = processing or TextProcessing()
    texts = [" ".join(processing.apply(text).split()) for text in transcripts]
    if any(label.startswith("<0x") for label in labels):
        return UnwritableCharacters(of=len(texts))
    # U+2581 begins a word of SentencePiece, ## continues one of WordPiece.
    written = "".join(
        label.lstrip("\u2581").removeprefix("##") for label in labels if not _SPECIAL.match(label)
    )
    known = set(processing.apply(written) if processing.do_lowercase else written) | {" "}
    counts: Counter[str] = Counter()
    losing = 0
    forms: set[str] = set()
    left: set[str] = set()  # of the better form of each text
    for text in texts:
        lost = [c for c in text if c not in known]
        counts.update(lost)
        losing += bool(lost)
        for form in ("NFC", "NFD") if lost else ():
            others = [c for c in unicodedata.normalize(form, text) if c not in known]
            if len(others) < len(lost):
                forms.add(form)
                lost = others
        left.update(lost)
    remedies = _remedies([c for c in counts if c in left], known, processing)
    remedies += [f"write the manifest in Unicode's {form}" for form in sorted(forms)]
    return UnwritableCharacters(dict(counts.most_common()), losing, len(texts), tuple(remedies))


def _remedies(characters: Iterable[str], known: set[str], processing: TextProcessing) -> list[str]:
    """Returns what to do about characters: first what an option does, last what only the manifest can."""
    judge = TeacherText(
        lambda text: None if set(text) - known else [ord(c) for c in text], lambda ids: "".join(map(chr, ids))
    )
    marks, manifest = "", dict[str, None]()
    lowercase = False
    for character in characters:
        # None where no capital or small letter, and no Unicode form of the character, has a label.
        written = judge.written(character)
        if character in _APOSTROPHES and "'" in known:
            manifest[f"write ' in place of {character} in the manifest"] = None
        elif written is not None and not is_punctuation(character):
            lowercase = True
        elif is_punctuation(character):
            marks += character
        elif character.isdecimal():
            manifest["write numbers as words in the manifest"] = None
        else:
            manifest["take a model with labels for the others, or change the manifest"] = None
    found = ["compare with --lowercase"] if lowercase else []
    if marks and (processing.rm_punctuation or set(marks) - set(processing.punctuation_marks)):
        every = shlex.quote("".join(dict.fromkeys(processing.punctuation_marks + marks)))
        found.append(f"compare with --no-punctuation --punctuation-marks {every}")
    elif marks:
        found.append("compare with --no-punctuation")
    return [*found, *manifest]
