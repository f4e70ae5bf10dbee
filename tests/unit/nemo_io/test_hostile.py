# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is checked is what is used: an archive with doubtful members is refused, and one that changes too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_tutornet.nemo_io import archive as archive_module
from nemo_tutornet.nemo_io.archive import NemoArchive
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
    assert folder.config == archive.config and folder.sha256 is None and folder.is_folder
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
