# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section: values out of range, and settings that cannot be combined."""

from __future__ import annotations

import pytest

from nemo_tutornet.config import LayerPairConfig, RKDConfig, check_student
from tests.conftest import refusal as conftest_refusal
from tests.unit.config.sections import SECOND, SKD, TEACHER, parse, refusal, stages


@pytest.mark.parametrize(
    "section, sentence",
    [
        ("init: techer", "model.tutor.init.source is 'techer'; choose teacher, or null for random weights."),
        (
            "init: {layers: [0, 1]}",
            "model.tutor.init.layers is set, but model.tutor.init.source is null, so nothing is copied; set "
            "the source to teacher, or leave layers out.",
        ),
        *[
            (
                f"init: {{source: teacher, layers: {layers}}}",
                f"model.tutor.init.layers is {layers}; give the index of a teacher's block or layer, 0 or "
                "more, for each of the student's.",
            )
            for layers in ("[]", "[0, -1]")
        ],
    ],
)
def test_wrong_first_weights_are_refused(section: str, sentence: str) -> None:
    assert refusal(f"{TEACHER}, {section}") == sentence


def test_pairs_of_layers_are_accepted_with_any_teacher() -> None:
    pairs = "rkd: {pairs: [{hint_layer: a, guided_layer: b}]}"
    for teacher in (TEACHER, "teacher: {cache: targets}"):
        assert parse(f"{teacher}, {pairs}").rkd == RKDConfig(pairs=[LayerPairConfig("a", "b")])


@pytest.mark.parametrize("path", ["", "model_path: null, ", "model_path: '???', "])
def test_a_cache_has_no_weights_to_begin_with(path: str) -> None:
    assert refusal(f"teacher: {{{path}cache: targets}}, init: teacher") == (
        "model.tutor.init copies the teacher's weights, and a cache has none; give "
        "model.tutor.teacher.model_path beside model.tutor.teacher.cache, or leave init out."
    )
    assert parse("teacher: {model_path: t.nemo, cache: targets}, init: teacher").init.source == "teacher"


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
        (
            f"{TEACHER}, skd: {{alignment: spikes}}",
            ["model.tutor.skd.alignment ", "'spikes'", "frames, pool_student, occurrences"],
        ),
        (
            f"{TEACHER}, skd: {{alignment: occurrences}}",
            ["model.tutor.skd.alignment is occurrences", "'l2'", "model.tutor.skd.divergence to kl."],
        ),
        (
            f"{TEACHER}, skd: {{alignment: pool_student, divergence: guided_ctc}}",
            ["model.tutor.skd.alignment is pool_student", "'guided_ctc'", "l2 or kl"],
        ),
        (
            f"{TEACHER}, skd: {{alignment: pool_student, match_window: 2}}",
            [
                "model.tutor.skd.alignment is pool_student, with which model.tutor.skd.match_window has no "
                "meaning"
            ],
        ),
        (
            f"{TEACHER}, skd: {{alignment: pool_student, frames: nonblank}}",
            ["model.tutor.skd.alignment is pool_student, with which model.tutor.skd.frames has no meaning"],
        ),
        (
            f"{TEACHER}, skd: {{alignment: occurrences, divergence: kl, temperature: 2}}",
            [
                "model.tutor.skd.alignment is occurrences, with which model.tutor.skd.temperature has no "
                "meaning"
            ],
        ),
        (
            f"{TEACHER}, other_teachers: [{{model_path: u}}], skd: {{alignment: pool_student}},"
            " stages: [{name: a, weights: {skd: 1}}]",
            [
                "model.tutor.skd.alignment is pool_student, with which model.tutor.other_teachers has no "
                "meaning"
            ],
        ),
        (f"{TEACHER}, skd: {{frames_around: -1}}", ["model.tutor.skd.frames_around ", "-1"]),
        (f"{TEACHER}, skd: {{frames_around: 1001}}", ["model.tutor.skd.frames_around ", "at most 1000"]),
        (f"{TEACHER}, skd: {{match_window: {10**30}}}", ["model.tutor.skd.match_window"]),
        (f"{TEACHER}, skd: {{match_window: 1001}}", ["model.tutor.skd.match_window ", "at most 1000"]),
        (f"{TEACHER}, max_damaged_share: .nan", ["model.tutor.max_damaged_share ", "below 1"]),
        (f"{TEACHER}, manifest_weights: [1, 0]", ["model.tutor.manifest_weights[1] ", "above 0"]),
        (f"{TEACHER}, max_nonfinite_share: 1.0", ["model.tutor.max_nonfinite_share ", "below 1"]),
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
        (f"{TEACHER}, log: {{agreement: 10001}}", "model.tutor.log.agreement must be at most 10000"),
        (f"{TEACHER}, log: {{agreement: -1}}", "model.tutor.log.agreement must be 0 or more, not -1."),
    ],
)
def test_a_number_out_of_range_is_refused(section: str, words: str) -> None:
    assert refusal(section).startswith(words)


@pytest.mark.parametrize(
    "section, words",
    [
        (f"{TEACHER}, consistency: {{weight: -1}}", "consistency.weight must be 0 or more"),
        (f"{TEACHER}, consistency: {{weight: .nan}}", "consistency.weight must be 0 or more"),
        (f"{TEACHER}, consistency: {{weight: 1e-9}}", "too little to matter"),
        (f"{TEACHER}, consistency: {{weight: 0.2, time_masks: 0.5}}", "consistency.time_masks must be 1"),
        (f"{TEACHER}, consistency: {{weight: 0.2, time_masks: .inf}}", "consistency.time_masks must be 1"),
        (f"{TEACHER}, consistency: {{weight: 0.2, warmup: -1}}", "consistency.warmup must be 0 or more"),
        (f"{TEACHER}, rkd: {{reduction: mean}}", "choose from time_sum, frame_mean"),
        ("teacher: null", "model.tutor.teacher is null"),
        ("teacher: null, consistency: {weight: 0.2}, stages: [{name: a, weights: {skd: 1}}]", "gives skd"),
        (
            "teacher: null, consistency: {weight: 0.2}, other_teachers: [{model_path: t.nemo}]",
            "model.tutor.other_teachers",
        ),
        ("teacher: null, consistency: {weight: 0.2}, init: teacher", "model.tutor.init needs"),
        ("consistency: {weight: 0.2}", "model.tutor.teacher.model_path is not set"),
    ],
)
def test_consistency_and_reduction_out_of_range(section: str, words: str) -> None:
    assert words in refusal(section)


@pytest.mark.parametrize(
    "section, words",
    [
        (f"{TEACHER}, mixup: {{share: 1}}", "mixup.share must be 0 or more and below 1"),
        (f"{TEACHER}, mixup: {{share: .nan}}", "mixup.share must be 0 or more and below 1"),
        (f"{TEACHER}, mixup: {{share: 0.5, alpha: 0}}", "mixup.alpha must be 0.01 to 100"),
        ("teacher: {cache: targets}, mixup: {share: 0.5}", "model.tutor.teacher.cache=null"),
        (
            f"{TEACHER}, other_teachers: [{{cache: c}}], mixup: {{share: 0.5}}, "
            "stages: [{name: a, weights: {skd: 1}}]",
            "model.tutor.other_teachers[0].cache=null",
        ),
        (
            f"{TEACHER}, mixup: {{share: 0.5}}, stages: [{{name: a, weights: {{rkd: 1, pseudo: 1}}}}]",
            "pseudo",
        ),
        (
            "teacher: null, consistency: {weight: 0.2}, mixup: {share: 0.5}",
            "model.tutor.mixup needs a teacher",
        ),
    ],
)
def test_mixed_waveforms_that_nobody_labels(section: str, words: str) -> None:
    assert words in refusal(section)


@pytest.mark.parametrize(
    "rates, key",
    [
        ({"front": 8000, "model": 16000}, "model.sample_rate is 16000"),
        ({"front": 8000, "model": 8000, "train_ds": 16000}, "model.train_ds.sample_rate is 16000"),
        ({"front": None, "model": None, "validation_ds": 8000}, "model.validation_ds.sample_rate is 8000"),
        ({"front": 8000, "model": 8000, "train_ds": None}, None),
        ({"front": 8000, "model": 16000, "train_ds": 8000, "validation_ds": 8000}, None),
        ({"front": None, "model": 16000}, None),
    ],
)
def test_audio_at_another_rate_than_the_front_end_is_refused(
    rates: dict[str, int | None], key: str | None
) -> None:
    """A student of 8 kHz whose data are still read at 16 kHz would learn speech of half its speed."""
    front = {} if rates["front"] is None else {"sample_rate": rates["front"]}
    model = {
        "sample_rate": rates["model"],
        "labels": ["a"],
        "preprocessor": front,
        "encoder": {},
        "decoder": {"vocabulary": ["a"], "num_classes": 1},
        "train_ds": {"manifest_filepath": "a.jsonl", "sample_rate": rates.get("train_ds")},
        "validation_ds": {"manifest_filepath": "b.jsonl", "sample_rate": rates.get("validation_ds")},
    }
    if key is None:
        check_student(model)
    else:
        assert conftest_refusal(check_student, model).startswith(f"{key}, but model.preprocessor")
