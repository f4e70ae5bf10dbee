# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A student's file with one value of its config changed: every entrance reads it, or refuses it in a
sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet import export_student
from nemo_tutornet.commands.inspect_model import inspect_model
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.teachers.live import LiveTeacher
from tests.integration.export.test_source import repack
from tests.integration.students import build
from tests.properties import examples
from tests.unit.fuzz.hostile_files import files_in, loads, with_one_value_changed


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    for kind in ("quartznet", "fastconformer bpe"):
        build(kind, folder / kind)
    return {kind: folder / kind / "run.nemo" for kind in ("quartznet", "fastconformer bpe")}


@pytest.mark.parametrize("kind", ["quartznet", "fastconformer bpe"])
@examples(10)
@given(data=st.data())
def test_a_student_with_another_value_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, students: dict[str, Path], kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = yaml.safe_load(NemoArchive(students[kind]).read("model_config.yaml"))
    sections = ("preprocessor", "encoder", "decoder", "tokenizer", "labels", "decoding", "sample_rate")
    section = data.draw(st.sampled_from([name for name in sections if name in content]))
    changed = {**content, section: data.draw(with_one_value_changed(content[section]))}

    def change(config: dict[str, Any]) -> None:
        config.clear()
        config.update(changed)

    evil = repack(students[kind], folder / "evil.nemo", change)
    loads(inspect_model, evil)
    loads(LiveTeacher.from_config, TeacherConfig(model_path=str(evil)))
    done = loads(export_student, evil, folder / "out.nemo")
    assert files_in(folder).keys() == {"evil.nemo", *(["out.nemo"] if done is not None else [])}
