# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hostile adapters, summaries, manifests and tokenizers: each is read, or refused in one sentence."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save

from nemo_tutornet.data.manifest import Rules, read_manifest, read_rows
from nemo_tutornet.data.pseudo_manifest import pseudo_manifest
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.summary import Check, Verification, check_summary, is_summary, write_summary
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.tokenizer_files import check_tokenizer_files, check_tokenizer_section
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.utils.interpolations import check_interpolations
from tests.conftest import refusal
from tests.properties import examples
from tests.unit.data.manifests import write_audio
from tests.unit.fuzz.hostile_files import TEXTS, VALUES, damaged, files_in, loads, with_one_value_changed
from tests.unit.teachers.test_adapter import INFO, head_of

TENSORS = {name: value.detach().float() for name, value in head_of().state_dict().items()}


@st.composite
def adapter_files(draw: st.DrawFn) -> bytes:
    """An adapter whose description, tensors or bytes are changed."""
    info, tensors = asdict(INFO), dict(TENSORS)
    if draw(st.booleans()):
        info = draw(with_one_value_changed(json.loads(json.dumps(info))))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(tensors)))
        value = draw(st.sampled_from([1.0, float("nan"), float("inf")]))
        shape = draw(st.sampled_from([tensors[name].shape, (0,), (1,), (2, 2)]))
        kind = draw(st.sampled_from([torch.float32, torch.float16] + [torch.int8] * (value == 1.0)))
        tensors[name] = torch.full(shape, value, dtype=kind)
    content = save(tensors, metadata={"nemo_tutornet_adapter_1": json.dumps(info)})
    return draw(damaged(content)) if draw(st.booleans()) else content


@examples(150)
@given(content=adapter_files() | st.binary(max_size=64))
def test_an_adapter_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(content)
    adapter = loads(Adapter.load, path)
    if adapter is not None:
        assert all(bool(value.isfinite().all()) for value in adapter.head.state_dict().values())
        assert adapter.info.in_words()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student.nemo` with its summary."""
    path = tmp_path_factory.mktemp("students") / "student.nemo"
    path.write_bytes(b"x")
    write_summary(
        path.with_suffix(".json"), Verification(path, [Check("keys", True, "31")], {"parameters": 1})
    )
    return path


@examples(150)
@given(data=st.data())
def test_a_summary_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, student: Path, data: st.DataObject
) -> None:
    sound = student.with_suffix(".json").read_bytes()
    path = tmp_path_factory.mktemp("fuzz") / "student.json"
    value = data.draw(with_one_value_changed(json.loads(sound)))
    raw = json.dumps(value).encode()
    path.write_bytes(data.draw(st.just(raw) | damaged(sound)))
    loads(check_summary, path, student)
    is_summary(path)


ROW = {"audio_filepath": "a.wav", "duration": 1.0, "text": "x", "offset": 0.0, "pred_text": "y", "speaker": 1}
LINES = st.one_of(
    with_one_value_changed(ROW).map(lambda row: json.dumps(row).encode()),
    st.just(json.dumps(ROW).encode()),
    damaged(json.dumps(ROW).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"[" * 100_000, b"\xef\xbb\xbf{}", b"\x1f\x8b\x08", b'{"text": ' + b"9" * 5000 + b"}"]),
)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    write_audio(folder / "a.wav", 1.0)
    os.mkfifo(folder / "pipe.wav")
    (folder / "link.wav").symlink_to("/dev/zero")
    return folder


@examples(250)
@given(lines=st.lists(LINES, max_size=4), end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))
def test_a_manifest_is_read_or_refused(audio: Path, lines: list[bytes], end: bytes) -> None:
    path = audio / "m.jsonl"
    path.write_bytes(end.join(lines))
    for rules in (Rules(0.02), Rules(0.02, for_nemo=True)):
        loads(read_rows, path, rules)
    loads(read_manifest, path)
    before = files_in(audio)
    loads(pseudo_manifest, path, audio / "out.jsonl", 0.5)
    assert files_in(audio).keys() <= before.keys() | {"out.jsonl"}


@pytest.mark.parametrize(
    "named",
    [
        *("pipe.wav", "link.wav", ".", "http://host/a.wav", "https://host/a.wav", "ftp://host/a.wav"),
        *("file:///etc/passwd", "pipe:cat /etc/passwd", "hdfs://host/a.wav", "data://x/y", "S4://b/a.wav"),
    ],
)
@pytest.mark.parametrize("for_nemo", [False, True])
def test_a_row_of_no_file_is_refused(audio: Path, named: str, for_nemo: bool) -> None:
    path = audio / "one.jsonl"
    path.write_text(json.dumps({**ROW, "audio_filepath": named}))
    assert "line 1: " in refusal(read_rows, path, Rules(for_nemo=for_nemo))


@pytest.mark.parametrize("store", ["s3", "S3", "gs", "ais", "az", "oci", "msc"])
def test_object_stores_are_nemos(audio: Path, store: str) -> None:
    path = audio / "store.jsonl"
    path.write_text(json.dumps({**ROW, "audio_filepath": f"{store}://bucket/a.wav"}))
    rows, _ = read_rows(path, Rules(for_nemo=True))
    assert len(rows) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda at: os.symlink("/dev/zero", at)])
def test_no_reader_opens_what_is_no_file(tmp_path: Path, student: Path, make: Any) -> None:
    path = tmp_path / "evil"
    make(path)
    make(tmp_path / "evil.json")
    readers: list[Any] = [
        *(NemoArchive, load_lightning_checkpoint, Adapter.load, read_manifest, OnnxCTCModel),
        lambda at: pseudo_manifest(at, tmp_path / "out.jsonl"),
        lambda at: check_summary(at, student),
    ]
    for reader in readers:
        assert "evil" in refusal(reader, path)
    assert not is_summary(tmp_path / "evil.json")
    assert sorted(files_in(tmp_path)) == ["evil", "evil.json"]


@examples(150)
@given(
    kind=st.sampled_from(["bpe", "wpe", "agg", "hf"]),
    files=st.dictionaries(
        st.sampled_from(["tokenizer.model", "vocab.txt", "tokenizer.vocab"]),
        st.binary(max_size=60)
        | damaged(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\x03\x0a\x01a")
        | TEXTS.map(lambda text: text.encode("utf-8", "replace")),
        max_size=3,
    ),
)
def test_a_tokenizer_is_read_or_refused(kind: str, files: dict[str, bytes]) -> None:
    loads(check_tokenizer_files, kind, files, "the cache")


@examples(150)
@given(
    section=with_one_value_changed({"dir": "x", "type": "bpe", "langs": {"en": {"dir": "y", "type": "wpe"}}})
    | VALUES
)
def test_a_tokenizer_section_is_read_or_refused(section: Any) -> None:
    try:
        config = OmegaConf.create({"tokenizer": section})
    except Exception:  # OmegaConf's own
        return
    loads(check_tokenizer_section, config)


@examples(150)
@given(
    root=VALUES
    | st.dictionaries(
        st.sampled_from("abc"),
        st.sampled_from(
            [
                "${a}",
                "${b}${c}",
                "${.a}",
                "${a.b}",
                "${${a}}",
                "${x:${a}}",
                "${",
                "}",
                "${a[0]}",
                "${...a}",
                "1",
            ]
        )
        | VALUES,
        max_size=3,
    )
)
def test_interpolations_are_counted_or_refused(root: Any) -> None:
    try:
        check_interpolations(root)
    except ValueError:
        return
    try:
        with_size = len(json.dumps(OmegaConf.to_container(OmegaConf.create(root), resolve=True)))
    except Exception:  # OmegaConf cannot resolve it
        return
    assert with_size < 1 << 30
