# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The manifests of a config, before its model is built: what NeMo would die on, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from nemo_tutornet.data.manifest import in_store, read_manifest
from nemo_tutornet.data.manifest_checks import check_manifests
from nemo_tutornet.errors import TutorError
from tests import conftest
from tests.unit.data.manifests import AUDIO, manifest, row


def block(stride: int = 1, repeat: int = 1, **more: Any) -> dict[str, Any]:
    return {"stride": [stride], "repeat": repeat, **more}


def model(path: Any | None, encoder: dict[str, Any] | None = None, **train_ds: Any) -> Any:
    config = {
        "train_ds": {
            "manifest_filepath": path if path is None or isinstance(path, list) else str(path),
            **train_ds,
        },
        "validation_ds": {"use_lhotse": True},  # there is one, and it is NeMo's business
        "preprocessor": {"window_stride": 0.01},
        "encoder": encoder or {"jasper": [block(2), block()]},
    }
    return OmegaConf.create(config)


def test_nemos_other_names_pass(folder: Path) -> None:
    (folder / "t.txt").touch()
    texts = [
        {**AUDIO, "duration": 1.0, **text}
        for text in ({"text_filepath": str(folder / "t.txt")}, {"normalized_text": "n"})
    ]
    path = manifest(
        folder, row(context_duration=0.5), {"audio_filename": "a.wav", "duration": 1.0, "text": "a"}, *texts
    )
    assert check_manifests(model(path)) == []


def test_good_manifests_pass(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0))
    check_manifests(model(path))
    check_manifests(model([str(path), str(path)]))
    check_manifests(model(f"{path},{path}"))
    check_manifests(
        OmegaConf.merge(model(path), {"validation_ds": {"manifest_filepath": None}, "test_ds": None})
    )


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


def test_a_comma_ends_a_path_in_lists_too(folder: Path) -> None:
    """As in NeMo, which would look for the file `FOLDER/a`."""
    path = manifest(folder, row(duration=1.0), name="a, b.jsonl")
    for found in (str(path), [str(path)]):
        with pytest.raises(
            TutorError,
            match=r"there is no manifest .*/a; .* names 2 manifests, because NeMo ends a path at a comma",
        ):
            check_manifests(model(found))


def test_a_training_without_validation_is_reported(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0))
    config = model(path)
    for without in (None, {"manifest_filepath": None}):
        config.validation_ds = without
        [printed] = check_manifests(config)
        assert printed.startswith(
            "model.validation_ds.manifest_filepath is not set, so no checkpoint can be selected"
        )
    config.validation_ds = {"manifest_filepath": str(path)}
    assert check_manifests(config) == []


@pytest.mark.parametrize(
    "config", [model("???"), model(None), model([]), OmegaConf.merge(model(None), {"train_ds": None})]
)
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
def test_the_shortest_utterance_is_one_frame_of_the_encoder(
    folder: Path, encoder: dict[str, Any], milliseconds: int
) -> None:
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
def test_a_front_end_says_its_stride_in_seconds_or_samples_or_not_at_all(
    folder: Path, front: dict[str, Any] | None
) -> None:
    config = model(manifest(folder, row(duration=0.019)))
    config.preprocessor = front
    with pytest.raises(TutorError, match="20 ms"):
        check_manifests(config)


def test_rows_that_nemo_leaves_out_are_counted(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.05), row(duration=1.0), row(duration=0.9))
    assert (
        check_manifests(model(path))
        == check_manifests(model(path, min_duration=0.05, max_duration=1.0))
        == []
    )
    limits = "it keeps rows of at least 0.1 s (min_duration) and of at most 0.95 s (max_duration)."
    assert check_manifests(model(path, min_duration=0.1, max_duration=0.95)) == [
        f"model.train_ds leaves out 3 of 4 rows of {path}: {limits}"
    ]
    (sentence,) = check_manifests(model(path, min_duration=0.1, max_duration=0.95), "model.validation_ds")
    assert sentence == f"model.validation_ds leaves out 3 of 4 rows of {path}: {limits}"
    whole = manifest(folder, row(duration=-1), row(duration=None), row(duration=1.0), name="whole.jsonl")
    assert check_manifests(model(whole)) == []
    assert len(check_manifests(model(whole, min_duration=0.0))) == 1  # a limit of 0 leaves -1 out, as in NeMo


def test_a_set_has_at_least_one_utterance(folder: Path) -> None:
    """NeMo reads a training set's manifests as one; validation has a set of its own for each in a list."""
    good, long = manifest(folder, row(duration=0.5)), manifest(folder, row(duration=1.0), name="long.jsonl")
    key, none = (
        "model.train_ds.manifest_filepath",
        "has no utterance of at most 0.6 s (max_duration); give at least one.",
    )
    assert conftest.refusal(check_manifests, model(long, max_duration=0.6)) == f"{key}: {long} {none}"
    message = conftest.refusal(check_manifests, model([str(long), str(long)], max_duration=0.6))
    assert message == f"{key}: {long}, {long} {none}"
    for both in ([str(good), str(long)], f"{good},{long}", ["s3://bucket/a.json", str(long)]):
        check_manifests(model(both, max_duration=0.6))
    with pytest.raises(
        TutorError, match=r"^model\.train_ds\.manifest_filepath: \S*long\.jsonl has no utterance"
    ):
        check_manifests(model([[str(good)], [str(long)]], max_duration=0.6, is_concat=True))
    config = model(good)
    config.validation_ds = {"manifest_filepath": f"{good},{long}", "max_duration": 0.6}
    check_manifests(config)
    config.validation_ds.manifest_filepath = [str(good), str(long)]
    with pytest.raises(
        TutorError, match=r"^model\.validation_ds\.manifest_filepath: \S*long\.jsonl has no utterance"
    ):
        check_manifests(config)


def test_empty_texts_of_a_training_with_a_teacher_are_counted(folder: Path) -> None:
    """CTC skips them then: in a batch NeMo has the same empty transcript for them and for rows without
    one.
    """
    path = manifest(
        folder,
        row(duration=1.0),
        row(duration=1.0, text=""),
        row(duration=1.0, text=" "),
        {**AUDIO, "duration": 1.0},
    )
    config = model(path)
    assert not any("empty text" in one for one in check_manifests(config))
    config.tutor = {"teacher": {}}
    (printed,) = check_manifests(config)
    assert printed.startswith(f"1 rows of {path} have an empty text: ")  # a space is a label
    config.validation_ds, config.train_ds.manifest_filepath = (
        config.train_ds,
        str(manifest(folder, row(duration=1.0), name="t")),
    )
    assert check_manifests(config) == []


def test_rows_without_a_text_are_reported_where_nobody_teaches(folder: Path) -> None:
    path = manifest(
        folder,
        row(duration=1.0),
        row(duration=1.0, text=""),
        {**AUDIO, "duration": 1.0},
        {**AUDIO, "duration": 1.0},
    )
    (printed,) = check_manifests(model(path))
    assert printed == (
        f"2 of 4 rows of {path} have no text: without a teacher the student learns to output silence for "
        "them; remove them from model.train_ds.manifest_filepath."
    )
    taught = check_manifests(OmegaConf.merge(model(path), {"tutor": {"teacher": {}}}))
    assert not any("no text" in one for one in taught)
    heard = OmegaConf.merge(
        model(manifest(folder, row(duration=1.0), name="t.jsonl")),
        {"test_ds": {"manifest_filepath": str(path)}},
    )
    assert check_manifests(heard) == []


def test_training_needs_durations(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row())
    assert len(read_manifest(path)) == 2
    assert conftest.refusal(check_manifests, model(path)).startswith(
        f"{path} line 2 has no duration, which NeMo needs for training;"
    )


def test_training_refuses_a_transcript_that_is_null(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=1.0, text=None))
    assert conftest.refusal(check_manifests, model(path)).startswith(
        f"{path} line 2: text is null, which NeMo cannot train on;"
    )


def test_an_object_store_is_left_to_nemo(folder: Path) -> None:
    path = manifest(folder, row(audio_filepath="s3://bucket/a.wav", duration=1.0), row(duration=1.0))
    check_manifests(model(path))
    check_manifests(model(["s3://bucket/train.json", str(path)]))
    # It would have to be opened here.
    assert "line 1: s3://bucket/a.wav is in an object store" in conftest.refusal(read_manifest, path)


@pytest.mark.parametrize(
    "named", ["file:///tmp/a.wav", "C://a.wav", "s3://bucket", "http://[a.wav", "a.wav", "/a:b//a.wav"]
)
def test_what_is_no_object_store(folder: Path, named: str) -> None:
    assert not in_store(named)
    words = (
        "there is no audio file" if "://" not in named or named.startswith("C:") else ".* neither a file nor"
    )
    with pytest.raises(TutorError, match=f"line 1: {words}"):
        check_manifests(model(manifest(folder, row(audio_filepath=f"{named}.gone", duration=1.0))))


def test_lists_of_concatenated_sets_are_checked(folder: Path) -> None:
    good, bad = manifest(folder, row(duration=1.0)), manifest(folder, "{", name="bad.jsonl")
    check_manifests(model([[str(good), str(good)], [str(good)]]))
    assert "bad.jsonl line 1 " in conftest.refusal(
        check_manifests, model([[str(good)], [str(good), str(bad)]])
    )


def test_rows_that_nemo_drops_may_be_short(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=0.005))
    check_manifests(model(path, min_duration=0.1))
    with pytest.raises(TutorError, match="5 ms"):
        check_manifests(model(path, min_duration=None))


def test_audio_with_several_channels_is_refused_unless_one_is_chosen(folder: Path) -> None:
    soundfile.write(folder / "two.wav", np.zeros((16000, 2)), 16000)
    path = manifest(folder, row(duration=1.0), row(audio_filepath="two.wav", duration=1.0))
    message = conftest.refusal(check_manifests, model(path))
    assert "line 2: " in message and "two.wav has 2 channels" in message and "channel_selector" in message
    for chosen in (0, "average"):
        assert check_manifests(model(path, channel_selector=chosen)) == []
    # Their mean may be noise to `evaluate`.
    message = conftest.refusal(read_manifest, path)
    assert "line 2: " in message and "two.wav has 2 channels" in message and "mono file" in message


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (1, r"line 1: .*a\.wav has one channel, so there is no channel 1"),
        (2, r"line 1: .*a\.wav has one channel, so there is no channel 2"),
        (-1, r"model\.train_ds\.channel_selector is -1, but it must be the number of one channel"),
        ([0, 1], r"model\.train_ds\.channel_selector is \[0, 1\], but"),
        ("left", r"model\.train_ds\.channel_selector is left, but"),
        (True, r"model\.train_ds\.channel_selector is True, but"),
    ],
)
def test_a_channel_that_is_not_there(folder: Path, chosen: Any, words: str) -> None:
    """NeMo says so in the middle of an epoch, or makes batches that no model can read."""
    with pytest.raises(TutorError, match=words):
        check_manifests(model(manifest(folder, row(duration=1.0)), channel_selector=chosen))


def test_the_last_channel_of_two(folder: Path) -> None:
    soundfile.write(folder / "two.wav", np.zeros((16000, 2)), 16000)
    path = manifest(folder, row(audio_filepath="two.wav", duration=1.0))
    assert check_manifests(model(path, channel_selector=1)) == []
    with pytest.raises(TutorError, match=r"two\.wav has 2 channels, so there is no channel 2"):
        check_manifests(model(path, channel_selector=2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train_ds": "train.jsonl"},
            "model.train_ds is train.jsonl, but it must be a section; give a manifest as model.train_ds.mani",
        ),
        (
            {"validation_ds": ["valid.jsonl"]},
            "model.validation_ds is ['valid.jsonl'], but it must be a section",
        ),
        (
            {"train_ds": {"manifest_filepath": 3}},
            "model.train_ds.manifest_filepath holds 3, which is not a path",
        ),
        (
            {"train_ds": {"manifest_filepath": ["{good}", None]}},
            "model.train_ds.manifest_filepath holds None, which is not a path",
        ),
        (
            {"train_ds": {"manifest_filepath": [["{good}"], 3]}},
            "model.train_ds.manifest_filepath holds 3, which is not a path",
        ),
        (
            {"train_ds": {"manifest_filepath": "${oc.env:NOT_SET_ANYWHERE}/a.jsonl"}},
            "model.train_ds cannot be read: ",
        ),
        ({"train_ds": {"manifest_filepath": "${nowhere}"}}, "model.train_ds cannot be read: "),
        (
            {"train_ds": {"max_duration": "long"}},
            "model.train_ds.max_duration is long, but it must be a number of seconds",
        ),
        ({"validation_ds": {"min_duration": True}}, "model.validation_ds.min_duration is True, but"),
    ],
)
def test_a_section_that_makes_no_sense_is_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    good = manifest(folder, row(duration=1.0))
    config = OmegaConf.to_container(OmegaConf.merge(model(good), {"validation_ds": {"use_lhotse": False}}))
    config["validation_ds"]["manifest_filepath"] = str(good)
    for name, section in changes.items():
        text = json.dumps(section).replace("{good}", str(good))
        config[name] = {**config[name], **json.loads(text)} if isinstance(section, dict) else section
    assert conftest.refusal(check_manifests, OmegaConf.create(config)).startswith(words)


def test_a_file_that_is_shorter_than_its_row_says_is_named(folder: Path) -> None:
    """The audio has one second; a duration may be rounded."""
    path = manifest(folder, row(duration=1.0), row(duration=1.05), row(duration=2.0))
    (printed,) = check_manifests(model(path))
    assert printed == (
        f"1 of 3 rows of {path} have more seconds than their file, e.g. 2 s of {folder / 'a.wav'}, which has "
        "1 s: correct the duration, or copy the file again if it is truncated."
    )


def test_rows_that_are_sorted_need_a_duration(folder: Path) -> None:
    path = manifest(folder, row(duration=1.0), row(duration=None))
    assert check_manifests(model(path)) == []
    with pytest.raises(TutorError, match="line 2: duration is null, and use_semi_sorted_batching"):
        check_manifests(model(path, use_semi_sorted_batching=True))


def test_ctc_without_any_transcript_is_said(folder: Path) -> None:
    silent = manifest(folder, row(duration=1.0, text=""), row(duration=1.0, text=""))
    spoken = manifest(folder, row(duration=1.0), name="spoken.jsonl")
    stages = [{"name": "rkd", "weights": {"rkd": 1.0}}, {"name": "ctc", "weights": {"ctc": 1.0, "rkd": 1.85}}]
    taught = {"tutor": {"teacher": {}, "stages": stages}}
    sentence = "no row of model.train_ds.manifest_filepath has a transcript, so the loss ctc learns nothing"
    found = check_manifests(OmegaConf.merge(model(silent), taught))
    assert sum(one.startswith(sentence) for one in found) == 1
    both = OmegaConf.merge(model([str(silent), str(spoken)]), taught)
    assert not any(one.startswith(sentence) for one in check_manifests(both))
    taught["tutor"]["stages"] = stages[:1]
    assert not any(
        one.startswith(sentence) for one in check_manifests(OmegaConf.merge(model(silent), taught))
    )
