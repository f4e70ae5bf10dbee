# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The prompt of NeMo's multitask attention models (Canary): its slots, their values, and its tokens.

A prompt tells the decoder the language of the audio, the language of the text, and options such as
punctuation. Each of them is a slot with a name and a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError, first_line

PROMPT_KEY = "model.tutor.teacher.prompt"
_ROLE = "user"
# NeMo's transcribe() uses these values for a file, whatever the checkpoint's own defaults are. Here they are
# used for slots of which the checkpoint has no default, e.g. all slots of the first Canary.
_NEMO_DEFAULTS = {
    "source_lang": "en",
    "target_lang": "en",
    "task": "asr",
    "pnc": "yes",
    "decodercontext": "",
    "emotion": "<|emo:undefined|>",
    "itn": "no",
    "timestamp": "no",
    "diarize": "no",
}
_LANGUAGES = ("source_lang", "target_lang")


def prompt_slots(model: Any) -> dict[str, str | None]:
    """Returns the slots of a model's prompt, with the values that they have without options.

    Args:
        model: a NeMo model.

    Returns:
        The values by slot; None for a slot that has no default. Empty for a model without a prompt.
    """
    formatter: Any = getattr(model, "prompt", None)
    if not hasattr(formatter, "encode_dialog"):
        return {}
    turns = [turn for turn in formatter.get_default_dialog_slots() if turn["role"] == _ROLE]
    slots: dict[str, str | None] = dict(turns[0]["slots"]) if turns else {}
    return {slot: _NEMO_DEFAULTS.get(slot) if value is None else str(value) for slot, value in slots.items()}


def check_prompt(
    model: Any, options: Mapping[str, str], key: str = PROMPT_KEY, owner: str = "the teacher"
) -> dict[str, str]:
    """Returns the values of all slots of a model's prompt.

    Args:
        model: a NeMo model with a prompt, or without one if there are no options.
        options: values by slot that replace the defaults.
        key: the config's key of the options, for messages.
        owner: the model in messages.

    Returns:
        The values by slot; empty for a model without a prompt.

    Raises:
        TutorError: the model has no prompt, a slot is unknown or has no value, or a value is not one of the
            slot's.
    """
    slots, name = prompt_slots(model), type(model).__name__
    if options and not slots:
        raise TutorError(f"{key} is set, but {owner} ({name}) has no prompt; leave the key out.")
    unknown = [slot for slot in options if slot not in slots]
    if unknown:
        raise TutorError(
            f"{key}.{unknown[0]} is not a slot of {owner}'s prompt; its slots are {', '.join(slots)}."
        )
    values = {slot: options.get(slot, default) for slot, default in slots.items()}
    modalities = model.prompt.get_slots(_ROLE) if slots else {}
    found: dict[str, str] = {}
    for slot, value in values.items():
        if value is None:
            raise TutorError(f"{owner}'s prompt has no default for {slot}; set {key}.{slot}.")
        if not modalities[slot].matches(value):
            allowed = getattr(modalities[slot], "allowed_values", ())
            words = sorted({str(one).lower() for one in allowed if not str(one).startswith("<|")} or allowed)
            raise TutorError(f"{key}.{slot} is {value!r}; choose from {', '.join(words)}.")
        if slot in _LANGUAGES and _as_token(value) not in model.tokenizer.vocab:
            raise TutorError(
                f"{key}.{slot} is {value!r}, but {owner}'s tokenizer has no token {_as_token(value)}; "
                f"give a language that {owner} knows."
            )
        found[slot] = value
    return found


def prompt_turns(
    model: Any, options: Mapping[str, str], key: str = PROMPT_KEY, owner: str = "the teacher"
) -> list[dict[str, Any]]:
    """Returns the prompt of a model as NeMo's `transcribe()` takes it.

    Args:
        model: a NeMo model with a prompt.
        options: values by slot that replace the defaults.
        key: the config's key of the options, for messages.
        owner: the model in messages.

    Returns:
        One turn, with its role and its slots.

    Raises:
        TutorError: see `check_prompt`.
    """
    slots: dict[str, str] = check_prompt(model, options, key, owner)
    if "spl_tokens" in getattr(model.tokenizer, "langs", ()):
        # NeMo adds this itself only if one of the values is not yet a token.
        slots[model.prompt.PROMPT_LANGUAGE_SLOT] = "spl_tokens"
    return [{"role": _ROLE, "slots": slots}]


def encode_prompt(model: Any, options: Mapping[str, str], key: str = PROMPT_KEY) -> Tensor:
    """Encodes the prompt of a model as the tokens that its decoder begins with.

    Args:
        model: a NeMo model with a prompt.
        options: values by slot that replace the defaults.
        key: the config's key of the options, for messages.

    Returns:
        Tokens `[1, P]`, on the CPU.

    Raises:
        TutorError: see `check_prompt`; or NeMo cannot encode the values.
    """
    turns = prompt_turns(model, options, key)
    try:
        tokens: Tensor = model.prompt.encode_dialog(turns)["context_ids"]
    except (AssertionError, LookupError, RuntimeError, ValueError) as error:
        first = first_line(error).rstrip(".")
        raise TutorError(
            f"NeMo cannot encode the prompt {prompt_in_words(turns[0]['slots'])} ({first}); change {key}."
        ) from None
    return tokens.to(torch.long).unsqueeze(0)


def prompt_in_words(values: Mapping[str, str | None]) -> str:
    """Describes the values of a prompt's slots, as a config has them."""
    return ", ".join(
        f"{slot}: {'none' if value is None else value or repr('')}" for slot, value in values.items()
    )


def _as_token(language: str) -> str:
    return language if language.startswith("<|") and language.endswith("|>") else f"<|{language}|>"
