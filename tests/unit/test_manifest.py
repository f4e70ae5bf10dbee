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

from nemo_tutornet.data.manifest import Utterance, check_manifests, in_store, read_manifest
from nemo_tutornet.errors import TutorError
from tests import conftest

RATE = 16000
AUDIO = {"audio_filepath": "a.wav"}


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


def test_a_duration_is_what_is_heard(folder: Path) -> None:
    """1000 stands for the whole file in manifests that people share; NeMo takes 0 and -1 for it, too."""
    path = manifest(folder, row(duration=1000), row(duration=1000, offset=0.25), row(duration=0), row(duration=-1, offset=0.5))
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([1.0, 0.75, 1.0, 0.5])


def test_nemos_other_name_of_a_duration_comes_second(folder: Path) -> None:
    path = manifest(folder, row(context_duration=0.5), row(context_duration=0.5, duration=0.75))
    assert [utterance.duration for utterance in read_manifest(path)] == pytest.approx([0.5, 0.75])
    assert check_manifests(model(path)) == []


def test_text_may_be_missing_and_may_be_unicode(folder: Path) -> None:
    lines = [{"audio_filepath": "a.wav"}, row(text=None), '{"audio_filepath": "a.wav", "text": "čau\u2028über"}']
    assert [utterance.text for utterance in read_manifest(manifest(folder, *lines))] == [None, None, "čau\u2028über"]


def test_nemos_other_places_of_a_transcript_are_read(folder: Path) -> None:
    (folder / "t.txt").write_text("from a\n file\n", encoding="utf-8")
    audio, file = {"audio_filepath": "a.wav", "duration": 1.0}, {"text_filepath": str(folder / "t.txt")}
    lines = [{**audio, **file, "normalized_text": "n"}, {**audio, "normalized_text": "n"}, {**audio, **file, "text": "x"}]
    path = manifest(folder, *lines)
    assert [utterance.text for utterance in read_manifest(path)] == ["from a file", "n", "x"]
    assert check_manifests(model(path)) == []
    gone = manifest(folder, row(), {**audio, "text_filepath": "gone.txt"})
    assert "line 2: text_filepath gone.txt cannot be read" in refusal(gone)


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


def test_the_manifests_folder_comes_before_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").mkdir()
    write_audio(folder / "here" / "a.wav", 2.0)
    write_audio(folder / "here" / "b.wav", 2.0)
    monkeypatch.chdir(folder / "here")
    found = read_manifest(manifest(folder, row(), row(audio_filepath="b.wav")))
    assert [utterance.duration for utterance in found] == [1.0, 2.0]
    assert f"no audio file {folder / 'c.wav'}, nor {folder / 'here' / 'c.wav'};" in refusal(
        manifest(folder, row(audio_filepath="c.wav"))
    )


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
        (b"\xef\xbb\xbf" + json.dumps(row()).encode(), "BOM"),
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
    check_manifests(OmegaConf.merge(model(path), {"validation_ds": {"manifest_filepath": None}, "test_ds": None}))


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


@pytest.mark.parametrize("config", [model("???"), model(None), model([]), OmegaConf.merge(model(None), {"train_ds": None})])
def test_a_manifest_left_to_fill_in_is_named(config: Any) -> None:
    with pytest.raises(TutorError, match=r"^model\.train_ds\.manifest_filepath is not set"):
        check_manifests(config)


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


@pytest.mark.parametrize(
    "front",
    [
        {},
        None,
        {"window_stride": None, "n_window_stride": 160},
        {"window_stride": None, "n_window_stride": 80, "sample_rate": 8000},
    ],
)
def test_a_front_end_says_its_stride_in_seconds_or_samples_or_not_at_all(folder: Path, front: Optional[Dict[str, Any]]) -> None:
    config = model(manifest(folder, row(duration=0.019)))
    config.preprocessor = front
    with pytest.raises(TutorError, match="20 ms"):
        check_manifests(config)


def test_rows_that_nemo_leaves_out_are_counted(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.05), row(duration=1.0), row(duration=0.9))
    assert check_manifests(model(path)) == check_manifests(model(path, min_duration=0.05, max_duration=1.0)) == []
    limits = "it keeps those of at least 0.1 s (min_duration) and of at most 0.95 s (max_duration)."
    assert check_manifests(model(path, min_duration=0.1, max_duration=0.95)) == [
        f"model.train_ds leaves out 3 of 4 rows of {path}: {limits}"
    ]
    whole = manifest(folder, row(duration=-1), row(duration=None), row(duration=1.0), name="whole.jsonl")
    assert check_manifests(model(whole)) == []
    assert len(check_manifests(model(whole, min_duration=0.0))) == 1  # a limit of 0 leaves -1 out, as in NeMo


def test_a_set_has_at_least_one_utterance(folder: Path) -> None:
    """NeMo reads a training set's manifests as one; validation has a set of its own for each in a list."""
    good, long = manifest(folder, row(duration=0.5)), manifest(folder, row(duration=1.0), name="long.jsonl")
    key, none = "model.train_ds.manifest_filepath", "has no utterance of at most 0.6 s (max_duration); give at least one."
    assert conftest.refusal(check_manifests, model(long, max_duration=0.6)) == f"{key}: {long} {none}"
    message = conftest.refusal(check_manifests, model([str(long), str(long)], max_duration=0.6))
    assert message == f"{key}: {long}, {long} {none}"
    for both in ([str(good), str(long)], f"{good},{long}", ["s3://bucket/a.json", str(long)]):
        check_manifests(model(both, max_duration=0.6))
    with pytest.raises(TutorError, match=r"^model\.train_ds\.manifest_filepath: \S*long\.jsonl has no utterance"):
        check_manifests(model([[str(good)], [str(long)]], max_duration=0.6, is_concat=True))
    config = model(good)
    config.validation_ds = {"manifest_filepath": f"{good},{long}", "max_duration": 0.6}
    check_manifests(config)
    config.validation_ds.manifest_filepath = [str(good), str(long)]
    with pytest.raises(TutorError, match=r"^model\.validation_ds\.manifest_filepath: \S*long\.jsonl has no utterance"):
        check_manifests(config)


def test_empty_texts_of_a_training_with_a_teacher_are_counted(folder: Path) -> None:
    """CTC skips them then: in a batch NeMo has the same empty transcript for them and for rows without one."""
    path = manifest(
        folder, row(duration=1.0), row(duration=1.0, text=""), row(duration=1.0, text=" "), {**AUDIO, "duration": 1.0}
    )
    config = model(path)
    assert check_manifests(config) == []
    config.tutor = {"teacher": {}}
    (told,) = check_manifests(config)
    assert told.startswith(f"2 rows of {path} have an empty text: ")
    config.validation_ds, config.train_ds.manifest_filepath = config.train_ds, str(manifest(folder, row(duration=1.0), name="t"))
    assert check_manifests(config) == []


def test_training_needs_durations(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row())
    assert len(read_manifest(path)) == 2
    assert conftest.refusal(check_manifests, model(path)).startswith(f"{path} line 2 has no duration, which NeMo needs to train;")


def test_training_refuses_a_transcript_that_is_null(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=1.0, text=None))
    assert conftest.refusal(check_manifests, model(path)).startswith(f"{path} line 2: text is null, which NeMo cannot train on;")


def test_an_object_store_is_left_to_nemo(folder: Path) -> None:
    path = manifest(folder, row(audio_filepath="s3://bucket/a.wav", duration=1.0), row(duration=1.0))
    check_manifests(model(path))
    check_manifests(model(["s3://bucket/train.json", str(path)]))
    assert "line 1: s3://bucket/a.wav is in an object store" in refusal(path)  # it would have to be opened here


@pytest.mark.parametrize("named", ["file:///tmp/a.wav", "C://a.wav", "s3://bucket", "http://[a.wav", "a.wav", "/a:b//a.wav"])
def test_what_is_no_object_store(folder: Path, named: str) -> None:
    assert not in_store(named)
    with pytest.raises(TutorError, match="line 1: there is no audio file"):
        check_manifests(model(manifest(folder, row(audio_filepath=f"{named}.gone", duration=1.0))))


def test_lists_of_concatenated_sets_are_checked(folder: Path) -> None:
    good, bad = manifest(folder, row(duration=1.0)), manifest(folder, "{", name="bad.jsonl")
    check_manifests(model([[str(good), str(good)], [str(good)]]))
    assert "bad.jsonl line 1 " in conftest.refusal(check_manifests, model([[str(good)], [str(good), str(bad)]]))


def test_rows_that_nemo_drops_may_be_short(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.005))
    check_manifests(model(path, min_duration=0.1))
    with pytest.raises(TutorError, match="5 ms"):
        check_manifests(model(path, min_duration=None))
