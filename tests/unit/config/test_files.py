# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that a `tutor:` section names."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import TeacherConfig, check_teacher_files, parse_tutor
from tests.conftest import refusal as refused
from tests.unit.config.sections import parse


@pytest.mark.parametrize("path", ["", "model_path: null, ", "model_path: '???', "])
def test_a_cache_needs_no_file(path: str) -> None:
    teacher = f"{{{path}cache: c}}"
    config = parse(
        f"teacher: {teacher}, other_teachers: [{teacher}], stages: [{{name: a, weights: {{skd: 1}}}}]"
    )
    assert config.teacher == TeacherConfig(cache="c") and config.other_teachers == [config.teacher]


def test_a_path_left_to_fill_in_becomes_null() -> None:
    """YAMLs of earlier versions have `???`, and NeMo rejects a config with missing values."""
    teacher = {"model_path": "???", "cache": "c"}
    stages = [{"name": "a", "weights": {"skd": 1.0}}]
    cfg = OmegaConf.create({"tutor": {"teacher": teacher, "other_teachers": [teacher], "stages": stages}})
    parse_tutor(cfg)
    found = OmegaConf.to_container(cfg.tutor, throw_on_missing=True)
    assert found["teacher"] == found["other_teachers"][0] == {"model_path": None, "cache": "c"}


def test_files_that_do_not_exist_are_named_with_their_key(tmp_path: Path) -> None:
    teacher, adapter = tmp_path / "t.nemo", tmp_path / "a.safetensors"
    section = f"teacher: {{model_path: {teacher}, adapter: {adapter}}}"
    assert refused(check_teacher_files, parse(section)).startswith(
        f"model.tutor.teacher.model_path: there is no file {teacher}; "
    )
    teacher.touch()
    assert f"model.tutor.teacher.adapter is {adapter}, and" in refused(check_teacher_files, parse(section))
    adapter.touch()
    check_teacher_files(parse(section))
    check_teacher_files(parse("teacher: {model_path: stt_en_conformer_ctc_large}"))
    check_teacher_files(parse(f"teacher: {{model_path: gone.nemo, cache: {tmp_path}}}"))
    gone = f"teacher: {{cache: {tmp_path / 'gone'}}}"
    assert "gone, and there is no such folder; " in refused(check_teacher_files, parse(gone))
    assert "which is a file; " in refused(check_teacher_files, parse(f"teacher: {{cache: {teacher}}}"))
    check_teacher_files(None)
