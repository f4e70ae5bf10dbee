# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a student cannot learn of its transcripts, against a slow count over rows and characters."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.data.transcripts import find_losses

ROWS = st.lists(
    st.tuples(
        st.text("aAb7 ,\t\u0308€", max_size=8), st.lists(st.integers(0, 2), max_size=6), st.integers(1, 9)
    ),
    max_size=6,
)


def needs(labels: list[int]) -> int:
    """Frames that CTC needs, by writing the blanks out."""
    path: list[int] = []
    for label in labels:
        if path and path[-1] == label:
            path.append(-1)
        path.append(label)
    return len(path)


@given(ROWS)
def test_the_counts_are_those_of_a_slow_count(drawn: list[tuple[str, list[int], int]]) -> None:
    """The last frame of an utterance is not a whole one."""
    rows = [(str(i), text, labels, 0.02 * frames - 0.005) for i, (text, labels, frames) in enumerate(drawn)]
    found = find_losses(rows, lambda c: c not in "ab ", 0.02)
    spoken = [row for row in rows if row[1].strip()]
    losing = [
        row
        for row in spoken
        if any(c not in "ab " and not unicodedata.category(c).startswith("P") for c in row[1])
    ]
    assert found.transcripts == len(spoken) and found.losing == len(losing)
    for c in "A7\t\u0308€":
        assert found.characters[c] == sum(c in row[1] for row in spoken)
    assert "," not in found.characters and not found.characters.keys() & set("ab ")
    assert found.first == (losing[0][:2] if losing else None)
    assert found.empty == sum(not any(c in "ab" for c in row[1]) for row in losing)
    frames = [row[2] for row in drawn if row[0].strip()]
    long = [(row[0], needs(row[2])) for row, most in zip(spoken, frames, strict=True) if needs(row[2]) > most]
    assert found.too_long == len(long)
    assert (found.first_too_long or ("", 0))[:2] == (long[0] if long else ("", 0))


def test_the_sentences() -> None:
    rows = [
        ("a.wav", "GO on", [0] * 5, None),
        ("b.wav", "G" + "o" * 100, None, 9.0),
        ("c.wav", "go", [1, 1], 0.04),
        ("d.wav", "", [], 0.04),
    ]
    found = find_losses(rows, str.isupper, 0.02)
    assert found.in_words("model.train_ds", "write them in lower case") == [
        "model.train_ds: 2 of 3 transcripts hold characters that the student has no label for, and that are "
        "left out: 'G' 'O' (first in a.wav: 'GO on'); write them in lower case.",
        "model.train_ds: 1 of 3 transcripts have more labels than the student has frames, and CTC cannot "
        "learn them (first c.wav: 3 labels, 2 frames); correct the text or the duration, or take a student "
        "with shorter frames or with subwords.",
    ]
    assert find_losses(rows[2:], str.isupper, 0.01).in_words("model.train_ds", "") == []
    many = find_losses([("a", "".join(map(chr, range(0x430, 0x450))), None, None)], str.isalpha, 0.02)
    assert " ... (first in a: " in many.in_words("x", "y")[0]
