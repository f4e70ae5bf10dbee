# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Text processing is that of NeMo's evaluation script, and what a model cannot write is found after it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nemo.collections.asr.parts.utils.transcribe_utils import PunctuationCapitalization, TextProcessingConfig

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.options import EvaluationOptions, parse_channel
from nemo_tutornet.evaluation.scoring import score
from nemo_tutornet.evaluation.text_processing import TextProcessing
from nemo_tutornet.evaluation.unwritable import find_unwritable
from tests.conftest import refusal

LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]


def in_nemos_script(text: str, settings: TextProcessingConfig) -> str:
    """What speech_to_text_eval.py does to a text, in its order."""
    marks, lines = PunctuationCapitalization(settings.punctuation_marks), [text]
    for name in ("separate_punctuation", "do_lowercase", "rm_punctuation"):
        if getattr(settings, name):
            lines = getattr(marks, name)(lines)
    return str(lines[0])


@given(st.text("aB .,?!'\t\u00a0", max_size=12), st.sampled_from([".,?", "!", "", ".,?!'"]))
def test_processing_is_nemos(text: str, marks: str) -> None:
    for lower, remove, separate in itertools.product((False, True), repeat=3):
        settings = TextProcessingConfig(marks, lower, remove, separate)
        assert TextProcessing(lower, remove, separate, marks).apply(text) == in_nemos_script(text, settings)


def test_marks_are_no_pattern() -> None:
    assert TextProcessing(rm_punctuation=True, punctuation_marks="]^-\\").apply("a-b]c^d\\e!") == "a b c d e!"


def test_transcripts_and_hypotheses_are_processed_alike() -> None:
    rows = [Utterance(Path("a.wav"), 1.0, "Turn it ON, please.")]
    heard = ["turn it on please"]
    plain = score(Path(__file__), "nemo", rows, heard, 1.0, 1)
    assert (plain.substitutions, plain.wer) == (3, 0.75) and plain.cer > 0
    texts = ["Turn it ON, please.", "turn it on please"]
    for text, other in (texts, texts[::-1]):
        rows = [Utterance(Path("a.wav"), 1.0, text)]
        processed = score(
            Path(__file__), "nemo", rows, [other], 1.0, 1, processing=TextProcessing(True, True)
        )
        assert (processed.wer, processed.cer, processed.reference_words) == (0, 0, 4)
    assert processed.as_dict()["text_processing"] == {
        "do_lowercase": True,
        "rm_punctuation": True,
        "separate_punctuation": False,
        "punctuation_marks": ".,?",
    }
    separated = score(
        Path(__file__),
        "nemo",
        rows,
        ["turn it on please"],
        1.0,
        1,
        processing=TextProcessing(separate_punctuation=True, punctuation_marks=","),
    )
    assert separated.reference_words == 4


def test_a_transcript_of_marks_alone_is_empty() -> None:
    rows = [Utterance(Path("a.wav"), 1.0, "..."), Utterance(Path("b.wav"), 1.0, "go")]
    result = score(Path(__file__), "nemo", rows, ["", "go"], 1.0, 1, processing=TextProcessing(False, True))
    assert (result.wer, result.reference_words) == (0, 1)


@pytest.mark.parametrize(
    ("texts", "characters", "remedies"),
    [
        (["go on", "don't"], {}, ()),
        (["Go on", "GO"], {"G": 2, "O": 1}, ("compare with --lowercase",)),
        (["go, on. go."], {".": 2, ",": 1}, ("compare with --no-punctuation",)),
        (["go!"], {"!": 1}, ("compare with --no-punctuation --punctuation-marks '.,?!'",)),
        (["gate 7"], {"7": 1}, ("write numbers as words in the manifest",)),
        (["don\u2019t"], {"\u2019": 1}, ("write ' in place of \u2019 in the manifest",)),
        (["\u4f60"], {"\u4f60": 1}, ("take a model with labels for the others, or change the manifest",)),
    ],
)
def test_what_a_model_cannot_write(
    texts: list[str], characters: dict[str, int], remedies: tuple[str, ...]
) -> None:
    found = find_unwritable(texts, LABELS)
    assert (found.characters, found.remedies) == (characters, remedies)
    assert found.of == len(texts) and bool(found.transcripts) == bool(characters)


def test_a_model_in_capitals_and_unicode_forms() -> None:
    capitals = [label.upper() for label in LABELS]
    assert find_unwritable(["go"], capitals).remedies == ("compare with --lowercase",)
    assert not find_unwritable(["go"], capitals, TextProcessing(do_lowercase=True)).characters
    accent = find_unwritable(["cafe\u0301"], [*LABELS, "\u00e9"])
    assert (accent.characters, accent.remedies) == ({"\u0301": 1}, ("write the manifest in Unicode's NFC",))
    assert not find_unwritable(["caf\u00e9"], ["<0xC3>", "a"]).characters, "byte pieces write everything"
    assert not find_unwritable(["A7 b"], ["\u2581A", "##b", "7b"]).characters
    assert find_unwritable(["#"], ["##b", "<b>"]).characters == {"#": 1}
    assert find_unwritable(["k"], ["<unk>", "a"]).characters == {"k": 1}, "a special label is no text"
    assert not find_unwritable(["a \t b"], ["\u2581a", "b"]).characters, "white space is one space"


def test_the_sentence_says_how_many_which_and_what_to_do() -> None:
    found = find_unwritable(["Go.", "go", "GO"], LABELS)
    assert found.in_words("x.nemo") == (
        "x.nemo cannot write 4 characters of 2 of 3 transcripts, and each is an error: 'G' (2), '.' (1), "
        "'O' (1); compare with --lowercase; compare with --no-punctuation."
    )


def test_options_of_the_command_line() -> None:
    assert [parse_channel(one) for one in (None, "0", "12", "average")] == [None, 0, 12, "average"]
    for wrong in ("-1", "left", "1.5", "\u0661", "", "9" * 20):
        assert "give the number of a channel, from 0, or average" in refusal(parse_channel, wrong)
    with pytest.raises(TutorError, match="no decoder 'beam'; choose one of ctc, rnnt"):
        EvaluationOptions.parse("beam")
    with pytest.raises(TutorError, match="not of the form SLOT=VALUE"):
        EvaluationOptions.parse(prompt=["de"])
    assert EvaluationOptions.parse(prompt=["a=b=c", "d="]).prompt == {"a": "b=c", "d": ""}
