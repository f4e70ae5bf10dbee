# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The characters that a CTC model has no label for, and what a user can do about them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any


def is_lost_by(student: Any) -> Callable[[str], bool]:
    """Returns whether a student has no label for a character.

    Args:
        student: a NeMo CTC model, subword or character.
    """
    if hasattr(student, "tokenizer"):
        tokenizer = student.tokenizer
        unknown = getattr(tokenizer, "unk_id", None)
        # A combining mark is written with the letter before it.
        return lambda c: (
            unknown is not None
            and unknown
            in tokenizer.text_to_ids(
                f"a{c}" if unicodedata.combining(c) and unknown not in tokenizer.text_to_ids("a") else c
            )
        )
    parser = student_parser(student)
    return lambda c: c != " " and not parser(c)


def student_parser(student: Any, do_tokenize: bool = True) -> Any:
    """Returns the parser of a character student's transcripts, as its training set makes it.

    Args:
        student: a NeMo CTC model with characters.
        do_tokenize: False for a parser that normalises a text and returns it.
    """
    from nemo.collections.common.parts.preprocessing.parsers import make_parser

    data = student.cfg.get("train_ds") or {}
    return make_parser(
        labels=list(student.decoder.vocabulary),
        name=data.get("parser", "en"),
        do_normalize=data.get("normalize_transcripts", False),
        do_tokenize=do_tokenize,
    )


def remedy_for(characters: Iterable[str], student: Any) -> str:
    """Returns what to do about characters without a label.

    Args:
        characters: the characters.
        student: the student that has no labels for them.
    """
    is_lost, subwords = is_lost_by(student), hasattr(student, "tokenizer")
    english = not subwords and (student.cfg.get("train_ds") or {}).get("parser", "en") == "en"
    digits = "write numbers as words"
    if english:
        digits += " (for English, model.train_ds.normalize_transcripts=true does)"
    remedies = []
    for c in characters:
        composed = unicodedata.normalize("NFC", f"u{c}")
        if c.isspace():
            remedies.append("replace tabs and other white space by spaces")
        elif c.lower() != c and not any(map(is_lost, c.lower())):
            remedies.append("write the transcripts in lower case")
        elif c.upper() != c and not any(map(is_lost, c.upper())):
            remedies.append("write the transcripts in capitals")
        elif unicodedata.combining(c) and len(composed) == 1:
            remedies.append("normalise the transcripts to NFC")
        elif c.isdecimal():
            remedies.append(digits)
        else:
            remedies.append(
                "train a tokenizer on these transcripts"
                if subwords
                else "add them to model.labels, or change the text"
            )
    return "; ".join(dict.fromkeys(remedies))
