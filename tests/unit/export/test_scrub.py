# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer leaves without the paths of its training and with everything else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from nemo_tutornet.export.scrub import paths_in_tokenizers, strip_training_paths
from nemo_tutornet.nemo_io.archive import NemoArchive
from tests.integration.students import write_tokenizer


def archive(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name.replace('__', '.')}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def content(path: Path, name: str) -> bytes:
    with tarfile.open(path) as file:
        stream = file.extractfile(name)
        assert stream is not None
        return stream.read()


def test_paths_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    model = (write_tokenizer(tmp_path / "tokenizer") / "tokenizer.model").read_bytes()
    student = archive(
        tmp_path / "student.nemo",
        model_config__yaml=b"a: 1\n",
        ab12_tokenizer__model=model,
        model_weights__ckpt=b"\0" * 3000,
    )
    assert paths_in_tokenizers(NemoArchive(student)) == [
        f"{tmp_path}/tokenizer/text.txt",
        f"{tmp_path}/tokenizer/tokenizer",
    ]
    strip_training_paths(NemoArchive(student))
    assert (
        paths_in_tokenizers(NemoArchive(student)) == [] and str(tmp_path).encode() not in student.read_bytes()
    )
    assert (
        content(student, "./model_config.yaml") == b"a: 1\n"
        and content(student, "./model_weights.ckpt") == b"\0" * 3000
    )
    cleaned = content(student, "./ab12_tokenizer.model")
    # SentencePiece's own reader sees the same model but for the two fields.
    expected = sentencepiece_model_pb2.ModelProto.FromString(model)
    for field in ("input", "model_prefix"):
        expected.trainer_spec.ClearField(field)
    assert sentencepiece_model_pb2.ModelProto.FromString(cleaned) == expected
    before, after = (sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in (model, cleaned))
    assert [after.encode(text) for text in ("ab cd", "aa c x")] == [
        before.encode(text) for text in ("ab cd", "aa c x")
    ]


def test_a_tokenizer_may_have_any_name(tmp_path: Path) -> None:
    model = (write_tokenizer(tmp_path / "tokenizer") / "tokenizer.model").read_bytes()
    config = (
        b"tokenizer: {type: agg, langs: {en: {model_path: 'nemo:ab12_english.spm'}, de: {model_path: "
        b"'nemo:spe_v11.model'}}}\n"
    )
    student = archive(
        tmp_path / "student.nemo", model_config__yaml=config, ab12_english__spm=model, spe_v11__model=model
    )
    assert len(paths_in_tokenizers(NemoArchive(student))) == 4
    strip_training_paths(NemoArchive(student))
    assert (
        paths_in_tokenizers(NemoArchive(student)) == [] and str(tmp_path).encode() not in student.read_bytes()
    )


def test_what_has_nothing_to_forget_stays_as_it_is(tmp_path: Path) -> None:
    for name, model in (("char", None), ("foreign", b"\xff\xff no protobuf")):
        members = {"model_config__yaml": b"a: 1\n", **({} if model is None else {"tokenizer__model": model})}
        student = archive(tmp_path / f"{name}.nemo", **members)
        before = student.read_bytes()
        strip_training_paths(NemoArchive(student))
        assert student.read_bytes() == before


def test_the_user_is_forgotten(tmp_path: Path) -> None:
    student = tmp_path / "student.nemo"
    with tarfile.open(student, "w:") as file:
        for name, content_ in (
            ("./model_config.yaml", b"a: 1\n"),
            ("./model_weights.ckpt", bytes(range(256)) * 100),
        ):
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.uname, info.gname, info.size = (
                1234,
                5678,
                "alice",
                "staff",
                len(content_),
            )
            file.addfile(info, io.BytesIO(content_))
    strip_training_paths(NemoArchive(student))
    with tarfile.open(student) as file:
        assert [(m.uid, m.gid, m.uname, m.gname) for m in file.getmembers()] == 2 * [(0, 0, "", "")]
    assert b"alice" not in student.read_bytes() and b"staff" not in student.read_bytes()
    assert content(student, "./model_weights.ckpt") == bytes(range(256)) * 100
