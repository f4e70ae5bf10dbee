# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Removal of traces of the training machine from a `.nemo` file.

SentencePiece models keep the paths of their training, and tar archives keep the user's name.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.sentencepiece_model import parse_sentencepiece
from nemo_tutornet.nemo_io.tar_members import open_tar
from nemo_tutornet.utils.files import atomic_write

_FIELDS = ("input", "model_prefix", "seed_sentencepieces_file")


def paths_in_tokenizers(student: NemoArchive) -> list[str]:
    """Lists the paths of the training machine in the tokenizers of a `.nemo` file.

    Args:
        student: the `.nemo` file.

    Returns:
        The paths; empty if there are none.
    """
    return [path for _, content in _tokenizers(student) for path in _paths(parse_sentencepiece(content))]


def strip_training_paths(student: NemoArchive) -> NemoArchive:
    """Removes the training paths from the tokenizers of a `.nemo` file, and the user from its members.

    Everything else stays unchanged.

    Args:
        student: the `.nemo` file, which is rewritten in place.

    Returns:
        The rewritten archive.
    """
    telling = {
        name: _without_paths(content)
        for name, content in _tokenizers(student)
        if _paths(parse_sentencepiece(content))
    }
    with (
        atomic_write(student.path) as temporary,
        open_tar(student.path) as old,
        tarfile.open(temporary, "w:") as new,
    ):
        for member in old.getmembers():
            stream: IO[bytes] | None = old.extractfile(member)
            name = os.path.normpath(member.name)
            if name in telling:
                content = telling[name]
                member.size, stream = len(content), io.BytesIO(content)
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            new.addfile(member, stream)
    return student.reopened()


def _without_paths(content: bytes) -> bytes:
    model = parse_sentencepiece(content)
    if model is None:
        return content
    for field in _FIELDS:
        model.trainer_spec.ClearField(field)
    return model.SerializeToString()


def _tokenizers(student: NemoArchive) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each archive member that may be a SentencePiece model.

    These are the members that the config names as a model, and all members whose name ends in `.model`.
    """
    config = OmegaConf.to_container(student.config, resolve=False)
    assert isinstance(config, dict)
    named = set(_model_names(config.get("tokenizer")))
    for name in student.members:
        if name.endswith(".model") or os.path.basename(name) in named:
            yield name, student.read(name)


def _model_names(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for child, value in node.items():
            yield from _model_names(value, str(child))
    elif key == "model_path" and isinstance(node, str):
        yield os.path.basename(node.removeprefix("nemo:"))


def _paths(model: Any) -> list[str]:
    if model is None:
        return []
    spec = model.trainer_spec
    return [value for value in (*spec.input, spec.model_prefix, spec.seed_sentencepieces_file) if value]
