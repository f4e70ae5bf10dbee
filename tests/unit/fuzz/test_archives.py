# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hostile `.nemo` files: each is read as NeMo reads it, or refused in one sentence."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.nemo_io.archive import MODEL_CONFIG, NemoArchive
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.tokenizer_files import check_archive_tokenizer, tokenizer_of
from tests.properties import examples
from tests.unit.fuzz.hostile_files import TEXTS, VALUES, damaged, files_in, loads, with_one_value_changed
from tests.unit.nemo_io.test_archive import CONFIG, WEIGHTS

STOCK: dict[str, Any] = {
    "target": "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
    "sample_rate": 16000,
    "preprocessor": {"features": 64, "n_fft": 512, "window_size": 0.02},
    "encoder": {"jasper": [{"filters": 16, "repeat": 1, "kernel": [11]}], "feat_in": 64},
    "decoder": {"vocabulary": ["a", "b"], "num_classes": 2},
    "tokenizer": {"type": "bpe", "dir": "", "model_path": "nemo:t.model", "vocab_path": "nemo:vocab.txt"},
}
NAMES = st.sampled_from(
    [
        *(
            "model_config.yaml",
            "./model_config.yaml",
            "MODEL_CONFIG.yaml",
            "x/../model_config.yaml",
            ".",
            "./",
            "",
        ),
        *(
            "/tmp/tutornet-evil",
            "../evil",
            "a",
            "./a",
            "a/",
            "a/b",
            "A/b",
            "a//b",
            "a\\b",
            "t.model",
            "vocab.txt",
        ),
        *("h\u00e9", "he\u0301", "model_weights.ckpt", "a\0b", "a\nb", "n" * 300, "d/" * 40 + "x"),
    ]
)
TYPES = st.sampled_from([tarfile.REGTYPE] * 6 + [bytes([kind]) for kind in b"\x00123456789gxLKSXZ"])


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    """A member with any name, type, link and header of pax."""
    member = tarfile.TarInfo(draw(NAMES))
    member.type = draw(TYPES)
    member.linkname = draw(NAMES) if draw(st.booleans()) else ""
    content = draw(st.sampled_from([b"", b"x", CONFIG, b"a: 1\n"]))
    member.size = len(content)
    if not draw(st.integers(0, 3)):
        key = draw(
            st.sampled_from(["path", "linkpath", "size", "GNU.sparse.map", "GNU.sparse.major", "hdrcharset"])
        )
        member.pax_headers = {key: draw(NAMES | st.just("0") | st.just("99999999999"))}
    return member, content


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A `.nemo` with members that it should not have, in some compression, and then damaged or not."""
    config = draw(
        st.just(CONFIG)
        | with_one_value_changed(STOCK).map(lambda value: yaml.safe_dump(value).encode())
        | st.text("{}[]&*a:1 -\n\"'!?|%@${}.", max_size=60).map(str.encode)
        | st.binary(max_size=40)
    )
    parts = [("./model_config.yaml", config), ("./model_weights.ckpt", WEIGHTS)]
    sound = [(tarfile.TarInfo(name), content) for name, content in parts]
    for member, content in sound:
        member.size = len(content)
    rows = draw(st.permutations(sound + draw(st.lists(members(), max_size=3))))
    out = io.BytesIO()
    kind = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        for member, content in rows:
            try:
                archive.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):
                continue  # tar itself cannot write it
    packed = out.getvalue()
    after = draw(st.sampled_from(["", "", "", "again", "x"]))
    packed += packed if after == "again" else after.encode()
    if draw(st.booleans()):
        packed = gzip.compress(packed, 1)
    return draw(damaged(packed)) if draw(st.booleans()) else packed


def read_as_nemo(path: Path, name: str) -> list[bytes]:
    """Every member that a reader of tar could take for the one of this name."""
    try:
        with tarfile.open(path, "r:"):
            mode = "r:"
    except tarfile.ReadError:
        mode = "r:gz"
    with tarfile.open(path, mode) as archive:
        found = [m for m in archive.getmembers() if os.path.normpath(m.name).lower() == name]
        streams = [archive.extractfile(member) for member in found]
        return [stream.read() for stream in streams if stream is not None]


@examples(250)
@given(content=archives())
def test_an_archive_is_read_as_nemo_reads_it_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "m.nemo"
    path.write_bytes(content)
    archive = loads(NemoArchive, path)
    if archive is None:
        assert files_in(folder).keys() == {"m.nemo"}
        return
    (config,) = read_as_nemo(path, MODEL_CONFIG)
    (folder / "out").mkdir()
    loads(archive.unpack, folder / "out")
    files = {name for name in files_in(folder) if (folder / name).is_file()}
    assert files == {"m.nemo", *(f"out/{name}" for name in archive.members)}
    assert (folder / "out" / MODEL_CONFIG).read_bytes() == config
    for check in (check_archive_tokenizer, tokenizer_of):
        loads(check, archive)
    loads(check_numbers, archive.config, str(path))


@examples(250)
@given(config=with_one_value_changed(STOCK) | VALUES | st.dictionaries(TEXTS, VALUES, max_size=6))
def test_a_config_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, config: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model_config.yaml").write_bytes(yaml.safe_dump(config).encode("utf-8", "surrogatepass"))
    archive = loads(NemoArchive, folder)
    if archive is not None:
        assert isinstance(archive.target, str)
        loads(check_archive_tokenizer, archive, True)
        loads(check_numbers, archive.config, str(folder))
