# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section: what is accepted, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import (
    InitConfig,
    LayerPairConfig,
    RKDConfig,
    SKDConfig,
    TeacherConfig,
    TutorConfig,
    check_renamed_overrides,
    check_teacher_files,
    parse_tutor,
)
from nemo_tutornet.errors import TutorError
from tests.conftest import refusal as refused

TEACHER = "teacher: {model_path: t.nemo}"


def parse(section: str) -> TutorConfig:
    """Parses a `tutor:` section written in YAML, as part of a whole config."""
    config = parse_tutor(
        OmegaConf.create(f"name: mine\nmodel: {{path: other.nemo, tutor: {{{section}}}}}").model
    )
    assert config is not None
    return config


def refusal(section: str) -> str:
    with pytest.raises(TutorError) as error:
        parse(section)
    message = str(error.value)
    assert "\n" not in message and message[-1] in ".?"
    return message


def stages(*items: str) -> str:
    return f"{TEACHER}, stages: [{', '.join('{' + item + '}' for item in items)}]"


# --- What is accepted


@pytest.mark.parametrize(
    "model_cfg", [None, {}, {"tutor": None}, OmegaConf.create({"tutor": None}), OmegaConf.create({})]
)
def test_no_section_is_no_teacher(model_cfg: Any) -> None:
    assert parse_tutor(model_cfg) is None


def test_the_teachers_path_is_enough() -> None:
    config = parse(TEACHER)
    assert config.teacher.model_path == "t.nemo"
    assert (config.teacher.sha256, config.teacher.precision) == (None, "auto")
    assert (config.rkd.hint_layer, config.rkd.guided_layer) == (None, None)
    assert (config.rkd.frame_weighting, config.rkd.warm_start_decoder) == ("auto", True)
    assert config.skd == SKDConfig("l2", 1.0, "all", 4, intermediate_layers=[], intermediate_weight=1.0)
    assert config.other_teachers == [] and config.teacher.weight == 1.0
    assert [(s.name, s.weights, s.share, s.epochs, s.steps) for s in config.stages] == [
        ("rkd", {"rkd": 1.0}, 0.25, None, None),
        ("ctc", {"ctc": 1.0, "rkd": 5.0}, None, None, None),
    ]


@pytest.mark.parametrize(
    "init, source, layers",
    [
        ("teacher", "teacher", None),
        ("null", None, None),
        ("{}", None, None),
        ("{source: null, layers: null}", None, None),
        ("{source: teacher}", "teacher", None),
        ("{source: teacher, layers: [0, 2, 2]}", "teacher", [0, 2, 2]),
    ],
)
def test_where_the_first_weights_come_from(init: str, source: str | None, layers: list[int] | None) -> None:
    assert parse(f"{TEACHER}, init: {init}").init == InitConfig(source, layers)
    assert parse(TEACHER).init == InitConfig(None, None)


@pytest.mark.parametrize(
    "section, sentence",
    [
        ("init: techer", "model.tutor.init.source is 'techer'; choose teacher, or null for random weights."),
        (
            "init: {layers: [0, 1]}",
            "model.tutor.init.layers is set, but model.tutor.init.source is null, so nothing is copied; set "
            "the "
            "source to teacher, or leave layers out.",
        ),
        *[
            (
                f"init: {{source: teacher, layers: {layers}}}",
                f"model.tutor.init.layers is {layers}; give the index of a teacher's block or layer, 0 or "
                "more, for "
                "each of the student's.",
            )
            for layers in ("[]", "[0, -1]")
        ],
    ],
)
def test_wrong_first_weights_are_refused(section: str, sentence: str) -> None:
    assert refusal(f"{TEACHER}, {section}") == sentence


def test_a_cache_has_one_hint_layer() -> None:
    pairs = "rkd: {pairs: [{hint_layer: a, guided_layer: b}]}"
    assert parse(f"{TEACHER}, {pairs}").rkd == RKDConfig(pairs=[LayerPairConfig("a", "b")])
    assert refusal(f"teacher: {{cache: targets}}, {pairs}") == (
        "model.tutor.rkd.pairs is set, but a cache holds one hint layer; leave the pairs out, or train with "
        "the "
        "teacher itself (model.tutor.teacher.cache=null)."
    )


@pytest.mark.parametrize("path", ["", "model_path: null, ", "model_path: '???', "])
def test_a_cache_has_no_weights_to_begin_with(path: str) -> None:
    assert refusal(f"teacher: {{{path}cache: targets}}, init: teacher") == (
        "model.tutor.init copies the teacher's weights, and a cache has none; give "
        "model.tutor.teacher.model_path "
        "beside model.tutor.teacher.cache, or leave init out."
    )
    assert parse("teacher: {model_path: t.nemo, cache: targets}, init: teacher").init.source == "teacher"


@pytest.mark.parametrize(
    "section, told",
    [
        ("skd: {divergence: kl, temperature: 2}", ["model.tutor.skd changes divergence, temperature, but"]),
        ("pseudo_labels: {max_wer: 0.2}", ["model.tutor.pseudo_labels changes max_wer, but"]),
        ("skd: {divergence: l2, intermediate_layers: []}, rkd: {frame_weighting: uniform}", []),
        (
            "skd: {match_window: 4}, rkd: {hint_layer: a}, stages: [{name: b, weights: {ctc: 1, rkd: 0}}]",
            ["model.tutor.rkd changes hint_layer, but", "model.tutor.skd changes match_window, but"],
        ),
        ("skd: {match_window: 4}, stages: [{name: b, weights: {skd: 1}}]", []),
    ],
)
def test_settings_of_a_loss_that_no_stage_uses_are_told(section: str, told: list[str]) -> None:
    found = parse(f"{TEACHER}, {section}").unused()
    assert len(found) == len(told) and all(
        one.startswith(words) for one, words in zip(found, told, strict=True)
    ), found


def test_every_key_is_read() -> None:
    config = parse(
        "teacher: {model_path: a.nemo, sha256: ab12, precision: bf16, prompt: {source_lang: de, pnc: true}},"
        "rkd: {hint_layer: encoder.layers.3, guided_layer: encoder.encoder.1, frame_weighting: energy,"
        "  warm_start_decoder: false},"
        "skd: {divergence: kl, temperature: 2, frames: symmetric, frames_around: 0, match_window: 3},"
        "stages: [{name: one, weights: {rkd: 1, skd: 0.5}, steps: 100}, {name: two, weights: {ctc: 1e-1}, "
        "steps: 7}]"
    )
    assert (config.teacher.model_path, config.teacher.sha256, config.teacher.precision) == (
        "a.nemo",
        "ab12",
        "bf16",
    )
    assert config.teacher.prompt == {"source_lang": "de", "pnc": "True"}
    assert (config.rkd.hint_layer, config.rkd.guided_layer) == ("encoder.layers.3", "encoder.encoder.1")
    assert (config.rkd.frame_weighting, config.rkd.warm_start_decoder) == ("energy", False)
    assert config.skd == SKDConfig("kl", 2.0, "symmetric", 0, 3)
    assert [(s.name, s.weights, s.epochs, s.steps) for s in config.stages] == [
        ("one", {"rkd": 1.0, "skd": 0.5}, None, 100),
        ("two", {"ctc": 0.1}, None, 7),
    ]


def test_a_plain_dictionary_is_read_like_a_config() -> None:
    section: dict[str, Any] = {"teacher": {"model_path": "t.nemo"}, "skd": {"divergence": "kl"}}
    assert parse_tutor({"tutor": section}) == parse_tutor(OmegaConf.create({"tutor": section}))


def test_the_section_is_not_changed() -> None:
    model_cfg = OmegaConf.create({"tutor": {"teacher": {"model_path": "t.nemo"}}})
    before = OmegaConf.to_yaml(model_cfg)
    parse_tutor(model_cfg)
    assert OmegaConf.to_yaml(model_cfg) == before


@pytest.mark.parametrize(
    "section, path",
    [
        ("teacher: {model_path: '${model.path}'}", "other.nemo"),
        ("teacher: {model_path: '/models/${name}.nemo'}", "/models/mine.nemo"),
    ],
)
def test_interpolations_resolve(section: str, path: str) -> None:
    assert parse(section).teacher.model_path == path


def test_uses_counts_positive_weights_only() -> None:
    config = parse(stages("name: a, epochs: 1, weights: {rkd: 1, skd: 0}", "name: b, weights: {ctc: 1}"))
    assert [config.uses(loss) for loss in ("ctc", "rkd", "skd")] == [True, True, False]


def test_a_last_stage_may_have_a_length() -> None:
    assert (
        parse(stages("name: a, epochs: 1, weights: {rkd: 1}", "name: b, epochs: 3, weights: {ctc: 1}"))
        .stages[-1]
        .epochs
        == 3
    )


# --- What is refused


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
        "pretrained "
        "NeMo model, or model.tutor.teacher.cache, a folder that `nemo-tutornet cache` wrote."
    )


def test_null_is_no_name_and_no_section() -> None:
    nameless = refusal(f"{TEACHER}, stages: [{{name: null, weights: {{ctc: 1}}}}]")
    assert nameless == "model.tutor.stages[0].name is not set; give it."
    assert refusal(f"{TEACHER}, rkd: null").endswith("not None; leave it out for the defaults.")


SECOND = "name: a, epochs: 1, weights: {rkd: 1}"
SKD = "name: b, weights: {skd: 1}"


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


@pytest.mark.parametrize(
    "section, words",
    [
        (
            "teacher: {model_path: t, precision: fp16}",
            ["model.tutor.teacher.precision ", "'fp16'", "auto, fp32, bf16"],
        ),
        (
            f"{TEACHER}, rkd: {{frame_weighting: Energy}}",
            ["model.tutor.rkd.frame_weighting ", "auto, nonblank, energy, uniform"],
        ),
        (
            f"{TEACHER}, skd: {{shift: 4}}",
            ["model.tutor.skd.shift is now called model.tutor.skd.match_window; rename the key."],
        ),
        (
            f"{TEACHER}, skd: {{at_layers: []}}",
            ["model.tutor.skd.at_layers is now called model.tutor.skd.intermediate_layers;"],
        ),
        (
            f"{TEACHER}, skd: {{at_layers_weight: 1}}",
            ["model.tutor.skd.at_layers_weight is now called model.tutor.skd.intermediate_weight;"],
        ),
        (
            f"{TEACHER}, skd: {{divergence: guided}}",
            ["model.tutor.skd.divergence: guided is now called guided_ctc;"],
        ),
        (
            f"{TEACHER}, skd: {{divergence: js}}",
            ["model.tutor.skd.divergence ", "'js'", "l2, kl, guided_ctc"],
        ),
        (
            f"{TEACHER}, skd: {{frames: some}}",
            ["model.tutor.skd.frames ", "'some'", "all, nonblank, symmetric"],
        ),
        (f"{TEACHER}, skd: {{frames_around: -1}}", ["model.tutor.skd.frames_around ", "-1"]),
        (f"{TEACHER}, skd: {{frames_around: 1001}}", ["model.tutor.skd.frames_around ", "at most 1000"]),
        (f"{TEACHER}, skd: {{match_window: {10**30}}}", ["model.tutor.skd.match_window"]),
        (f"{TEACHER}, skd: {{match_window: 1001}}", ["model.tutor.skd.match_window ", "at most 1000"]),
        (f"{TEACHER}, skd: {{match_window: -2}}", ["model.tutor.skd.match_window ", "-2"]),
        (f"{TEACHER}, skd: {{divergence: kl, temperature: 0}}", ["model.tutor.skd.temperature ", "above 0"]),
        (f"{TEACHER}, skd: {{divergence: kl, temperature: -2}}", ["model.tutor.skd.temperature ", "-2"]),
        (f"{TEACHER}, skd: {{divergence: kl, temperature: .nan}}", ["model.tutor.skd.temperature ", "nan"]),
        (f"{TEACHER}, skd: {{divergence: kl, temperature: .inf}}", ["model.tutor.skd.temperature ", "inf"]),
        (
            f"{TEACHER}, skd: {{temperature: 2}}",
            ["model.tutor.skd.temperature ", "'kl'", "model.tutor.skd.divergence is 'l2'"],
        ),
        (
            f"{TEACHER}, skd: {{divergence: guided_ctc, temperature: 2}}",
            ["model.tutor.skd.temperature ", "'guided_ctc'"],
        ),
        (
            f"{stages(SKD)}, skd: {{intermediate_layers: [a, b, a]}}",
            ["model.tutor.skd.intermediate_layers ", "twice", "a, b, a"],
        ),
        (
            f"{stages(SKD)}, skd: {{intermediate_layers: [a], intermediate_weight: 0}}",
            ["model.tutor.skd.intermediate_weight ", "above 0"],
        ),
        (
            f"{TEACHER}, skd: {{intermediate_layers: [a]}}",
            ["model.tutor.skd.intermediate_layers ", "no stage", "weights: {ctc: 1.0, skd: 0.25}"],
        ),
        ("teacher: {model_path: t, weight: 0}", ["model.tutor.teacher.weight ", "above 0"]),
        (
            f"{TEACHER}, other_teachers: [{{model_path: u, weight: .nan}}]",
            ["model.tutor.other_teachers[0].weight ", "nan"],
        ),
        (
            f"{TEACHER}, other_teachers: [{{model_path: u, precision: int8}}]",
            ["model.tutor.other_teachers[0].precision ", "'int8'"],
        ),
        (
            f"{TEACHER}, other_teachers: [{{model_path: ' '}}]",
            ["model.tutor.other_teachers[0].model_path is not set; ", "model.tutor.other_teachers[0].cache"],
        ),
        (
            f"{stages('name: b, weights: {rkd: 1}')}, other_teachers: [{{model_path: u}}]",
            ["model.tutor.other_teachers ", "skd"],
        ),
        (
            f"{TEACHER}, other_teachers: [{{model_path: u}}, {{weight: 2}}]",
            ["model.tutor.other_teachers[1].model_path is not set"],
        ),
        (
            f"{TEACHER}, other_teachers: [{{model_path: u, path: v}}]",
            ["model.tutor.other_teachers[0].path is not a key"],
        ),
        (
            f"{TEACHER}, other_teachers: {{model_path: u}}",
            ["model.tutor.other_teachers must be a list of other teachers"],
        ),
        (f"{TEACHER}, other_teachers: [u]", ["model.tutor.other_teachers[0] must be a section of keys"]),
        (f"{TEACHER}, stages: []", ["model.tutor.stages is empty"]),
        (stages(SECOND, "name: b, weights: {ctc: -1}"), ["model.tutor.stages[1].weights.ctc ", "-1"]),
        (stages(SECOND, "name: b, weights: {ctc: .nan}"), ["model.tutor.stages[1].weights.ctc ", "nan"]),
        (stages(SECOND, "name: b, weights: {ctc: .inf}"), ["model.tutor.stages[1].weights.ctc ", "inf"]),
        (stages(SECOND, "name: b, weights: {}"), ["model.tutor.stages[1].weights ", "'b'"]),
        (stages(SECOND, "name: b, weights: {ctc: 0, skd: 0.0}"), ["model.tutor.stages[1].weights ", "'b'"]),
        (
            stages(SECOND, "name: b, weights: {rkd: 1}", "name: c, weights: {ctc: 1}"),
            ["model.tutor.stages[1] ", "'b'", "no length"],
        ),
        (
            stages("name: b, weights: {rkd: 1}, epochs: 1, steps: 9"),
            ["model.tutor.stages[0] ", "epochs", "steps"],
        ),
        (stages("name: b, weights: {rkd: 1}, epochs: 0"), ["model.tutor.stages[0] ", "'b'", "epochs"]),
        (stages("name: b, weights: {rkd: 1}, steps: -5"), ["model.tutor.stages[0] ", "'b'", "steps"]),
        (
            stages(SECOND, "name: b, weights: {ctc: 1}, steps: 9"),
            ["model.tutor.stages ", "epochs", "steps", "one unit"],
        ),
        (stages(SECOND, "name: a, weights: {ctc: 1}"), ["model.tutor.stages ", "a, a"]),
        (
            stages("name: b, weights: {rkd: 1}, share: 0"),
            ["model.tutor.stages[0].share ", "above 0 and below 1"],
        ),
        (
            stages("name: b, weights: {rkd: 1}, share: 1"),
            ["model.tutor.stages[0].share ", "above 0 and below 1"],
        ),
        (stages("name: b, weights: {rkd: 1}, share: 25"), ["model.tutor.stages[0].share is 25"]),
        (stages("name: b, weights: {rkd: 1}, share: .nan"), ["model.tutor.stages[0].share is nan"]),
        (
            stages("name: b, weights: {rkd: 1}, share: 0.5, epochs: 2"),
            ["model.tutor.stages[0] ", "epochs", "share"],
        ),
        (
            stages(SECOND, "name: b, weights: {ctc: 1}, share: 0.5"),
            ["model.tutor.stages ", "epochs", "share", "one unit"],
        ),
        (
            stages(
                "name: a, weights: {rkd: 1}, share: 0.6",
                "name: b, weights: {ctc: 1}, share: 0.4",
                "name: c, weights: {skd: 1}",
            ),
            ["model.tutor.stages gives 1 of the training to all stages but the last"],
        ),
    ],
)
def test_an_impossible_value_is_refused_with_its_path(section: str, words: list[str]) -> None:
    message = refusal(section)
    assert message.startswith(words[0]), message
    for word in words[1:]:
        assert word in message


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            f"{TEACHER}, pseudo_labels: {{min_confidence: 1.5}}",
            "model.tutor.pseudo_labels.min_confidence must be 0 to 1",
        ),
        (
            f"{TEACHER}, pseudo_labels: {{min_confidence: .nan}}",
            "model.tutor.pseudo_labels.min_confidence must be 0 to 1",
        ),
        (
            f"{TEACHER}, pseudo_labels: {{max_wer: -0.1}}",
            "model.tutor.pseudo_labels.max_wer must be 0 or more",
        ),
        (
            f"{stages(SKD)}, skd: {{intermediate_layers: [a], intermediate_weight: .inf}}",
            "model.tutor.skd.intermediate_weight ",
        ),
        ("teacher: {model_path: t, weight: .inf}", "model.tutor.teacher.weight "),
        (f"{TEACHER}, log: {{agreement: 1001}}", "model.tutor.log.agreement must be at most 1000"),
        (f"{TEACHER}, log: {{agreement: -1}}", "model.tutor.log.agreement must be 0 or more, not -1."),
    ],
)
def test_a_number_out_of_range_is_refused(section: str, words: str) -> None:
    assert refusal(section).startswith(words)


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


OLD = {"shift": "match_window", "at_layers": "intermediate_layers", "at_layers_weight": "intermediate_weight"}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize(
    "override",
    [
        "model.tutor.skd.{}=4",
        "+model.tutor.skd.{}=4",
        "++model.tutor.skd.{}=[a]",
        "~model.tutor.skd.{}",
        "model.tutor.skd.{}=1,2",
        "model.tutor.skd={{divergence:kl,{}:4}}",
        "++model.tutor={{skd:{{{}:4}}}}",
    ],
)
def test_an_override_of_an_old_key_is_told_the_new_one(override: str, old: str) -> None:
    message = refused(check_renamed_overrides, ["--config-path=../conf", override.format(old)])
    assert message == f"model.tutor.skd.{old} is now called model.tutor.skd.{OLD[old]}; rename the key."


@pytest.mark.parametrize(
    "argument",
    [
        "model.tutor.skd.match_window=4",
        "model.train_ds.augmentor={shift:{prob:0.5}}",
        "model.tutor.teacher.model_path='model.tutor.skd.shift=4'",
        "--config-name",
        "model.tutor.skd.shifts=4",
        "a=(",
        "",
        "../conf",
    ],
)
def test_other_arguments_are_left_to_hydra(argument: str) -> None:
    check_renamed_overrides([argument])


def test_a_share_of_the_last_stage_takes_none_from_the_others() -> None:
    assert (
        len(
            parse(
                stages("name: a, weights: {rkd: 1}, share: 0.5", "name: b, weights: {ctc: 1}, share: 0.5")
            ).stages
        )
        == 2
    )


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
    check_teacher_files(parse("teacher: {model_path: gone.nemo, cache: targets}"))
    check_teacher_files(None)
