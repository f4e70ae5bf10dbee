# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section: unknown keys, wrong types and missing values."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import parse_tutor
from nemo_tutornet.errors import TutorError
from tests.unit.config.sections import SECOND, TEACHER, refusal, stages


@pytest.mark.parametrize(
    "section, words",
    [
        (f"techer: {{}}, {TEACHER}", ["model.tutor.techer ", "did you mean 'teacher'?"]),
        ("teacher: {model_pth: t.nemo}", ["model.tutor.teacher.model_pth ", "did you mean 'model_path'?"]),
        (f"{TEACHER}, rkd: {{hint_layr: a}}", ["model.tutor.rkd.hint_layr ", "did you mean 'hint_layer'?"]),
        (
            f"{TEACHER}, skd: {{temprature: 2}}",
            ["model.tutor.skd.temprature ", "did you mean 'temperature'?"],
        ),
        (
            f"{TEACHER}, skd: {{zzz: 2}}",
            ["model.tutor.skd.zzz ", "divergence, temperature, frames, frames_around, match_window"],
        ),
        (f"{TEACHER}, 7: x", ["model.tutor.7 "]),
        (
            stages("name: a, epochs: 1, weights: {rkd: 1}", "name: b, epoch: 1, weights: {ctc: 1}"),
            ["model.tutor.stages[1].epoch ", "did you mean 'epochs'?"],
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(section: str, words: list[str]) -> None:
    message = refusal(section)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "section",
    [
        "",
        "teacher: {}",
        "teacher: {precision: fp32}",
        "teacher: {model_path: ???}",
        "teacher: {model_path: null}",
        "teacher: {model_path: ' '}",
        "teacher: {model_path: ???, cache: null}",
    ],
)
def test_the_teachers_path_must_be_given(section: str) -> None:
    section = section.replace("???", "'???'")
    assert refusal(section) == (
        "model.tutor.teacher.model_path is not set; give the teacher's .nemo file or the name of a "
        "pretrained NeMo model, or model.tutor.teacher.cache, a folder that `nemo-tutornet cache` wrote."
    )


def test_null_is_no_name_and_no_section() -> None:
    nameless = refusal(f"{TEACHER}, stages: [{{name: null, weights: {{ctc: 1}}}}]")
    assert nameless == "model.tutor.stages[0].name is not set; give it."
    assert refusal(f"{TEACHER}, rkd: null").endswith("not None; leave it out for the defaults.")


@pytest.mark.parametrize(
    "section, path",
    [
        ("teacher: null", "model.tutor.teacher"),
        ("teacher: t.nemo", "model.tutor.teacher"),
        ("teacher: [t.nemo]", "model.tutor.teacher"),
        ("teacher: {model_path: null}", "model.tutor.teacher.model_path"),
        ("teacher: {model_path: [t.nemo]}", "model.tutor.teacher.model_path"),
        ("teacher: {model_path: t.nemo, sha256: [1]}", "model.tutor.teacher.sha256"),
        ("teacher: {model_path: t.nemo, prompt: de}", "model.tutor.teacher.prompt"),
        ("teacher: {model_path: t.nemo, prompt: {pnc: null}}", "model.tutor.teacher.prompt.pnc"),
        ("teacher: {model_path: t.nemo, prompt: {pnc: [a]}}", "model.tutor.teacher.prompt.pnc"),
        (f"{TEACHER}, rkd: 3", "model.tutor.rkd"),
        (f"{TEACHER}, rkd: null", "model.tutor.rkd"),
        (f"{TEACHER}, rkd: {{warm_start_decoder: perhaps}}", "model.tutor.rkd.warm_start_decoder"),
        (f"{TEACHER}, rkd: {{hint_layer: [a]}}", "model.tutor.rkd.hint_layer"),
        (f"{TEACHER}, rkd: {{pairs: a}}", "model.tutor.rkd.pairs"),
        (f"{TEACHER}, rkd: {{pairs: [a]}}", "model.tutor.rkd.pairs[0]"),
        (f"{TEACHER}, rkd: {{pairs: [{{hint_layer: a}}]}}", "model.tutor.rkd.pairs[0].guided_layer"),
        (
            f"{TEACHER}, rkd: {{pairs: [{{hint_layer: [a], guided_layer: b}}]}}",
            "model.tutor.rkd.pairs[0].hint_layer",
        ),
        (
            f"{TEACHER}, rkd: {{pairs: [{{hint_layer: null, guided_layer: b}}]}}",
            "model.tutor.rkd.pairs[0].hint_layer",
        ),
        (f"{TEACHER}, init: 3", "model.tutor.init"),
        (f"{TEACHER}, init: [teacher]", "model.tutor.init"),
        (f"{TEACHER}, init: {{source: [teacher]}}", "model.tutor.init.source"),
        (f"{TEACHER}, init: {{source: teacher, layers: 3}}", "model.tutor.init.layers"),
        (f"{TEACHER}, init: {{source: teacher, layers: [first]}}", "model.tutor.init.layers[0]"),
        (f"{TEACHER}, init: {{source: teacher, layers: [1.5]}}", "model.tutor.init.layers[0]"),
        (f"{TEACHER}, skd: l2", "model.tutor.skd"),
        (f"{TEACHER}, skd: {{temperature: warm}}", "model.tutor.skd.temperature"),
        (f"{TEACHER}, skd: {{frames_around: 1.5}}", "model.tutor.skd.frames_around"),
        (f"{TEACHER}, stages: null", "model.tutor.stages"),
        (f"{TEACHER}, stages: 3", "model.tutor.stages"),
        (f"{TEACHER}, stages: rkd", "model.tutor.stages"),
        (f"{TEACHER}, stages: {{name: a}}", "model.tutor.stages"),
        (f"{TEACHER}, stages: [rkd]", "model.tutor.stages[0]"),
        (stages("weights: {ctc: 1}"), "model.tutor.stages[0].name"),
        (stages("name: null, weights: {ctc: 1}"), "model.tutor.stages[0].name"),
        (stages(SECOND, "name: b"), "model.tutor.stages[1].weights"),
        (stages(SECOND, "name: b, weights: null"), "model.tutor.stages[1].weights"),
        (stages(SECOND, "name: b, weights: [1]"), "model.tutor.stages[1].weights"),
        (stages(SECOND, "name: b, weights: {ctc: much}"), "model.tutor.stages[1].weights.ctc"),
        (stages(SECOND, "name: b, weights: {ctc: null}"), "model.tutor.stages[1].weights.ctc"),
        (stages(SECOND, "name: b, weights: {ctc: true}"), "model.tutor.stages[1].weights.ctc"),
        (stages(SECOND, "name: b, weights: {ctc: [1]}"), "model.tutor.stages[1].weights.ctc"),
        (stages(SECOND, "name: b, weights: {1: 1}"), "model.tutor.stages[1].weights.1"),
        (stages(SECOND, "name: b, weights: {ctc: 1}, epochs: many"), "model.tutor.stages[1].epochs"),
        (stages(SECOND, "name: b, weights: {ctc: 1}, epochs: 1.5"), "model.tutor.stages[1].epochs"),
        (stages(SECOND, "name: b, weights: {ctc: 1}, epochs: true"), "model.tutor.stages[1].epochs"),
        (stages("name: b, weights: {ctc: 1}, steps: [1]"), "model.tutor.stages[0].steps"),
        (stages("name: b, weights: {ctc: 1}, share: half"), "model.tutor.stages[0].share"),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(section: str, path: str) -> None:
    message = refusal(section)
    assert message.startswith((f"{path}:", f"{path} ", f"{path},")), message


@pytest.mark.parametrize(
    "section, path",
    [
        ("teacher: {model_path: '${model.nowhere}'}", "model.tutor.teacher.model_path"),
        ("teacher: {model_path: '${oc.env:NEMO_TUTORNET_NOT_SET}'}", "model.tutor.teacher.model_path"),
        (f"{TEACHER}, skd: {{divergence: '${{model.nowhere}}'}}", "model.tutor.skd.divergence"),
    ],
)
def test_an_interpolation_that_does_not_resolve_is_refused(section: str, path: str) -> None:
    assert refusal(section).startswith(path)


@pytest.mark.parametrize("section", ["t.nemo", 3, ["t.nemo"], True])
def test_a_section_that_is_none_is_refused(section: Any) -> None:
    for model_cfg in ({"tutor": section}, OmegaConf.create({"tutor": section})):
        with pytest.raises(TutorError, match=r"^model\.tutor must be a section of keys"):
            parse_tutor(model_cfg)


def test_a_section_left_to_fill_in_is_not_no_section() -> None:
    with pytest.raises(TutorError, match=r"^model\.tutor"):
        parse_tutor(OmegaConf.create({"tutor": "???"}))
