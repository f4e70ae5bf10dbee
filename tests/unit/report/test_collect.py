# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The chosen utterances, and the figures of a report."""

from __future__ import annotations

import json
from dataclasses import replace

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.report.collect import choose_utterances
from tests.conftest import refusal
from tests.unit.report.reports import models, report, rows


def test_best_median_and_worst_change() -> None:
    chosen = choose_utterances(rows(), models(), [])
    # The gains are 1, 0, 1, 1, 0, 0. Among equals the longest reference comes first, and each utterance once.
    assert chosen == [(0, "best change"), (1, "median change"), (5, "worst change")]
    two = [replace(model, hypotheses=model.hypotheses[:2], errors=model.errors[:2]) for model in models()]
    assert choose_utterances(rows()[:2], two, []) == [(0, "best change"), (1, "worst change")]


def test_without_a_baseline_the_error_rate_decides() -> None:
    student = models()[:1]
    assert choose_utterances(rows(), student, []) == [(3, "best"), (1, "median"), (0, "worst")]
    assert choose_utterances(rows()[:1], [replace(student[0], errors=student[0].errors[:1])], []) == [
        (0, "best")
    ]


def test_utterances_by_name() -> None:
    corpus: list[Utterance] = [*rows(), replace(rows()[0], offset=2.5), replace(rows()[1], utt_id="x7")]
    assert choose_utterances(corpus, [], ["u3", "x7", "u3"]) == [(3, "asked for"), (7, "asked for")]
    assert choose_utterances(corpus, [], ["u0", "u0@2.5"]) == [(0, "asked for"), (6, "asked for")]
    assert "--utterance nobody: no transcribed row" in refusal(choose_utterances, corpus, [], ["nobody"])
    twice = [*corpus, rows()[3]]
    assert "2 rows of the manifest have this name" in refusal(choose_utterances, twice, [], ["u3"])


def test_confusions_are_those_of_the_students() -> None:
    found = report().confusions()
    assert (found[0].reference, found[0].hypothesis) == ("light", "lights")
    assert dict(found[0].counts) == {"student": 1, "baseline": 1, "teacher": 0}
    assert {(one.reference, one.hypothesis) for one in found[1:]} == {("on", ""), ("it", ""), ("the", "")}


def test_the_figures_are_json() -> None:
    figures = json.loads(json.dumps(report().as_dict()))
    assert figures["verdict"].startswith("Distillation lowered")
    assert [model["role"] for model in figures["models"]] == ["student", "baseline", "teacher"]
    assert figures["spike_offsets_ms"]["50 %"] == 10.0 and figures["spike_pairs"] == 4
    assert figures["stages"] == [{"name": "rkd", "start": 0}, {"name": "ctc", "start": 9.5}]
    assert figures["utterances"][0]["errors"] == {"student": 1, "baseline": 2, "teacher": 0}
    assert {part["name"] for part in figures["by_speaker"]} == {"a", "b"}
    assert report(offsets=None).as_dict()["spike_offsets_ms"] is None
