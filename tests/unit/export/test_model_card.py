# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: the Hub's metadata, only what was given or measured, and which file it may replace."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from nemo_tutornet import TutorError
from nemo_tutornet.export.card_student import Student
from nemo_tutornet.export.model_card import MARK, CardFacts, check_card, model_card

STUDENT = Student(
    file="student.nemo",
    source="run.ckpt",
    class_name="EncDecCTCModel",
    parameters=282109,
    labels=28,
    label_kind="characters",
    sample_rate=16000,
    mel_bins=80,
    window_ms=25.0,
    hop=160,
    subsampling_factor=2,
    weights_sha256="a" * 64,
)
ALL = dataclasses.replace(
    STUDENT, onnx=["student.onnx"], sherpa="student.sherpa.onnx", onnx_asr="student-onnx-asr"
)
ROW = {
    "model": "out/student.nemo",
    "runtime": "nemo",
    "utterances": 98,
    "hours": 0.1,
    "wer": 0.09361,
    "wer_low": 0.07,
    "wer_high": 0.12,
    "cer": 0.031,
    "parameters": 282109,
}


def measured(tmp_path: Path, *rows: Any, name: str = "an4_test.json") -> str:
    (tmp_path / name).write_text(json.dumps(list(rows)), encoding="utf-8")
    return str(tmp_path / name)


def front_matter(text: str) -> dict[str, Any]:
    head = text.split("---\n")[1]
    data = yaml.safe_load(head)
    assert ModelCard(text).data.to_dict()["library_name"] == "nemo"  # the Hub's own parser takes it
    return data


def test_only_what_is_known_is_said() -> None:
    text = model_card(STUDENT, CardFacts())
    data = front_matter(text)
    assert set(data) == {"library_name", "pipeline_tag", "tags"}
    assert "distill" not in text and "trained on" not in text and "WER" not in text
    assert "None was measured" in text and "No licence is given" in text
    assert 'ASRModel.restore_from("student.nemo"' in text
    assert "onnx_asr" not in text and "sherpa" not in text and MARK in text


def test_the_metadata_are_the_hubs(tmp_path: Path) -> None:
    facts = CardFacts(
        language=["en"],
        license="cc-by-4.0",
        base_model="nvidia/stt_en_fastconformer_ctc_large",
        datasets=["librispeech_asr", "mozilla-foundation/common_voice_11_0"],
        metrics=[measured(tmp_path, ROW, {**ROW, "runtime": "onnx int8", "wer": 0.1})],
    )
    text = model_card(ALL, facts)
    data = front_matter(text)
    assert data["language"] == ["en"] and data["license"] == "cc-by-4.0"
    assert data["base_model"] == facts.base_model and data["datasets"] == facts.datasets
    assert data["metrics"] == ["wer", "cer"]
    assert {"knowledge-distillation", "onnx", "onnx-asr", "sherpa-onnx"} <= set(data["tags"])
    results = ModelCard(text).data.eval_results
    assert results is not None and len(results) == 4
    first = results[0]
    assert (first.metric_type, first.metric_value, first.dataset_name) == ("wer", 9.36, "an4_test")
    assert first.task_type == "automatic-speech-recognition" and data["model-index"][0]["name"] == "student"
    assert "| an4_test | onnx int8 | 98 | 10.00 | 7.00 to 12.00 | 3.10 |" in text
    assert "whose licence and terms of use still hold" in text
    assert "student-onnx-asr" in text and "student.tokens.txt" in text


def test_a_language_that_yaml_would_read_as_false() -> None:
    text = model_card(STUDENT, CardFacts(language=["no", "zh-Hant"]))
    assert front_matter(text)["language"] == ["no", "zh-Hant"] and "| language | no, zh-Hant |" in text


def test_test_sets_are_named(tmp_path: Path) -> None:
    file = measured(tmp_path, ROW)
    named = model_card(STUDENT, CardFacts(metrics=[f"AN4 test={file}", file]))
    assert "| AN4 test | nemo" in named and "| an4_test | nemo" in named
    assert front_matter(named)["model-index"][0]["results"][0]["dataset"]["type"] == "an4-test"
    of_manifest = measured(tmp_path, {**ROW, "manifest": "clean.jsonl"}, name="b.json")
    assert "| clean | nemo" in model_card(STUDENT, CardFacts(metrics=[of_manifest]))
    by_source = measured(tmp_path, {**ROW, "model": "run.ckpt"}, name="c.json")
    assert "| c | nemo" in model_card(STUDENT, CardFacts(metrics=[by_source]))


def test_what_was_measured_of_another_model_is_not_claimed(tmp_path: Path) -> None:
    other = measured(tmp_path, {**ROW, "model": "teacher.nemo"})
    with pytest.raises(TutorError, match=r"no result of student\.nemo, but of teacher\.nemo"):
        model_card(STUDENT, CardFacts(metrics=[other]))
    both = measured(tmp_path, ROW, {**ROW, "model": "teacher.nemo", "wer": 0.5})
    assert "50.00" not in model_card(STUDENT, CardFacts(metrics=[both]))
    earlier = measured(tmp_path, {**ROW, "parameters": 1})
    with pytest.raises(TutorError, match=r"evaluate it again"):
        model_card(STUDENT, CardFacts(metrics=[earlier]))


def test_results_are_found_by_the_checksum_of_the_weights(tmp_path: Path) -> None:
    """An undistilled student of the same name and size is another model."""
    student = dataclasses.replace(STUDENT, file="q.nemo")
    own = {**ROW, "model": "runs/distilled/q.nemo", "weights_sha256": "a" * 64}
    baseline = {**own, "model": "runs/undistilled/q.nemo", "wer": 0.2, "weights_sha256": "b" * 64}
    text = model_card(student, CardFacts(metrics=[measured(tmp_path, baseline, own)]))
    assert "9.36" in text and "20.00" not in text
    renamed = measured(tmp_path, {**own, "model": "teacher/best.nemo"})
    assert "9.36" in model_card(student, CardFacts(metrics=[renamed]))
    only = measured(tmp_path, baseline, name="other.json")
    with pytest.raises(TutorError, match=r"other\.json is of a q\.nemo with other weights than this"):
        model_card(student, CardFacts(metrics=[only]))


def test_results_that_cannot_be_told_apart(tmp_path: Path) -> None:
    first = {**ROW, "model": "runs/distilled/student.nemo"}
    other = {**ROW, "model": "runs/undistilled/student.nemo", "wer": 0.2}
    file = measured(tmp_path, first, other)
    with pytest.raises(TutorError, match=r"different results of .*undistilled.* the test set an4_test with"):
        model_card(STUDENT, CardFacts(metrics=[file]))
    lower = {**ROW, "text_processing": {"do_lowercase": True}}
    files = [measured(tmp_path, ROW), measured(tmp_path, {**lower, "manifest": "an4_test.jsonl"}, name="b")]
    with pytest.raises(TutorError, match=r"give each test set its name with NAME=FILE\.$"):
        model_card(STUDENT, CardFacts(metrics=files))
    assert "| lower | nemo" in model_card(STUDENT, CardFacts(metrics=[files[0], f"lower={files[1]}"]))
    twice = model_card(STUDENT, CardFacts(metrics=[measured(tmp_path, ROW, {**first, "hours": 0.2})]))
    assert twice.count("| an4_test | nemo |") == 1, "the same result of the run's file and of the student"


def test_changes_of_the_texts_are_said(tmp_path: Path) -> None:
    changes = {"do_lowercase": True, "rm_punctuation": True, "punctuation_marks": ".,?"}
    lower = {**ROW, "text_processing": {**changes, "separate_punctuation": False}}
    text = model_card(STUDENT, CardFacts(metrics=[measured(tmp_path, lower)]))
    words = "alike before errors were counted: lower case, without the marks `.,?`."
    assert f"Transcripts and hypotheses were changed {words}" in text
    results = ModelCard(text).data.eval_results
    assert results is not None
    assert results[0].metric_name == "WER % (nemo, lower case, without the marks .,?)"
    marks = {**ROW, "runtime": "onnx fp32", "text_processing": {**changes, "separate_punctuation": True}}
    text = model_card(STUDENT, CardFacts(metrics=[measured(tmp_path, ROW, marks)]))
    assert "hypotheses of an4_test (onnx fp32) were changed alike" in text and "is a word, lower" in text
    for nothing in ({"punctuation_marks": "", "rm_punctuation": True}, {}, None, [1], "do_lowercase"):
        row = {**ROW, "text_processing": nothing}
        assert "changed" not in model_card(STUDENT, CardFacts(metrics=[measured(tmp_path, row)]))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"language": ["english language"]}, "--language"),
        ({"license": "see: [file]"}, "--license"),
        ({"base_model": "/models/teacher.nemo"}, "--base-model"),
        ({"base_model": "teacher.nemo"}, "--base-model"),
        ({"datasets": ["train.jsonl"]}, "--datasets"),
        ({"datasets": ["a\nb"]}, "--datasets"),
        ({"metrics": ["absent.json"]}, "absent.json cannot be read"),
    ],
)
def test_facts_that_cannot_stand_in_a_card(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    with pytest.raises(TutorError, match=words):
        check_card(tmp_path / "README.md", CardFacts(**facts))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", '[{"model": "student.nemo"}]', "\x00", "[" * 100_000, "\ud800"]
)
def test_what_is_no_evaluation(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(TutorError, match=r"give what (that|evaluate --json) printed"):
        check_card(tmp_path / "README.md", CardFacts(metrics=[str(tmp_path / "m.json")]))
    bad = measured(tmp_path, {**ROW, "wer": float("nan")}, name="nan.json")
    with pytest.raises(TutorError, match="no results of evaluate"):
        check_card(tmp_path / "README.md", CardFacts(metrics=[bad]))


def test_somebodys_own_text_is_not_replaced(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    check_card(card, CardFacts())
    card.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(TutorError, match=r"was not written by an export"):
        check_card(card, CardFacts())
    card.write_text(model_card(STUDENT, CardFacts()), encoding="utf-8")
    check_card(card, CardFacts())
    for name in ("card.txt", "."):
        with pytest.raises(TutorError, match=r"must be the name of a \.md file"):
            check_card(tmp_path / name, CardFacts())
