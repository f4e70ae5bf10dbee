# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is checked is what is used: an archive with doubtful members is refused, and one that changes too."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.scrub import paths_in_tokenizers
from nemo_tutornet.nemo_io import archive as archive_module
from nemo_tutornet.nemo_io import tar_members
from nemo_tutornet.nemo_io.archive import NemoArchive, sha256_of_model
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import refusal
from tests.unit.nemo_io.hostile import HOSTILE, make_hostile
from tests.unit.nemo_io.test_archive import CONFIG, WEIGHTS, nemo_file, write_tar


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_doubtful_member_is_refused(tmp_path: Path, kind: str) -> None:
    source = nemo_file(tmp_path)
    assert NemoArchive(source).members == ("model_config.yaml", "model_weights.ckpt")
    evil = make_hostile(source, tmp_path / "evil.nemo", kind)
    message = refusal(NemoArchive, evil)
    assert str(evil) in message and ("regular files under plain names" in message or "twice" in message)


def gzip_and_tar(folder: Path) -> Path:
    """A file that is a tar for one reader, and compressed for another: each finds its own config.

    The gzip header has an extra field, and the tar is in it.
    """
    harmless = nemo_file(folder, b"target: harmless\n").read_bytes()
    packed = gzip.compress(harmless)
    # The name of the tar's first member begins as a gzip file does. Its extra field ends where the second
    # member's content begins.
    first = tarfile.TarInfo("model_config.yaml")
    first.size = len(CONFIG)
    second = tarfile.TarInfo("rest")
    second.size = len(packed) - 10
    lead = tarfile.TarInfo("x")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(lead)
        archive.addfile(first, io.BytesIO(CONFIG))
        archive.addfile(second, io.BytesIO(packed[10:]))
    content = bytearray(out.getvalue())
    extra = 4 * 512 - 12
    content[:100] = (packed[:3] + b"\x04" + packed[4:10] + extra.to_bytes(2, "little") + b"y").ljust(
        100, b"\0"
    )
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path = folder / "both.nemo"
    path.write_bytes(content)
    return path


def test_a_file_of_two_formats_is_refused(tmp_path: Path) -> None:
    path = gzip_and_tar(tmp_path)
    with tarfile.open(path, "r:") as archive:
        assert "model_config.yaml" in archive.getnames() and "rest" in archive.getnames()
    with gzip.open(path) as stream:
        assert b"target: harmless" in stream.read(2048)
    assert str(path) in refusal(NemoArchive, path)


@pytest.mark.parametrize("rest", [b"x", b"\0" * (2 << 20), "an archive"], ids=["text", "zeros", "archive"])
def test_nothing_stands_behind_the_end(tmp_path: Path, rest: bytes | str) -> None:
    path = nemo_file(tmp_path)
    more = path.read_bytes() if isinstance(rest, str) else rest
    path.write_bytes(path.read_bytes() + b"\0" * 9000)
    NemoArchive(path)  # padding, as other writers of tar leave it
    path.write_bytes(path.read_bytes() + more)
    assert "goes on behind the end" in refusal(NemoArchive, path)


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "m.nemo", ("model_config.yaml", CONFIG), ("large", bytes(70 << 20)), mode="w:gz"
    )
    assert path.stat().st_size < 100_000
    assert "unpacks to more than" in refusal(NemoArchive, path)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "_MEMBERS", 3)
    path = write_tar(tmp_path / "m.nemo", ("model_config.yaml", CONFIG), *((f"{i}", b"") for i in range(3)))
    assert "more than 3 files" in refusal(NemoArchive, path)
    (tmp_path / "folder").mkdir()
    for name in ("model_config.yaml", "a", "b", "c"):
        (tmp_path / "folder" / name).write_bytes(CONFIG)
    assert "more than 3 files" in refusal(NemoArchive, tmp_path / "folder")


def test_a_large_member_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_MEMBER_BYTES", 1000)
    archive = NemoArchive(
        write_tar(tmp_path / "m.nemo", ("model_config.yaml", CONFIG), ("a.model", bytes(1001)))
    )
    assert "larger than any tokenizer" in refusal(archive.read, "a.model")
    with pytest.raises(TutorError, match="larger than any tokenizer"):
        paths_in_tokenizers(archive)


BOMBS = {
    "texts": ["a0: 0123456789", *(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 40))],
    "sections": ["a0: {x: 1, y: 2}", *(f"a{i}: {{x: '${{a{i - 1}}}', y: '${{.x}}'}}" for i in range(1, 40))],
    "resolvers": [
        "a0: 0123456789",
        *(f"a{i}: ${{oc.select:a{i - 1}}}${{oc.select:a{i - 1}}}" for i in range(1, 40)),
    ],
    "keys": [
        "a0: 0123456789",
        "k0: a0",
        *(f"k{i}: a{i}\na{i}: ${{${{k{i - 1}}}}}${{${{k{i - 1}}}}}" for i in range(1, 40)),
    ],
    "a circle": ["a: ${b}", "b: ${a}"],
    "a section in itself": ["a: {b: '${a}'}"],
    "a long chain": ["a0: 1", *(f"a{i}: ${{a{i - 1}}}" for i in range(1, 5000))],
    "aliases": ["x0: &x0 [1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 40))],
    "tags": ["a: !!timestamp 2001-99-99"],
    "an empty integer": ["a: !!int ''"],
    "a bad boolean": ["a: !!bool x"],
    "digits": ["a: " + "9" * 5000],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_config_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: str) -> None:
    path = nemo_file(tmp_path, CONFIG + "\n".join(BOMBS[kind]).encode() + b"\n")
    assert "model_config.yaml is not readable" in refusal(NemoArchive, path)


@pytest.mark.parametrize(
    "config",
    [
        "a: {b: '${..c}'}\nc: 3",
        "a: ${multiply:${c},2}\nc: 3",
        "x: [1, 2]\na: ${x[0]}\nb: ${x.1}",
        "a: ${oc.env:HOME}",
    ],
)
def test_a_config_with_some_interpolations_is_read(tmp_path: Path, config: str) -> None:
    assert "a" in NemoArchive(nemo_file(tmp_path, CONFIG + config.encode())).config


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_are_read_and_unpacked_as_they_are(tmp_path: Path, mode: str) -> None:
    members = {
        "model_weights.ckpt": WEIGHTS,
        "model_config.yaml": CONFIG,
        "sub/empty": b"",
        "large": b"ab" * (1 << 20),
    }
    path = write_tar(
        tmp_path / "m.nemo", *((f"./{name}", value) for name, value in members.items()), mode=mode
    )
    archive = NemoArchive(path)
    assert archive.members == tuple(members) and archive.sha256 == sha256_of(path)
    assert {name: archive.read(name) for name in archive.members} == members
    with pytest.raises(KeyError):
        archive.read("other")
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "out")
    folder = NemoArchive(tmp_path / "out")
    assert {name: folder.read(name) for name in folder.members} == members
    assert folder.config == archive.config and folder.is_folder
    assert folder.sha256 == sha256_of_model(folder.path) != archive.sha256
    (tmp_path / "part").mkdir()
    archive.unpack(tmp_path / "part", ["sub/empty", "large"])
    written = [file.relative_to(tmp_path / "part").as_posix() for file in (tmp_path / "part").rglob("*")]
    assert sorted(written) == ["large", "sub", "sub/empty"]


@pytest.mark.parametrize("kind", ["a link", "a link to a folder", "a pipe", "a config that is a link"])
def test_a_folder_with_anything_but_files_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "unpacked"
    (folder / "sub").mkdir(parents=True)
    (folder / "model_config.yaml").write_bytes(CONFIG)
    (folder / "sub" / "file").write_bytes(b"x")
    assert NemoArchive(folder).members == ("model_config.yaml", "sub/file")
    if kind == "a pipe":
        os.mkfifo(folder / "sub" / "evil")
    elif kind == "a config that is a link":
        (folder / "model_config.yaml").rename(tmp_path / "elsewhere.yaml")
        (folder / "model_config.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    else:
        (folder / "sub" / "evil").symlink_to("/etc/hostname" if kind == "a link" else "/etc")
    message = refusal(NemoArchive, folder)
    assert str(folder) in message and "regular files under plain names" in message


def test_a_file_that_was_replaced_is_not_read_in_its_place(tmp_path: Path) -> None:
    archive = NemoArchive(nemo_file(tmp_path))
    nemo_file(tmp_path, CONFIG + b"other: 1\n")
    for call in (
        lambda: archive.read("model_weights.ckpt"),
        lambda: archive.unpack(tmp_path / "out"),
        lambda: archive.sha256,
    ):
        assert "has changed since it was opened" in refusal(call)


def test_a_link_put_into_a_folder_later_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "model_config.yaml").write_bytes(CONFIG)
    (folder / "vocab.txt").write_bytes(b"a\n")
    archive = NemoArchive(folder)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to("/etc/hostname")
    assert str(folder) in refusal(archive.read, "vocab.txt")


def test_a_rewritten_file_is_parsed_again_only_where_its_config_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    parse = archive_module._as_config
    monkeypatch.setattr(
        archive_module, "_as_config", lambda content, path: (parsed.append(path), parse(content, path))[1]
    )
    first = NemoArchive(nemo_file(tmp_path))
    write_tar(first.path, ("./model_config.yaml", CONFIG), ("./other", b"x"))
    second = first.reopened()
    assert second.members == ("model_config.yaml", "other") and second.config is first.config
    assert len(parsed) == 1
    nemo_file(tmp_path, CONFIG + b"other: 1\n")
    assert second.reopened().config.other == 1 and len(parsed) == 2
