# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a `.nemo` tells of the machine that wrote it: SentencePiece keeps the paths of its training, tar the
user's name.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.archive import read_nemo_config
from nemo_tutornet.utils.files import atomic_write

_FIELDS = ("input", "model_prefix", "seed_sentencepieces_file")


def paths_in_tokenizers(student: Path) -> list[str]:
    """Paths of the training machine in the tokenizers of a `.nemo`."""
    return [path for _, content in _tokenizers(student) for path in _paths(_parsed(content))]


def strip_training_paths(student: Path) -> None:
    """Takes the paths out of the tokenizers of a `.nemo`, and the user out of its members; everything else
    stays as it is.

    Args:
        student: the file; it is rewritten.
    """
    telling = {
        name: _without_paths(content) for name, content in _tokenizers(student) if _paths(_parsed(content))
    }
    with (
        atomic_write(student) as temporary,
        tarfile.open(student, "r:*") as old,
        tarfile.open(temporary, "w:") as new,
    ):
        for member in old.getmembers():
            stream: IO[bytes] | None = old.extractfile(member)
            if member.name in telling:
                content = telling[member.name]
                member.size, stream = len(content), io.BytesIO(content)
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            new.addfile(member, stream)


def _without_paths(content: bytes) -> bytes:
    model = _parsed(content)
    if model is None:
        return content
    for field in _FIELDS:
        model.trainer_spec.ClearField(field)
    return model.SerializeToString()


def _tokenizers(student: Path) -> Iterator[tuple[str, bytes]]:
    """SentencePiece models by their member's name: what the config names as one, and what is called like
    one.
    """
    config = OmegaConf.to_container(read_nemo_config(student), resolve=False)
    assert isinstance(config, dict)
    named = set(_model_names(config.get("tokenizer")))
    with tarfile.open(student, "r:*") as archive:
        for member in archive.getmembers():
            model = member.isfile() and (
                member.name.endswith(".model") or os.path.basename(member.name) in named
            )
            stream = archive.extractfile(member) if model else None
            if stream is not None:
                yield member.name, stream.read()


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


def _parsed(content: bytes) -> Any | None:
    """The model's protobuf, or None for what is none: whether NeMo can use such a tokenizer is for NeMo to
    say.
    """
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(content)
    except DecodeError:
        return None


@functools.cache
def _model_class() -> Any:
    """The part of SentencePiece's ModelProto that holds paths; protobuf keeps the other fields as they are.

    The package's own generated module is no help: it refuses the older protobuf that NeMo 2 pins.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="nemo_tutornet/tokenizer_paths.proto", package="nemo_tutornet", syntax="proto2"
    )
    field = descriptor_pb2.FieldDescriptorProto
    spec = file.message_type.add(name="TrainerSpec")
    spec.field.add(name="input", number=1, type=field.TYPE_STRING, label=field.LABEL_REPEATED)
    spec.field.add(name="model_prefix", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    spec.field.add(
        name="seed_sentencepieces_file", number=54, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL
    )
    model = file.message_type.add(name="ModelProto")
    model.field.add(
        name="trainer_spec",
        number=2,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_OPTIONAL,
        type_name=".nemo_tutornet.TrainerSpec",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nemo_tutornet.ModelProto"))
