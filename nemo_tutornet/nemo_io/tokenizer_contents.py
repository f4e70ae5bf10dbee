# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks that the contents of files are a tokenizer's, and reads its labels from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.sentencepiece_model import Piece, pieces_of

MOST_BYTES = 64 << 20
# Special pieces that NeMo may write into `vocab.txt` or leave out, independent of the SentencePiece model.
_SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SPECIAL = re.compile(r"\[.+\]|<.+>")
_PIECE_CHARACTERS = 256


@dataclass(frozen=True)
class TokenizerSection:
    """One tokenizer of a config. An aggregate tokenizer has one for each language.

    Attributes:
        key: key of the section, for messages.
        kind: `bpe` or `wpe`.
        folder: the section's `dir`, or an empty string.
        paths: path where NeMo looks for each file, by the keys of `tokenizer_files.TOKENIZER_FILES`.
    """

    key: str
    kind: str
    folder: str
    paths: dict[str, str]


def unfit(section: TokenizerSection, key: str, called: str, what: str) -> TutorError:
    """Returns the error for a file that is not a tokenizer's.

    Args:
        section: the tokenizer.
        key: the file's key in the section.
        called: owner of the files, for the message.
        what: what is wrong with the file, for the message.
    """
    return TutorError(
        f"{called} has {section.paths[key]} for {section.key}.{key}, {what}; a tokenizer is regular files in "
        "one folder, as NeMo's process_asr_text_tokenizer.py writes them."
    )


def tokenizer_labels(section: TokenizerSection, files: Mapping[str, bytes], called: str) -> list[str]:
    """Checks the contents of a tokenizer's files, and returns its labels.

    Args:
        section: the tokenizer.
        files: contents by key; a missing file is not checked.
        called: owner of the files, for messages.

    Returns:
        The tokenizer's labels. For a WordPiece model, they lack the special labels that transformers adds.

    Raises:
        TutorError: the content of a file is not a tokenizer's.
    """
    for key, content in files.items():
        if len(content) > MOST_BYTES:
            raise unfit(section, key, called, "which is larger than any tokenizer")
    if section.kind == "wpe":
        return _wordpieces(section, files["vocab_path"], called) if "vocab_path" in files else []
    if "model_path" not in files:
        return []
    pieces = pieces_of(files["model_path"])
    if pieces is None:
        raise unfit(section, "model_path", called, "which is no SentencePiece model")
    for key in ("vocab_path", "spe_tokenizer_vocab"):
        if key in files:
            wrong = _first_misfit(files[key], pieces, scored=key == "spe_tokenizer_vocab")
            if wrong:
                what = f"which is not the list of tokenizer.model's pieces (line {wrong})"
                raise unfit(section, key, called, what)
    return [piece.text for piece in pieces]


def _first_misfit(content: bytes, pieces: Sequence[Piece], scored: bool) -> int:
    """Compares a list of pieces with the pieces of the model, in order.

    `vocab.txt` has each piece unchanged or in NeMo's spelling: a piece that begins a word without U+2581, any
    other piece with `##` in front. It may lack special pieces. `tokenizer.vocab` has every piece with its
    score.

    Args:
        content: content of the file.
        pieces: pieces of the model.
        scored: True if the file is `tokenizer.vocab`.

    Returns:
        Number of the first line, from 1, that is not the next piece; 0 if there is none and no piece is
        missing.
    """
    try:
        lines = content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return 1
    position = 0
    for number, line in enumerate(lines, 1):
        text = line
        if scored:
            text, _, score = line.rpartition("\t")
            if not _is_number(score):
                return number
        at = position
        while at < len(pieces) and text not in _spellings(pieces[at], scored) and _may_lack(pieces[at]):
            at += 1
        if at < len(pieces) and text in _spellings(pieces[at], scored):
            position = at + 1
        elif text.removeprefix("##") not in _SPECIALS:
            return number
    return 0 if all(_may_lack(piece) for piece in pieces[position:]) else len(lines) + 1


def _spellings(piece: Piece, scored: bool) -> tuple[str, ...]:
    if scored:
        return (piece.text,)
    rest = piece.text[1:] if piece.text.startswith("\u2581") else f"##{piece.text}"
    return (piece.text, rest) if rest else (piece.text,)


def _may_lack(piece: Piece) -> bool:
    return not piece.learnt or piece.text in _SPECIALS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wordpieces(section: TokenizerSection, content: bytes, called: str) -> list[str]:
    try:
        pieces = content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        pieces = [""]
    for number, piece in enumerate(pieces, 1):
        if not 0 < len(piece) <= _PIECE_CHARACTERS or any(ord(c) <= 32 or ord(c) == 127 for c in piece):
            raise unfit(section, "vocab_path", called, f"whose line {number} is no piece of a word")
    if len(set(pieces)) < len(pieces):
        raise unfit(section, "vocab_path", called, "which has a piece twice")
    return pieces


def same_labels(pieces: list[str], trained: list[str], ordered: bool) -> bool:
    """Tells whether a tokenizer's pieces are a checkpoint's labels.

    For a WordPiece model, transformers adds special labels, and NeMo lists the labels in another order.

    Args:
        pieces: pieces of the tokenizer.
        trained: labels of the checkpoint.
        ordered: compare the order, and allow no additional labels.

    Returns:
        True if they are the same.
    """
    if ordered:
        return pieces == trained
    lacking, added = Counter(pieces) - Counter(trained), Counter(trained) - Counter(pieces)
    return not lacking and all(_SPECIAL.fullmatch(label) for label in added)
