# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The text of labels: characters or subword pieces joined as NeMo's tokenizers join them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

# SentencePiece's text for its special pieces.
_SURFACE = {"<unk>": " \u2047 ", "<s>": "", "</s>": ""}
_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+")


def join_labels(labels: Sequence[str], tokenizer: str, punctuation: Collection[str] = ()) -> str:
    r"""Joins characters or subword pieces to a text, as NeMo 2.7.3 and 3.0 do.

    Args:
        labels: the labels in their order in the utterance.
        tokenizer: `char`, `bpe` (SentencePiece: U+2581 starts a word), `agg` (several of those) or `wpe`
            (WordPiece: `##` continues a word).
        punctuation: punctuation marks of the vocabulary, from NeMo's `extract_punctuation_from_vocab`. With
            every tokenizer, a space before such a mark is removed, also before an apostrophe.

    Returns:
        The text.

    Example:
        >>> join_labels(["\u2581turn", "\u2581it", "\u2581o", "ff", "\u2581."], "bpe", punctuation=["."])
        'turn it off.'
        >>> join_labels(["turn", "it", "o", "##ff"], "wpe")
        'turn it off'
    """
    if tokenizer == "char":
        text = "".join(labels)
    elif tokenizer == "wpe":
        text = " ".join(labels).replace(" ##", "")
    else:
        text = "".join(_SURFACE.get(label, label) for label in labels).lstrip("\u2581").replace("\u2581", " ")
        text = _BYTES.sub(_from_bytes, text)
    return re.sub(rf"\s([{re.escape(''.join(punctuation))}])", r"\1", text) if punctuation else text


def tokenizer_of(labels: Sequence[str]) -> str:
    r"""Derives the kind of tokenizer from its labels: `bpe`, `wpe` or `char`, as `join_labels` names them.

    Example:
        >>> tokenizer_of(["a", "b", " "]), tokenizer_of(["\u2581a", "b"]), tokenizer_of(["a", "##b"])
        ('char', 'bpe', 'wpe')
    """
    if any(label.startswith("\u2581") for label in labels):
        return "bpe"
    return "wpe" if any(label.startswith("##") for label in labels) else "char"


def _from_bytes(pieces: re.Match[str]) -> str:
    """Decodes SentencePiece's byte pieces, e.g. `<0xC3><0xA9>`; each invalid byte becomes U+FFFD."""
    # Python's errors="replace" would write one U+FFFD for an incomplete character of several bytes.
    text = bytes.fromhex(re.sub("<0x|>", "", pieces[0])).decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", "\ufffd", text)
