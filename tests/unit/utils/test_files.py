# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from nemo_tutornet.utils.files import (
    atomic_write,
    defer_signals,
    sha256_of,
    staging_directories,
    staging_directory,
)

# --- Files


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.nemo"
    with atomic_write(path) as temporary:
        # The same file system, so that renaming is atomic; the same name, so that messages about it are
        # right.
        assert temporary.parent.parent == path.parent and temporary.name == path.name
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert listing(path.parent) == ["m.nemo"]


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    with staging_directory(tmp_path) as folder:
        (folder / "a").write_bytes(b"1")
        (folder / "b").write_bytes(b"2")
        assert listing(tmp_path) == [folder.name]
    assert listing(tmp_path) == ["a", "b"]
    with pytest.raises(RuntimeError), staging_directory(tmp_path) as folder:
        (folder / "a").write_bytes(b"3")
        raise RuntimeError
    assert listing(tmp_path) == ["a", "b"] and (tmp_path / "a").read_bytes() == b"1"


def test_an_old_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert listing(tmp_path) == ["m.nemo"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [True, False])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type, old: bool) -> None:
    path = tmp_path / "m.nemo"
    if old:
        path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert listing(tmp_path) == (["m.nemo"] if old else [])
    if old:
        assert path.read_bytes() == b"old"


def test_a_writer_that_removes_its_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), atomic_write(path) as temporary:
        temporary.unlink()
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["m.nemo"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        fsync(file)
        status = os.fstat(file)
        what = "folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes"
        events.append(f"{what} on the disk")

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        events.append("named")

    monkeypatch.setattr("nemo_tutornet.utils.files.os.fsync", synced)
    monkeypatch.setattr("nemo_tutornet.utils.files.os.replace", replaced)
    with atomic_write(tmp_path / "m.nemo", durable) as temporary:
        temporary.write_bytes(b"new")
    assert events == (["3 bytes on the disk", "named", "folder on the disk"] if durable else ["named"])
    assert (tmp_path / "m.nemo").read_bytes() == b"new" and listing(tmp_path) == ["m.nemo"]


def test_a_file_that_cannot_be_made_durable_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.nemo").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("nemo_tutornet.utils.files.os.fsync", full)
    with (
        pytest.raises(OSError, match="no space"),
        atomic_write(tmp_path / "m.nemo", durable=True) as temporary,
    ):
        temporary.write_bytes(b"new")
    assert (tmp_path / "m.nemo").read_bytes() == b"old" and listing(tmp_path) == ["m.nemo"]


@pytest.mark.parametrize("letter", ["m", "é", "日"])
def test_a_name_as_long_as_the_system_lets_it(tmp_path: Path, letter: str) -> None:
    path = tmp_path / (letter * (255 // len(letter.encode())))
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "m.nemo") as temporary:
            temporary.write_bytes(b"new")
        after = os.umask(umask)
    finally:
        os.umask(before)
    assert after == umask, "the umask was changed"
    assert stat.S_IMODE((tmp_path / "m.nemo").stat().st_mode) == 0o666 & ~umask


def test_files_of_several_folders_appear_together_or_not_at_all(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for _ in range(2):
        with staging_directories(a, b, a) as stages:
            assert list(stages) == [a, b]
            (stages[a] / "m.nemo").write_bytes(b"old")
            (stages[b] / "m.onnx").write_bytes(b"old")
    (b / "n.onnx").mkdir()
    with pytest.raises(IsADirectoryError) as error, staging_directories(a, b) as stages:
        for path in (stages[a] / "m.nemo", stages[b] / "m.onnx", stages[b] / "n.onnx"):
            path.write_bytes(b"new")
    assert error.value.strerror == f"{b / 'n.onnx'} is a folder"
    assert (a / "m.nemo").read_bytes() == (b / "m.onnx").read_bytes() == b"old"
    assert listing(a) == ["m.nemo"] and listing(b) == ["m.onnx", "n.onnx"]


def test_an_interrupt_while_files_appear_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr("nemo_tutornet.utils.files.os.replace", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), staging_directory(tmp_path) as folder:
            (folder / "a").touch()
            (folder / "b").touch()
    finally:
        signal.signal(signal.SIGINT, before)
    assert listing(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, "own"])
def test_an_interrupt_is_put_off_and_not_lost(number: int, handler: Any) -> None:
    printed: list[int] = []
    own = (lambda got, _: printed.append(got)) if handler == "own" else handler
    before = signal.signal(number, own)
    steps = []
    try:
        with defer_signals():
            os.kill(os.getpid(), number)
            steps.append("done")
            assert not printed
    except KeyboardInterrupt:
        steps.append("interrupted")
    finally:
        after = signal.signal(number, before)
    assert after is own and printed == ([number] if handler == "own" else [])
    assert steps == (["done", "interrupted"] if handler == signal.SIG_DFL else ["done"])


def test_files_appear_in_any_thread(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "m.nemo") as temporary:
            temporary.touch()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert listing(tmp_path) == ["m.nemo"]


def test_a_folder_moves_as_one_and_replaces_all_of_the_older(tmp_path: Path) -> None:
    for content in ("1", "2"):
        with staging_directory(tmp_path) as stage:
            (stage / "model").mkdir()
            (stage / "model" / content).write_text(content)
            (stage / "file").write_text(content)
        assert listing(tmp_path) == ["file", "model"]
        assert listing(tmp_path / "model") == [content]
    with pytest.raises(RuntimeError), staging_directory(tmp_path) as stage:
        (stage / "model").mkdir()
        raise RuntimeError
    assert listing(tmp_path / "model") == ["2"]
    with pytest.raises(NotADirectoryError), staging_directory(tmp_path) as stage:
        (stage / "file").mkdir()
    assert (tmp_path / "file").read_text() == "2"
