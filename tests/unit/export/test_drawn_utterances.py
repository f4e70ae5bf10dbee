# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which utterances of a manifest `export --average` and `--calibrate` use. No other audio is opened."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_tutornet.export import batch_norm_statistics
from nemo_tutornet.export.batch_norm_statistics import drawn_utterances, training_batches, training_manifests
from nemo_tutornet.export.onnx_calibration import chosen_utterances, evenly_spread
from tests.conftest import refusal
from tests.unit.data.manifests import manifest, row, write_audio


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The audio that is opened, beside a file `a.wav` of two seconds."""
    found: list[str] = []
    info = soundfile.info
    monkeypatch.setattr(soundfile, "info", lambda name: found.append(name) or info(name))
    write_audio(tmp_path / "a.wav", 2.0)
    random.seed(0)
    yield found


def with_missing(folder: Path, used: set[int], count: int) -> Path:
    """A manifest of two-second rows, whose audio is missing but for the used ones."""
    names = ["a.wav" if i in used else "gone.wav" for i in range(count)]
    return manifest(folder, *(row(audio_filepath=name, duration=2.0) for name in names))


def test_calibration_opens_what_it_uses(tmp_path: Path, opened: list[str]) -> None:
    path = with_missing(tmp_path, set(evenly_spread(950, 100)), 950)
    assert len(chosen_utterances(path)) == len(opened) == 100
    message = refusal(chosen_utterances, with_missing(tmp_path, set(), 950))
    assert message.startswith(f"{path} line 1: there is no audio file")
    assert "has no utterance" in refusal(chosen_utterances, manifest(tmp_path, ""))


def test_statistics_open_ten_minutes(tmp_path: Path, opened: list[str]) -> None:
    batches = training_batches([2.0] * 1000, {"batch_size": 7})
    used = [i for batch in batches[:43] for i in batch]  # 43 batches of 14 s are 602 s
    random.seed(0)
    drawn = drawn_utterances([with_missing(tmp_path, set(used), 1000)], {"batch_size": 7})
    assert [len(batch) for batch in drawn] == [7] * 42
    assert len(opened) == len(used)


@pytest.mark.parametrize("declared", [{}, {"duration": -1}, {"duration": 1000}])
def test_a_row_that_stands_for_the_whole_file_is_measured(
    declared: dict[str, float], tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the limits of the run are compared with a duration that is declared, as by NeMo."""
    monkeypatch.setattr(batch_norm_statistics, "_MOST_SECONDS", 10.0)
    path = manifest(tmp_path, *(row(**declared) for _ in range(20)))
    drawn = drawn_utterances([path, path], {"batch_size": 2, "max_duration": 3.0})
    assert [[row.duration for row in batch] for batch in drawn] == [[2.0, 2.0]] * 2


def test_a_long_first_batch_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm_statistics, "_MOST_SECONDS", 1.0)
    write_audio(tmp_path / "a.wav", 2.0)
    assert len(drawn_utterances([manifest(tmp_path, row(), row())], {"batch_size": 1})) == 1


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ("average", ""),
        (1, ""),
        (2, "there is no channel 2 (channel_selector"),
        *((wrong, "has 2 channels, but an ASR model reads one") for wrong in (None, [0, 1], True)),
    ],
)
def test_the_channel_is_the_runs(channel: Any, words: str, tmp_path: Path) -> None:
    """Audio for `--statistics` may have one channel only."""
    write_audio(tmp_path / "a.wav", 2.0)
    mono = manifest(tmp_path, row(), name="mono.jsonl")
    soundfile.write(tmp_path / "b.wav", np.zeros((16000, 2)), 16000)
    stereo = manifest(tmp_path, row(audio_filepath="b.wav"))
    section = {"channel_selector": channel}
    assert len(drawn_utterances([mono], section)) == 1
    if words:
        assert words in refusal(drawn_utterances, [stereo], section)
    else:
        ((found,),) = drawn_utterances([stereo], section)
        assert found.channel == channel


def test_a_training_manifest_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row()), encoding="utf-8")
    assert training_manifests({"train_ds": {"manifest_filepath": "~/train.jsonl"}}) == [path]
