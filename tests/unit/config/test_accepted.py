# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section: what is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import InitConfig, SKDConfig, parse_tutor
from tests.unit.config.sections import TEACHER, parse, stages


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
        ("rkd", {"rkd": 0.37}, 0.25, None, None),
        ("ctc", {"ctc": 1.0, "rkd": 1.85}, None, None, None),
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
    "section, printed",
    [
        ("skd: {divergence: kl, temperature: 2}", ["model.tutor.skd changes divergence, temperature, but"]),
        ("pseudo_labels: {max_wer: 0.2}", ["model.tutor.pseudo_labels changes max_wer, but"]),
        ("skd: {divergence: l2, intermediate_layers: []}, rkd: {frame_weighting: uniform}", []),
        (
            "skd: {match_window: 4}, rkd: {hint_layer: a}, stages: [{name: b, weights: {ctc: 1, rkd: 0}}]",
            ["model.tutor.rkd changes hint_layer, but", "model.tutor.skd changes match_window, but"],
        ),
        ("skd: {match_window: 4}, stages: [{name: b, weights: {skd: 1}}]", []),
        (
            "skd: {frames_around: 2, intermediate_weight: 0.5}, stages: [{name: b, weights: {skd: 1}}]",
            [
                "model.tutor.skd changes frames_around, but frames is not symmetric",
                "model.tutor.skd changes intermediate_weight, but intermediate_layers is empty",
            ],
        ),
        (
            "skd: {frames: symmetric, frames_around: 2, intermediate_layers: [a], intermediate_weight: 0.5}, "
            "stages: [{name: b, weights: {skd: 1}}]",
            [],
        ),
    ],
)
def test_settings_of_a_loss_that_no_stage_uses_are_reported(section: str, printed: list[str]) -> None:
    found = parse(f"{TEACHER}, {section}").unused()
    assert len(found) == len(printed) and all(
        one.startswith(words) for one, words in zip(found, printed, strict=True)
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


def test_a_share_of_the_last_stage_takes_none_from_the_others() -> None:
    assert (
        len(
            parse(
                stages("name: a, weights: {rkd: 1}, share: 0.5", "name: b, weights: {ctc: 1}, share: 0.5")
            ).stages
        )
        == 2
    )


@pytest.mark.parametrize(
    "section, words",
    [
        ("", None),
        ("rkd: {frame_weighting: uniform}", None),
        ("stages: [{name: a, weights: {rkd: 5}}]", None),
        ("stages: [{name: a, weights: {ctc: 1, skd: 5}}]", None),
        ("stages: [{name: a, weights: {ctc: 1, rkd: 0}}]", None),
        ("stages: [{name: a, weights: {ctc: 1, rkd: 2}}]", "rkd.reduction is not set"),
        ("stages: [{name: a, weights: {ctc: 1, rkd: 5}}]", "rkd.reduction is not set"),
        ("rkd: {reduction: frame_mean}, stages: [{name: a, weights: {ctc: 1, rkd: 5}}]", None),
        ("rkd: {reduction: time_sum}, stages: [{name: a, weights: {ctc: 1, rkd: 2}}]", None),
        (
            "rkd: {reduction: time_sum}, stages: [{name: a, weights: {ctc: 1, rkd: 5}}]",
            "with model.tutor.rkd",
        ),
    ],
)
def test_a_weight_of_an_earlier_version_gets_one_sentence(section: str, words: str | None) -> None:
    warnings = parse(f"{TEACHER}, {section}" if section else TEACHER).reduction_warning()
    assert len(warnings) == (words is not None)
    assert words is None or (words in warnings[0] and "frame_mean" in warnings[0])


def test_no_teacher_is_accepted_with_consistency() -> None:
    config = parse_tutor({"tutor": {"teacher": None, "consistency": {"weight": 0.2, "warmup": 10}}})
    assert config is not None and config.without_teacher and not config.unused()
    assert not parse(TEACHER).without_teacher
    config = parse(f"{TEACHER}, consistency: {{time_masks: 2}}")
    assert any("consistency" in warning for warning in config.unused())
    config = parse(f"{TEACHER}, consistency: {{weight: 0.2}}, stages: [{{name: a, weights: {{rkd: 1}}}}]")
    assert any("consistency" in warning for warning in config.unused())


def test_mixed_waveforms_without_an_effect_are_reported() -> None:
    assert not parse(f"{TEACHER}, mixup: {{share: 0.5, alpha: 0.4}}").unused()
    for section in (
        f"{TEACHER}, mixup: {{alpha: 0.4}}",
        f"{TEACHER}, mixup: {{share: 0.5}}, stages: [{{name: a, weights: {{ctc: 1}}}}]",
    ):
        assert any("model.tutor.mixup" in warning for warning in parse(section).unused())
