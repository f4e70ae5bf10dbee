# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tokenizer files."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import read_nemo_config

# NeMo's keys of a tokenizer's files in a checkpoint's config, and the names it looks for in a tokenizer's
# folder.
TOKENIZER_FILES = {
    "model_path": "tokenizer.model",
    "vocab_path": "vocab.txt",
    "spe_tokenizer_vocab": "tokenizer.vocab",
}


def tokenizer_of(path: Path) -> tuple[str | None, dict[str, bytes]]:
    """The type of a checkpoint's tokenizer, None for characters, and its files by the names that NeMo looks
    for in a folder.

    Only a tokenizer of type bpe or wpe has files here.

    Raises:
        TutorError: its archive does not hold them.
    """
    section = read_nemo_config(path).get("tokenizer")
    kind = (
        str(section.get("type")).lower() if isinstance(section, DictConfig) else None
    )  # NeMo takes BPE for bpe
    if kind not in ("bpe", "wpe"):
        return kind, {}
    assert isinstance(section, DictConfig)
    names = {key: str(section[key]).removeprefix("nemo:") for key in TOKENIZER_FILES if section.get(key)}
    return kind, _files(path, names)


def _files(path: Path, names: dict[str, str]) -> dict[str, bytes]:
    """Contents by the names that NeMo looks for in a tokenizer's folder."""
    if path.is_dir():
        found = {file.name: file.read_bytes() for file in path.iterdir() if file.name in names.values()}
    else:
        with tarfile.open(path, "r:*") as archive:
            members: dict[str, Any] = {
                os.path.basename(member.name): member for member in archive.getmembers()
            }
            streams = {name: archive.extractfile(members[name]) for name in names.values() if name in members}
            found = {name: stream.read() for name, stream in streams.items() if stream is not None}
    missing = sorted(set(names.values()) - set(found))
    if missing or not names:
        raise TutorError(
            f"{path} does not hold its tokenizer's files ({', '.join(missing) or 'none is named'}); take a "
            "whole one."
        )
    return {TOKENIZER_FILES[key]: found[name] for key, name in names.items()}
