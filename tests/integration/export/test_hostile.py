# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hostile archives through every entrance, and that NeMo gets what was checked."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet import export_student, verify_student
from nemo_tutornet.commands.inspect_model import inspect_model
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.nemo_io import archive as archive_module
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.tokenizer import resolve_teacher_tokenizer
from tests.conftest import refusal
from tests.integration.export.test_source import repack
from tests.integration.students import build
from tests.unit.nemo_io.hostile import HOSTILE, make_hostile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of characters in `char/run.nemo` and one of subwords in `bpe/run.nemo`."""
    folder = tmp_path_factory.mktemp("students")
    build("quartznet", folder / "char")
    build("quartznet bpe", folder / "bpe")
    return folder


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_entrance_opens_it(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = make_hostile(folder / "bpe" / "run.nemo", tmp_path / "evil.nemo", kind)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("stock NeMo was started on it"))
    for entrance in (
        lambda: export_student(evil, tmp_path / "student.nemo"),
        lambda: inspect_model(evil),
        lambda: LiveTeacher.from_config(TeacherConfig(model_path=str(evil))),
        lambda: resolve_teacher_tokenizer(OmegaConf.create({"tokenizer": str(evil)})),
    ):
        assert str(evil) in refusal(entrance)
    verification = verify_student(evil)
    (check,) = verification.checks
    assert (check.name, check.passed) == ("archive", False) and str(evil) in check.found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.nemo"]


def test_a_harmless_config_does_not_cover_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack itself: NeMo restores the first config, a guard that normalises names reads the last one."""
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    real = folder / "char" / "run.nemo"
    first = repack(real, tmp_path / "first.nemo", lambda config: config.update(notes="${oc.env:MY_TOKEN}"))
    evil = tmp_path / "evil.nemo"
    with tarfile.open(first) as old, tarfile.open(real) as harmless, tarfile.open(evil, "w") as new:
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
        config = harmless.getmember("./model_config.yaml")
        stream = harmless.extractfile(config)
        config.name = "./x/../model_config.yaml"
        new.addfile(config, stream)
    assert "a name that leads out of it" in refusal(export_student, evil, tmp_path / "student.nemo")
    assert not (tmp_path / "student.nemo").exists()


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_nemo_restores_the_checked_bytes(folder: Path, tmp_path: Path, kind: str, unpacked: bool) -> None:
    source = folder / kind / "run.nemo"
    archive = NemoArchive(source)
    if unpacked:
        (tmp_path / "unpacked").mkdir()
        archive.unpack(tmp_path / "unpacked")
        archive = NemoArchive(tmp_path / "unpacked")
        # A config that is changed after it was read does not reach NeMo; times and sizes stay as they were.
        config = tmp_path / "unpacked" / "model_config.yaml"
        printed, text = config.stat(), config.read_text(encoding="utf-8")
        assert "sample_rate: 16000" in text
        with config.open("r+", encoding="utf-8") as file:
            file.write(text.replace("sample_rate: 16000", "sample_rate: 16001"))
        os.utime(config, ns=(printed.st_atime_ns, printed.st_mtime_ns))
    model = restore_ctc(archive)
    assert model.cfg.sample_rate == 16000
    model.save_to(str(tmp_path / "again.nemo"))
    stock = restore_ctc(source)
    again = restore_ctc(tmp_path / "again.nemo")
    state, expected = again.state_dict(), stock.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    if kind == "bpe":
        assert again.tokenizer.text_to_ids("ab cd") == stock.tokenizer.text_to_ids("ab cd")
        assert [name for name in NemoArchive(tmp_path / "again.nemo").members if "token" in name] == [
            name for name in NemoArchive(source).members if "token" in name
        ]


def test_an_export_parses_each_config_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Any] = []
    parse = archive_module._as_config
    monkeypatch.setattr(
        archive_module, "_as_config", lambda content, path: (parsed.append(path), parse(content, path))[1]
    )
    source = folder / "bpe" / "run.nemo"
    export_student(source, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", verify=True)
    assert [path.name for path in parsed] == ["run.nemo", "student.nemo"]


def test_an_unpacked_folder_is_exported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    NemoArchive(folder / "bpe" / "run.nemo").unpack(tmp_path / "unpacked")
    done = export_student(tmp_path / "unpacked", tmp_path / "student.nemo", verify=True)
    assert done.verification is not None and done.verification.passed
