# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, and what each bad row is told, with its line number."""

from __future__ import annotations

import errno
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_tutornet.data.manifest import Utterance, read_manifest
from tests import conftest
from tests.unit.data.manifests import RATE, manifest, row, write_audio


def refusal(path: Path, shortest: float = 0.0) -> str:
    message = conftest.refusal(read_manifest, path, shortest)
    assert str(path) in message
    return message


# --- What is read


def test_rows_are_read_in_order(folder: Path) -> None:
    write_audio(folder / "b.wav", 2.0)
    path = manifest(
        folder,
        row(duration=0.9),
        row(audio_filepath="b.wav", text="y z", duration=1.0, offset=0.5, lang="en"),
    )
    assert read_manifest(path) == [
        Utterance(folder / "a.wav", 0.9, "x", 0.0),
        Utterance(folder / "b.wav", 1.0, "y z", 0.5),
    ]


def test_a_missing_duration_is_that_of_the_file_after_the_offset(folder: Path) -> None:
    path = manifest(folder, row(), row(offset=0.25), row(duration=None, offset=None))
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([1.0, 0.75, 1.0])


def test_a_duration_is_that_of_the_segment(folder: Path) -> None:
    """1000 stands for the whole file in manifests that people share; NeMo takes 0 and -1 for it, too."""
    path = manifest(
        folder,
        row(duration=1000),
        row(duration=1000, offset=0.25),
        row(duration=0),
        row(duration=-1, offset=0.5),
    )
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([1.0, 0.75, 1.0, 0.5])


def test_nemos_other_name_of_a_duration_comes_second(folder: Path) -> None:
    path = manifest(folder, row(context_duration=0.5), row(context_duration=0.5, duration=0.75))
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([0.5, 0.75])


def test_text_may_be_missing_and_may_be_unicode(folder: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav"},
        row(text=None),
        '{"audio_filepath": "a.wav", "text": "čau\u2028über"}',
    ]
    assert [utterance.text for utterance in read_manifest(manifest(folder, *lines))] == [
        None,
        None,
        "čau\u2028über",
    ]


def test_nemos_other_places_of_a_transcript_are_read(folder: Path) -> None:
    (folder / "t.txt").write_text("from a\n file\n", encoding="utf-8")
    audio, file = {"audio_filepath": "a.wav", "duration": 1.0}, {"text_filepath": str(folder / "t.txt")}
    lines = [
        {**audio, **file, "normalized_text": "n"},
        {**audio, "normalized_text": "n"},
        {**audio, **file, "text": "x"},
    ]
    path = manifest(folder, *lines)
    assert [utterance.text for utterance in read_manifest(path)] == ["from a file", "n", "x"]
    gone = manifest(folder, row(), {**audio, "text_filepath": "gone.txt"})
    assert "line 2: text_filepath gone.txt is not a file" in refusal(gone)
    assert "text_filepath /dev/zero is not a file" in refusal(
        manifest(folder, {**audio, "text_filepath": "/dev/zero"})
    )
    assert "text_filepath [3] is not a file" in refusal(manifest(folder, {**audio, "text_filepath": [3]}))
    (folder / "t.txt").write_bytes(b"\xff\xfe")
    assert "t.txt cannot be read ('utf-8'" in refusal(manifest(folder, {**audio, **file}))


def test_nemos_other_name_of_the_audio_is_read_first(folder: Path) -> None:
    write_audio(folder / "b.wav", 2.0)
    path = manifest(folder, {"audio_filename": "b.wav"}, row(audio_filename="b.wav"))
    assert [utterance.audio.name for utterance in read_manifest(path)] == ["b.wav", "b.wav"]


def test_blank_lines_are_skipped_and_counted(folder: Path) -> None:
    path = manifest(folder, "", row(), "   ", "\t", row(), "")
    assert len(read_manifest(path)) == 2
    assert "line 5 " in refusal(manifest(folder, "", row(), "   ", "\t", "{", ""))


def test_relative_paths_start_at_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub" / "wavs").mkdir(parents=True)
    inner = write_audio(folder / "sub" / "wavs" / "b.wav", 0.5)
    path = manifest(
        folder / "sub",
        row(audio_filepath="wavs/b.wav"),
        row(audio_filepath="../a.wav"),
        row(audio_filepath=str(inner)),
    )
    for working in (folder, folder / "sub" / "wavs"):
        monkeypatch.chdir(working)
        first, second, third = read_manifest(path)
        assert first.audio == third.audio == inner
        assert second.audio.resolve() == folder / "a.wav"


def test_the_manifests_folder_comes_before_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "here").mkdir()
    write_audio(folder / "here" / "a.wav", 2.0)
    write_audio(folder / "here" / "b.wav", 2.0)
    monkeypatch.chdir(folder / "here")
    found = read_manifest(manifest(folder, row(), row(audio_filepath="b.wav")))
    assert [utterance.duration for utterance in found] == [1.0, 2.0]
    assert f"no audio file {folder / 'c.wav'} or {folder / 'here' / 'c.wav'};" in refusal(
        manifest(folder, row(audio_filepath="c.wav"))
    )


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert read_manifest(manifest(folder, row(audio_filepath="~/a.wav")))[0].audio == folder / "a.wav"


@pytest.mark.parametrize("name", ["a.flac", "a.ogg"])
def test_other_formats_are_read(folder: Path, name: str) -> None:
    soundfile.write(folder / name, np.zeros(RATE // 2), RATE)
    assert read_manifest(manifest(folder, row(audio_filepath=name)))[0].duration == pytest.approx(0.5)


# --- What is refused


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    assert "no manifest" in refusal(tmp_path / "nowhere.jsonl")
    assert "no manifest" in refusal(tmp_path)


def test_a_manifest_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(folder, row())
    for error in (PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")):

        def fail(*_: Any, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(Path, "open", fail)
        assert refusal(path) == (
            f"the manifest {path} cannot be read ({error.strerror}); make it readable or give another one."
        )


@pytest.mark.parametrize("lines", [(), ("",), ("  ", "\t", "")])
def test_a_manifest_without_rows_is_refused(folder: Path, lines: tuple) -> None:
    assert "no utterance" in refusal(manifest(folder, *lines))


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "not JSON"),
        ('{"audio_filepath": "a.wav",}', "not JSON"),
        ("audio_filepath=a.wav", "not JSON"),
        ('{"audio_filepath": "a.wav"} {"audio_filepath": "a.wav"}', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf" + json.dumps(row()).encode(), "save the manifest as UTF-8 without BOM"),
        (gzip.compress(json.dumps(row()).encode(), mtime=0), "compressed; gunzip it"),
        ("[" * 100_000, "not JSON"),
        ('{"audio_filepath": "a.wav", "duration": ' + "9" * 5000 + "}", "not JSON"),
        (r'{"audio_filepath": "a.wav", "text": "a \ud83d b"}', "unpaired surrogate"),
        ("[1, 2]", "audio_filepath"),
        ("3", "audio_filepath"),
        ("null", "audio_filepath"),
        ('"a.wav"', "audio_filepath"),
        ("{}", "audio_filepath"),
        ({"text": "x"}, "audio_filepath"),
        ({"audio_filepath": None, "text": "x"}, "audio_filepath"),
        ({"audio_filepath": 3, "text": "x"}, "audio_filepath"),
        ({"audio_filepath": ["a.wav"], "text": "x"}, "audio_filepath"),
        ({"audio_filepath": "", "text": "x"}, "audio file"),
        ({"audio_filepath": "b.wav", "text": "x"}, "no audio file"),
        ({"audio_filepath": "a\0.wav", "text": "x"}, "no audio file"),
        ({"audio_filepath": "a" * 300 + ".wav", "text": "x"}, "audio file"),
        ({"audio_filepath": "~no-such-user-here/a.wav", "text": "x"}, "audio file"),
        (row(text=3), "text must be a string"),
        (row(text=["x"]), "text must be a string"),
        (row(duration="1.0"), "duration must be a number"),
        (row(duration=True), "duration must be a number"),
        (row(duration=[1]), "duration must be a number"),
        (row(offset="0"), "offset must be a number"),
        (row(offset=False), "offset must be a number"),
        (row(duration=math.nan), "duration"),
        (row(duration=math.inf), "duration"),
        (row(duration=10**400), "duration"),
        (row(offset=math.nan), "offset"),
        (row(offset=-0.5), "offset"),
        (row(offset=1.0), "ms"),
        (row(offset=5), "ms"),
        (row(offset=5, duration=1.0), "ms"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_row_is_refused_with_its_line(folder: Path, line: Any, words: str) -> None:
    message = refusal(manifest(folder, row(), "", line, row()))
    assert "line 3" in message, message
    assert words in message


@pytest.mark.parametrize(
    "name", ["text.wav", "zero.wav", "text.raw", "text.mp3", "header.wav", "samples.wav"]
)
def test_audio_that_is_none_is_refused_with_its_line(folder: Path, name: str) -> None:
    content = {"zero.wav": b"", "header.wav": (folder / "a.wav").read_bytes()[:44]}.get(
        name, b"not audio at all" * 9
    )
    (folder / name).write_bytes(content)
    if name == "samples.wav":
        write_audio(folder / name, 0.0)
    message = refusal(manifest(folder, row(), row(audio_filepath=name)))
    assert "line 2" in message and name in message
    assert ("empty" in message) == (name in ("header.wav", "samples.wav"))


def test_a_folder_is_no_audio(folder: Path) -> None:
    (folder / "b.wav").mkdir()
    assert "line 1" in refusal(manifest(folder, row(audio_filepath="b.wav")))


@pytest.mark.parametrize(
    "changes, fits",
    [
        ({"duration": 0.02}, True),
        ({"duration": 0.019}, False),
        ({"offset": 0.97}, True),
        ({"offset": 0.99}, False),
        ({"offset": 0.99, "duration": 0.5}, False),
    ],
)
def test_an_utterance_has_at_least_one_frame(folder: Path, changes: dict[str, float], fits: bool) -> None:
    path = manifest(folder, row(**changes))
    assert len(read_manifest(path)) == 1
    if fits:
        assert len(read_manifest(path, shortest=0.02)) == 1
    else:
        message = refusal(path, shortest=0.02)
        assert "line 1" in message and "20 ms" in message


def test_speakers_and_names_of_utterances(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    rows = [
        {"audio_filepath": "a.wav", "text": "x", "speaker": "fash", "utt_id": "u1"},
        {"audio_filepath": "a.wav", "text": "x", "speaker": 1089, "offset": 0.25},
        {"audio_filepath": "a.wav", "text": "x", "speaker": None, "utt_id": ["u1"]},
    ]
    path = tmp_path / "valid.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_manifest(path)
    assert [row.speaker for row in found] == ["fash", "1089", None]
    assert [row.name for row in found] == ["u1", "a@0.25", "a"]
