# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of a corpus' own, for a subword teacher that is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

VOCABULARY = 128


def write_tokenizer(folder: Path, texts: Sequence[str]) -> Path:
    """SentencePiece on transcripts, as NeMo's process_asr_text_tokenizer.py lays it out; returns the
    folder.
    """
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    pieces = [
        line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces[3:]) + "\n", encoding="utf-8")
    return folder
