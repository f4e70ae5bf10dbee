# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The part of SentencePiece's model format that is looked at here: the pieces, and the paths of the
training.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

_NORMAL = 1


@dataclass(frozen=True)
class Piece:
    """A label of a SentencePiece model.

    Attributes:
        text: of the piece; a word begins with U+2581.
        learnt: from text; False for a control symbol, an unknown, a byte, or one that its user defined.
    """

    text: str
    learnt: bool


def parse_sentencepiece(content: bytes) -> Any | None:
    """The model's protobuf with `pieces` and `trainer_spec`, or None for what is none: whether NeMo can use
    such a tokenizer is for NeMo to say.
    """
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(content)
    except DecodeError:
        return None


def pieces_of(content: bytes) -> list[Piece] | None:
    """The pieces of a SentencePiece model by their number, or None for what is none."""
    model = parse_sentencepiece(content)
    try:
        pieces = [] if model is None else [Piece(p.piece, p.type == _NORMAL) for p in model.pieces]
    except UnicodeDecodeError:
        return None
    return pieces or None


@functools.cache
def _model_class() -> Any:
    """A part of SentencePiece's ModelProto; protobuf keeps the other fields as they are.

    The package's own generated module is no help: it refuses the older protobuf that NeMo 2 pins.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="nemo_tutornet/sentencepiece_model.proto", package="nemo_tutornet", syntax="proto2"
    )
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    spec = file.message_type.add(name="TrainerSpec")
    spec.field.add(name="input", number=1, type=field.TYPE_STRING, label=many)
    spec.field.add(name="model_prefix", number=2, type=field.TYPE_STRING, label=one)
    spec.field.add(name="seed_sentencepieces_file", number=54, type=field.TYPE_STRING, label=one)
    piece = file.message_type.add(name="SentencePiece")
    piece.field.add(name="piece", number=1, type=field.TYPE_STRING, label=one)
    # An enumeration in the original; the bytes are the same.
    piece.field.add(name="type", number=3, type=field.TYPE_INT32, label=one, default_value=str(_NORMAL))
    model = file.message_type.add(name="ModelProto")
    for name, number, label, kind in (
        ("pieces", 1, many, "SentencePiece"),
        ("trainer_spec", 2, one, "TrainerSpec"),
    ):
        model.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, label=label, type_name=f".nemo_tutornet.{kind}"
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nemo_tutornet.ModelProto"))
