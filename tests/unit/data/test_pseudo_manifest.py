# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What transcribe_speech.py wrote becomes a manifest to train on; what is left out is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.data.pseudo_manifest import pseudo_manifest
from nemo_tutornet.errors import TutorError
from tests.conftest import refusal

ROWS = [
    {"audio_filepath": "a.wav", "duration": 1.0, "pred_text": "one two"},
    {"audio_filepath": "b.wav", "duration": 1.0, "text": "one two", "pred_text": "one too"},
    {"audio_filepath": "/x/c.wav", "duration": 1.0, "text": "three", "pred_text": "three"},
    {"audio_filepath": "d.wav", "duration": 1.0, "pred_text": " "},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "transcribed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n", encoding="utf-8")
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_hypotheses_become_the_text(source: Path, tmp_path: Path) -> None:
    assert pseudo_manifest(source, tmp_path / "train.jsonl") == {"kept": 3, "empty": 1}
    found = rows(tmp_path / "train.jsonl")
    assert [row["text"] for row in found] == ["one two", "one too", "three"]
    assert [row.get("reference_text") for row in found] == ["", "one two", "three"]
    assert [row["audio_filepath"] for row in found] == ["a.wav", "b.wav", "/x/c.wav"]


def test_the_manifest_itself_is_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source.read_bytes()
    monkeypatch.chdir(source.parent)
    assert "is the source and the destination" in refusal(pseudo_manifest, source, Path(source.name))
    assert source.read_bytes() == before


def test_filters_and_transcripts(source: Path, tmp_path: Path) -> None:
    assert pseudo_manifest(source, tmp_path / "a.jsonl", max_wer=0.4) == {
        "kept": 2,
        "high_wer": 1,
        "empty": 1,
    }
    assert pseudo_manifest(source, tmp_path / "b.jsonl", max_wer=0.5) == {"kept": 3, "empty": 1}
    assert pseudo_manifest(source, tmp_path / "c.jsonl", keep_transcripts=True) == {
        "kept": 1,
        "transcript": 2,
        "empty": 1,
    }
    assert [row["text"] for row in rows(tmp_path / "c.jsonl")] == ["one two", "one two", "three"]


def test_a_transcript_under_any_of_nemos_keys_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one two\n", encoding="utf-8")
    source = tmp_path / "transcribed.jsonl"
    lines = [
        {"audio_filepath": "/a.wav", "normalized_text": "one two", "pred_text": "one too"},
        {"audio_filepath": "/b.wav", "text_filepath": str(tmp_path / "b.txt"), "pred_text": "one too"},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    written = tmp_path / "train.jsonl"
    assert pseudo_manifest(source, written, keep_transcripts=True) == {"transcript": 2}
    assert [row["text"] for row in rows(written)] == ["one two", "one two"]
    assert pseudo_manifest(source, written) == {"kept": 2}
    assert [row["reference_text"] for row in rows(written)] == ["one two", "one two"]
    assert "2 high_wer" in refusal(pseudo_manifest, source, written, 0.4)
    (tmp_path / "b.txt").unlink()
    assert f"{source} line 2: text_filepath" in refusal(pseudo_manifest, source, written)


def test_a_second_teacher_is_compared_with_the_transcript(source: Path, tmp_path: Path) -> None:
    """Not with the first teacher's hypothesis, which is the text of the manifest that it transcribed."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    pseudo_manifest(source, first)
    again = [{**row, "pred_text": "one tree"} for row in rows(first)]
    first.write_text("".join(json.dumps(row) + "\n" for row in again), encoding="utf-8")
    assert pseudo_manifest(first, second) == {"kept": 3}
    assert [row["reference_text"] for row in rows(second)] == ["", "one two", "three"]
    assert pseudo_manifest(first, second, max_wer=0.5) == {"kept": 2, "high_wer": 1}
    assert pseudo_manifest(first, second, keep_transcripts=True) == {"kept": 1, "transcript": 2}
    assert [row["text"] for row in rows(second)] == ["one tree", "one two", "three"]


def test_nemos_other_key_of_the_audio_is_found_from_another_folder(tmp_path: Path) -> None:
    """NeMo reads it first."""
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    source, written = tmp_path / "transcribed.jsonl", tmp_path / "elsewhere" / "train.jsonl"
    lines: list[dict[str, str]] = [
        {"audio_filename": "a.wav"},
        {"audio_filename": "a.wav", "audio_filepath": "b.wav"},
        {"audio_filename": "a.wav", "audio_filepath": "gone.wav"},
        {"audio_filename": "gone.wav", "audio_filepath": "b.wav"},
    ]
    source.write_text("".join(json.dumps({**line, "pred_text": "a"}) + "\n" for line in lines))
    assert pseudo_manifest(source, written) == {"kept": 4, "audio_not_found": 1}
    found = rows(written)
    assert [row["audio_filename"] for row in found] == [*[str(tmp_path / "a.wav")] * 3, "gone.wav"]
    paths = [None, str(tmp_path / "b.wav"), "gone.wav", str(tmp_path / "b.wav")]
    assert [row.get("audio_filepath") for row in found] == paths


def test_audio_is_found_from_another_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NeMo finds it: beside the transcribed manifest, or from the working directory; a path to nowhere
    stays as it is.
    """
    written, working = tmp_path / "elsewhere" / "train.jsonl", tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    (tmp_path / "a.wav").touch()
    assert pseudo_manifest(source, written) == {"kept": 3, "empty": 1, "audio_not_found": 1}
    assert [row["audio_filepath"] for row in rows(written)] == [str(tmp_path / "a.wav"), "b.wav", "/x/c.wav"]
    (working / "b.wav").touch()
    assert pseudo_manifest(source, written) == {"kept": 3, "empty": 1}
    assert [row["audio_filepath"] for row in rows(written)] == [
        str(tmp_path / "a.wav"),
        str(working / "b.wav"),
        "/x/c.wav",
    ]
    result = CliRunner().invoke(app, ["pseudo-labels", str(source), str(tmp_path / "third" / "train.jsonl")])
    assert "note" not in result.output
    (tmp_path / "a.wav").unlink()
    stored = tmp_path / "stored.jsonl"
    stored.write_text(json.dumps({"audio_filepath": "s3://bucket/a.wav", "pred_text": "a"}), encoding="utf-8")
    assert pseudo_manifest(stored, written) == {"kept": 1}
    assert [row["audio_filepath"] for row in rows(written)] == ["s3://bucket/a.wav"]
    result = CliRunner().invoke(app, ["pseudo-labels", str(source), str(tmp_path / "third" / "train.jsonl")])
    assert f"note: the audio of 1 rows was not found; their paths are those of {source}." in result.output


@pytest.mark.parametrize("name", ["taken", "file/train.jsonl"])
def test_a_place_that_cannot_be_written_is_reported(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    assert f"{tmp_path / name} cannot be written" in refusal(pseudo_manifest, source, tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"audio_filepath": "a.wav", "text": "a"}\n', "line 1 has no pred_text"),
        ('{"pred_text": "a"}\n', "line 1 has no audio_filepath"),
        ('\n{"audio', "line 2 is not JSON"),
        ('{"audio_filepath": "a.wav", "pred_text": ""}\n', "leaves no row to train on"),
        ("", "leaves no row to train on"),
    ],
)
def test_bad_input_is_reported_and_nothing_is_written(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "out.jsonl").write_text("old", encoding="utf-8")
    with pytest.raises(TutorError, match=words):
        pseudo_manifest(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_capitals_and_full_stops_make_no_errors(tmp_path: Path) -> None:
    """By the command, which knows the labels of the student, and by the function, which need not."""
    source = tmp_path / "transcribed.jsonl"
    texts = [("turn on the light", "Turn on the light."), ("it's well known", "It\u2019s well-known!")] * 6
    lines = [{"audio_filepath": "/a.wav", "text": text, "pred_text": said} for text, said in texts]
    lines.append({"audio_filepath": "/a.wav", "pred_text": "Gr\u00f6\u00dfe 7"})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert pseudo_manifest(source, tmp_path / "as_it_is.jsonl", max_wer=0.0) == {"kept": 13}
    command = ["pseudo-labels", str(source), str(tmp_path / "train.jsonl"), "--max-wer", "0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "12 rows with the teacher's text" in result.output
    assert "1 that the student cannot write" in result.output and "'\u00f6'" in result.output
    found = rows(tmp_path / "train.jsonl")
    assert [row["text"] for row in found] == [text for text, _ in texts]
    assert {row["pred_text"] for row in found} == {said for _, said in texts}
    command += ["model.labels=[' ','G','R','\u00d6','S','E','7']", "model.decoder.num_classes=7"]
    result = CliRunner().invoke(app, command)
    assert [row["text"] for row in rows(tmp_path / "train.jsonl")] == ["GR\u00d6SSE 7"], result.output


def test_nothing_that_the_student_can_write(tmp_path: Path) -> None:
    source = tmp_path / "transcribed.jsonl"
    source.write_text(json.dumps({"audio_filepath": "a.wav", "pred_text": "\u044f"}), encoding="utf-8")
    result = CliRunner().invoke(app, ["pseudo-labels", str(source), str(tmp_path / "train.jsonl")])
    assert result.exit_code == 2 and "1 not_in_vocabulary; no labels for '\u044f'" in result.output
    assert not (tmp_path / "train.jsonl").exists()


def test_the_command_counts(source: Path, tmp_path: Path) -> None:
    arguments = ["pseudo-labels", str(source), str(tmp_path / "train.jsonl"), "--max-wer", "0.4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (
        "2 rows with the teacher's text, 0 with their transcript; dropped: 1 empty, 1 with a high WER."
        in result.output
    )
    assert CliRunner().invoke(app, ["pseudo-labels", "/no/m.jsonl", "x.jsonl"]).exit_code == 2
