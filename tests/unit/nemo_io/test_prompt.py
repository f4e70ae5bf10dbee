# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The options of a prompt: which are taken, and what each mistake is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nemo_tutornet.nemo_io.prompt import check_prompt, prompt_in_words, prompt_slots
from tests.conftest import refusal


class Word:
    """A slot of NeMo's with certain values, or with any."""

    def __init__(self, *allowed: str) -> None:
        self.allowed_values = allowed

    def matches(self, value: Any) -> bool:
        return not self.allowed_values or value in self.allowed_values


class Model(SimpleNamespace):
    pass


def model(**defaults: str | None) -> Model:
    """A model with a prompt of the given slots and defaults."""
    kinds = {"pnc": Word("yes", "Yes", "no", "<|pnc|>"), "emotion": Word("<|emo:sad|>", "<|emo:happy|>")}
    prompt = SimpleNamespace(
        encode_dialog=None,
        get_default_dialog_slots=lambda: [
            {"role": "system", "slots": {"message": None}},
            {"role": "user", "slots": dict(defaults)},
        ],
        get_slots=lambda role: {slot: kinds.get(slot, Word()) for slot in defaults},
    )
    return Model(prompt=prompt, tokenizer=SimpleNamespace(vocab=["<|en|>", "<|de|>", "a"]))


def test_slots_have_the_checkpoints_defaults_then_nemos_then_none() -> None:
    assert prompt_slots(model(source_lang="<|de|>", pnc=None, mine=None)) == {
        "source_lang": "<|de|>",
        "pnc": "yes",
        "mine": None,
    }
    assert prompt_slots(SimpleNamespace()) == {} == check_prompt(SimpleNamespace(), {})


def test_options_are_put_above_the_defaults() -> None:
    asked = model(source_lang=None, target_lang="de", pnc="no")
    values = check_prompt(asked, {"target_lang": "<|en|>", "pnc": "Yes"})
    assert values == {"source_lang": "en", "target_lang": "<|en|>", "pnc": "Yes"}
    assert prompt_in_words({**values, "mine": None, "context": ""}) == (
        "source_lang: en, target_lang: <|en|>, pnc: Yes, mine: none, context: ''"
    )


@pytest.mark.parametrize(
    ("defaults", "options", "sentence"),
    [
        (
            {"pnc": None, "task": None},
            {"lang": "en"},
            "key.lang is not a slot of the teacher's prompt; its slots are pnc, task.",
        ),
        ({"pnc": None}, {"pnc": "maybe"}, "key.pnc is 'maybe'; choose from no, yes."),
        (
            {"emotion": None},
            {"emotion": "sad"},
            "key.emotion is 'sad'; choose from <|emo:happy|>, <|emo:sad|>.",
        ),
        (
            {"target_lang": None},
            {"target_lang": "fr"},
            "key.target_lang is 'fr', but the teacher's tokenizer has no token <|fr|>; give a language that "
            "the teacher knows.",
        ),
        ({"mine": None}, {}, "the teacher's prompt has no default for mine; set key.mine."),
        ({}, {"pnc": "no"}, "key is set, but the teacher (Model) has no prompt; leave the key out."),
    ],
)
def test_a_mistake_is_reported(defaults: dict[str, None], options: dict[str, str], sentence: str) -> None:
    assert refusal(check_prompt, model(**defaults), options, "key") == sentence
