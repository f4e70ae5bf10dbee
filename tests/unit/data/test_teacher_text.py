# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""One rule turns a teacher's text into what a student can write: nothing spoken is left out silently."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_tutornet.data.teacher_text import TeacherText, without_case_and_punctuation
from nemo_tutornet.data.transcripts import is_punctuation
from nemo_tutornet.distill.pseudo_labels import encoding_of

ENGLISH = [" ", *"abcdefghijklmnopqrstuvwxyz'"]
HINDI = "\u0928\u092e\u0938\u094d\u0924\u0947"  # a consonant sign and a vowel sign are combining marks
THAI = "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"
VIETNAMESE = "ti\u1ebfng vi\u1ec7t"


def characters(labels: Any, **train_ds: Any) -> TeacherText:
    decoder = SimpleNamespace(vocabulary=list(labels))
    student = SimpleNamespace(cfg=OmegaConf.create({"train_ds": train_ds}), decoder=decoder)
    return TeacherText(*encoding_of(student))


class Pieces:
    """A tokenizer of whole characters, with <unk> as 0, as SentencePiece has it."""

    unk_id = 0

    def __init__(self, letters: str) -> None:
        self.labels = ["<unk>", " ", *letters]

    def text_to_ids(self, text: str) -> list[int]:
        return [self.labels.index(c) if c in self.labels else 0 for c in text]

    def ids_to_text(self, ids: list[int]) -> str:
        return "".join(" \u2047 " if i == 0 else self.labels[i] for i in ids)


def pieces(letters: str) -> TeacherText:
    return TeacherText(*encoding_of(SimpleNamespace(tokenizer=Pieces(letters))))


@pytest.mark.parametrize("make", [characters, pieces])
@pytest.mark.parametrize(
    ("labels", "text", "written"),
    [
        ("abcdefghijklmnopqrstuvwxyz' ", "Turn on the light.", "turn on the light"),
        ("abcdefghijklmnopqrstuvwxyz' ", "It\u2019s well-known \u2014 isn't it?", "it's well known isn't it"),
        ("abcdefghijklmnopqrstuvwxyz ", "It's", "its"),
        ("abcdefghijklmnopqrstuvwxyz' ", "one\ttwo\u00a0three", "one two three"),
        ("abcdefghijklmnopqrstuvwxyzT. ", "Turn on.", "Turn on."),
        ("abcdefghijklmnopqrstuvwxyzT- ", "Turn-on.", "Turn-on"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ ", "turn on.", "TURN ON"),
        ("gr\u00f6\u00dfe", "gro\u0308\u00dfe", "gr\u00f6\u00dfe"),
        ("gro\u0308\u00dfe", "gr\u00f6\u00dfe", "gro\u0308\u00dfe"),
        (HINDI, HINDI + "\u0964", HINDI),
        (THAI, THAI, THAI),
        (VIETNAMESE, unicodedata.normalize("NFD", VIETNAMESE), VIETNAMESE),
    ],
)
def test_what_the_student_can_write_is_kept(make: Any, labels: str, text: str, written: str) -> None:
    assert make(labels).written(text) == written


@pytest.mark.parametrize("make", [characters, pieces])
@pytest.mark.parametrize(
    ("labels", "text", "missing"),
    [
        ("abcdefghijklmnopqrstuvwxyz ", "gate 7", "7"),
        ("abcdefghijklmnopqrstuvwxyz ", "five $", "$"),
        ("abcdefghijklmnopqrstuvwxyz ", "five % more", "%"),
        ("abcdefghijklmnopqrstuvwxyz ", "r&d", "&"),
        ("abcdefghijklmnopqrstuvwxyz ", "gr\u00f6\u00dfe", "\u00df\u00f6"),
        ("abcdefghijklmnopqrstuvwxyz ", "gro\u0308sse", "\u0308"),
        (HINDI.replace("\u094d", ""), HINDI, "\u094d"),
        (HINDI.replace("\u0947", ""), HINDI, "\u0947"),
        (THAI.replace("\u0e31", ""), THAI, "\u0e31"),
        ("abc", ". - ?", ""),
    ],
)
def test_a_text_with_a_letter_mark_or_symbol_without_label_is_not_used(
    make: Any, labels: str, text: str, missing: str
) -> None:
    student = make(labels)
    assert student.labels(text) is None and sorted(student.missing) == sorted(missing)


def test_the_normalisation_of_the_config_is_used() -> None:
    assert characters(ENGLISH, normalize_transcripts=True).written("Na\u00efve, r&d.") == "naive r and d"
    assert characters(ENGLISH).written("Na\u00efve") is None


def test_an_unknown_piece_of_a_transcript_is_no_word() -> None:
    """A full stop in a transcript is <unk>, and must not count as an error of a hypothesis without it."""
    tokenizer = Pieces("abc")
    _, decode = encoding_of(SimpleNamespace(tokenizer=tokenizer))
    assert decode(tokenizer.text_to_ids("ab c.")) == "ab c"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.sets(st.sampled_from("abAB.'- \u0308\u00e4\u093e7"), min_size=1))
def test_the_written_text_has_all_that_is_spoken(text: str, labels: set[str]) -> None:
    """Whatever the text and the labels: only labels are written, and no spoken character is lost."""
    student = characters(sorted(labels | {" "}))
    written = student.written(text)
    if written is None:
        return
    assert set(written) <= labels | {" "} and written.strip()

    def spoken(given: str) -> str:
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFC", given).upper().lower())
        return "".join(c for c in folded if not is_punctuation(c) and not c.isspace())

    assert spoken(written) == spoken(text)


def test_a_comparison_without_a_student() -> None:
    assert without_case_and_punctuation("GRO\u0308SSE, \u00ab5 %\u00bb!") == "gr\u00f6sse 5 %"
