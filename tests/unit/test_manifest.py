# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, and what each bad row is told, with its line number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from nemo_tutornet.data.manifest import Utterance, check_manifests, read_manifest
from nemo_tutornet.errors import TutorError
from tests import conftest

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one second of audio in `a.wav`."""
    write_audio(tmp_path / "a.wav", 1.0)
    return tmp_path


def write_audio(path: Path, seconds: float) -> Path:
    soundfile.write(path, np.zeros(int(seconds * RATE)), RATE)
    return path


def manifest(folder: Path, *lines: Any, name: str = "m.jsonl") -> Path:
    """Writes a manifest; a line is an object, or a string or bytes as they are."""
    raw = [line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode() for line in lines]
    path = folder / name
    path.write_bytes(b"\n".join(raw))
    return path


def row(**changes: Any) -> Dict[str, Any]:
    return {"audio_filepath": "a.wav", "text": "x", **changes}


def refusal(path: Path, shortest: float = 0.0) -> str:
    message = conftest.refusal(read_manifest, path, shortest)
    assert str(path) in message
    return message


# --- What is read ----------------------------------------------------------------------------------------------------


def test_rows_are_read_in_order(folder: Path) -> None:
    write_audio(folder / "b.wav", 2.0)
    path = manifest(folder, row(duration=0.9), row(audio_filepath="b.wav", text="y z", duration=1.0, offset=0.5, lang="en"))
    assert read_manifest(path) == [
        Utterance(folder / "a.wav", 0.9, "x", 0.0),
        Utterance(folder / "b.wav", 1.0, "y z", 0.5),
    ]


def test_a_missing_duration_is_that_of_the_file_after_the_offset(folder: Path) -> None:
    path = manifest(folder, row(), row(offset=0.25), row(duration=None, offset=None))
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([1.0, 0.75, 1.0])


def test_text_may_be_missing_and_may_be_unicode(folder: Path) -> None:
    path = manifest(folder, {"audio_filepath": "a.wav"}, '{"audio_filepath": "a.wav", "text": "čau\u2028über"}')
    assert [utterance.text for utterance in read_manifest(path)] == [None, "čau\u2028über"]


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
        folder / "sub", row(audio_filepath="wavs/b.wav"), row(audio_filepath="../a.wav"), row(audio_filepath=str(inner))
    )
    for working in (folder, folder / "sub" / "wavs"):
        monkeypatch.chdir(working)
        first, second, third = read_manifest(path)
        assert first.audio == third.audio == inner
        assert second.audio.resolve() == folder / "a.wav"


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert read_manifest(manifest(folder, row(audio_filepath="~/a.wav")))[0].audio == folder / "a.wav"


@pytest.mark.parametrize("name", ["a.flac", "a.ogg"])
def test_other_formats_are_read(folder: Path, name: str) -> None:
    soundfile.write(folder / name, np.zeros(RATE // 2), RATE)
    assert read_manifest(manifest(folder, row(audio_filepath=name)))[0].duration == pytest.approx(0.5)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    assert "no manifest" in refusal(tmp_path / "nowhere.jsonl")
    assert "no manifest" in refusal(tmp_path)


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
        ("[" * 100_000, "not JSON"),
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
        (row(text=None), "text must be a string"),
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
        (row(duration=0), "0 ms"),
        (row(duration=-1.0), "ms"),
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


@pytest.mark.parametrize("name", ["text.wav", "zero.wav", "text.raw", "text.mp3", "header.wav", "samples.wav"])
def test_audio_that_is_none_is_refused_with_its_line(folder: Path, name: str) -> None:
    content = {"zero.wav": b"", "header.wav": (folder / "a.wav").read_bytes()[:44]}.get(name, b"not audio at all" * 9)
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
def test_an_utterance_has_at_least_one_frame(folder: Path, changes: Dict[str, float], fits: bool) -> None:
    path = manifest(folder, row(**changes))
    assert len(read_manifest(path)) == 1
    if fits:
        assert len(read_manifest(path, shortest=0.02)) == 1
    else:
        message = refusal(path, shortest=0.02)
        assert "line 1" in message and "20 ms" in message


# --- check_manifests -------------------------------------------------------------------------------------------------


def block(stride: int = 1, repeat: int = 1, **more: Any) -> Dict[str, Any]:
    return {"stride": [stride], "repeat": repeat, **more}


def model(path: Optional[Any], encoder: Optional[Dict[str, Any]] = None, **train_ds: Any) -> Any:
    config = {
        "train_ds": {"manifest_filepath": path if path is None or isinstance(path, list) else str(path), **train_ds},
        "preprocessor": {"window_stride": 0.01},
        "encoder": encoder or {"jasper": [block(2), block()]},
    }
    return OmegaConf.create(config)


def test_good_manifests_pass(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0))
    check_manifests(model(path))
    check_manifests(model([str(path), str(path)]))
    check_manifests(model(f"{path},{path}"))
    check_manifests(model(None))
    check_manifests(OmegaConf.create({"encoder": {}, "preprocessor": {"window_stride": 0.01}, "train_ds": None}))


@pytest.mark.parametrize("section", ["train_ds", "validation_ds", "test_ds"])
def test_every_section_is_checked(folder: Path, section: str) -> None:
    config = model(manifest(folder, row(duration=1.0)))
    config[section] = {"manifest_filepath": str(folder / "nowhere.jsonl")}
    with pytest.raises(TutorError, match=r"nowhere\.jsonl"):
        check_manifests(config)


def test_every_manifest_of_a_section_is_checked(folder: Path) -> None:
    good, bad = manifest(folder, row(duration=1.0)), manifest(folder, "{", name="bad.jsonl")
    for found in ([str(good), str(bad)], f"{good},{bad}"):
        with pytest.raises(TutorError, match=r"bad\.jsonl line 1 "):
            check_manifests(model(found))


def test_a_manifest_left_to_fill_in_is_named() -> None:
    with pytest.raises(TutorError, match=r"^model\.train_ds\.manifest_filepath is not set"):
        check_manifests(model("???"))


@pytest.mark.parametrize("kind", ["is_tarred", "use_lhotse"])
def test_sets_without_audio_files_are_left_to_nemo(folder: Path, kind: str) -> None:
    bad = manifest(folder, "{")
    check_manifests(model(bad, **{kind: True}))
    with pytest.raises(TutorError):
        check_manifests(model(bad, **{kind: False}))


@pytest.mark.parametrize(
    "encoder, milliseconds",
    [
        ({"jasper": [block(2), block()]}, 20),
        ({"jasper": [block(2), block(2), block(2)]}, 80),
        ({"jasper": [block(2, repeat=3, stride_last=True)]}, 20),
        ({"jasper": [block(2, repeat=3, stride_last=False)]}, 80),
        ({"jasper": [block(2, repeat=3)]}, 80),  # NeMo's default is stride_last: false
        ({"subsampling_factor": 4}, 40),
        ({"subsampling_factor": 8}, 80),
        ({"subsampling_factor": None}, 10),
    ],
)
def test_the_shortest_utterance_is_one_frame_of_the_encoder(folder: Path, encoder: Dict[str, Any], milliseconds: int) -> None:
    check_manifests(model(manifest(folder, row(duration=milliseconds / 1000)), encoder))
    with pytest.raises(TutorError, match=f"{milliseconds} ms"):
        check_manifests(model(manifest(folder, row(duration=milliseconds / 1000 - 0.001)), encoder))


def test_rows_that_nemo_leaves_out_are_counted(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.05), row(duration=1.0), row(duration=0.9))
    assert check_manifests(model(path)) == check_manifests(model(path, min_duration=0.05, max_duration=1.0)) == []
    limits = "it keeps those of at least 0.1 s (min_duration) and of at most 0.95 s (max_duration)."
    assert check_manifests(model(path, min_duration=0.1, max_duration=0.95)) == [
        f"model.train_ds leaves out 3 of 4 rows of {path}: {limits}"
    ]
    message = conftest.refusal(check_manifests, model(path, max_duration=0.01))
    assert message == f"{path} has no utterance of at most 0.01 s (max_duration); give a manifest with at least one."


@pytest.mark.parametrize("changes", [{}, {"duration": None}])
def test_training_needs_durations(folder: Path, changes: Dict[str, Any]) -> None:
    path = manifest(folder, row(duration=1.0), row(**changes))
    assert len(read_manifest(path)) == 2
    assert conftest.refusal(check_manifests, model(path)).startswith(f"{path} line 2 has no duration, which NeMo needs to train;")


def test_an_object_store_is_left_to_nemo(folder: Path) -> None:
    path = manifest(folder, row(audio_filepath="s3://bucket/a.wav", duration=1.0), row(duration=1.0))
    check_manifests(model(path))
    check_manifests(model(["s3://bucket/train.json", str(path)]))
    assert "line 1: there is no audio file" in refusal(path)  # where it would have to be opened here


def test_lists_of_concatenated_sets_are_checked(folder: Path) -> None:
    good, bad = manifest(folder, row(duration=1.0)), manifest(folder, "{", name="bad.jsonl")
    check_manifests(model([[str(good), str(good)], [str(good)]]))
    assert "bad.jsonl line 1 " in conftest.refusal(check_manifests, model([[str(good)], [str(good), str(bad)]]))


def test_rows_that_nemo_drops_may_be_short(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.005))
    check_manifests(model(path, min_duration=0.1))
    with pytest.raises(TutorError, match="5 ms"):
        check_manifests(model(path, min_duration=None))
