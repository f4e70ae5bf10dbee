# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Text processing before errors are counted, as the section `text_processing` of NeMo's
`speech_to_text_eval.py` defines it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

# The default of NeMo's script.
PUNCTUATION_MARKS = ".,?"


@dataclass(frozen=True)
class TextProcessing:
    """What is done to transcripts and hypotheses alike, under NeMo's names.

    NeMo's order is kept: marks are separated, letters become lower case, marks are removed.

    Attributes:
        do_lowercase: whether to convert to lower case.
        rm_punctuation: whether to put a space in place of each mark.
        separate_punctuation: whether to put spaces around each mark, so that it counts as a word.
        punctuation_marks: the marks; no other character counts as punctuation.

    Example:
        >>> TextProcessing(do_lowercase=True, rm_punctuation=True).apply("Well, is it 5.5?")
        'well is it 5 5'
        >>> TextProcessing(separate_punctuation=True).apply("Well, is it?")
        'Well , is it ?'
    """

    do_lowercase: bool = False
    rm_punctuation: bool = False
    separate_punctuation: bool = False
    punctuation_marks: str = PUNCTUATION_MARKS

    def apply(self, text: str) -> str:
        """Processes one text.

        Args:
            text: a transcript or a hypothesis.

        Returns:
            The text to count errors in.
        """
        if self.separate_punctuation:
            text = self._replace_marks(text, r" \1 ")
        if self.do_lowercase:
            text = text.lower()
        return self._replace_marks(text, " ") if self.rm_punctuation else text

    def _replace_marks(self, text: str, replacement: str) -> str:
        if not self.punctuation_marks:
            return text
        replaced = re.sub(f"([{re.escape(self.punctuation_marks)}])", replacement, text)
        return re.sub(r"\s{2,}", " ", replaced).strip()

    def in_words(self) -> str:
        """Names the changes, e.g. `do_lowercase, rm_punctuation (.,?)`; empty if there are none."""
        marks = self.punctuation_marks
        found = [f"separate_punctuation ({marks})"] if self.separate_punctuation and marks else []
        found += ["do_lowercase"] if self.do_lowercase else []
        found += [f"rm_punctuation ({marks})"] if self.rm_punctuation and marks else []
        return ", ".join(found)

    def as_dict(self) -> dict[str, Any]:
        """Converts the settings to plain values, under NeMo's names, for JSON."""
        return asdict(self)
