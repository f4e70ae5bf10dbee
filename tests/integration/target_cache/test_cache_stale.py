# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache whose audio has changed since: overwritten in place with the same length, or another channel."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_tutornet import TutorError
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.target_cache.layout import header_bytes, read_header
from nemo_tutornet.target_cache.schema import CacheSchema
from tests.conftest import student_config
from tests.integration.target_cache.caching import STAGES, cached, tar, whole

NOISE = {"augmentor": {"white_noise": {"prob": 1.0, "min_level": -40, "max_level": -20}}}


@pytest.fixture(scope="module")
def stereo(corpus: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose second channel is another voice, and a cache of its first channel."""
    folder = tmp_path_factory.mktemp("stereo") / "corpus"
    shutil.copytree(corpus, folder)
    for path in folder.glob("train*.wav"):
        audio, rate = soundfile.read(path)
        soundfile.write(path, np.stack([audio, audio[::-1]], axis=1), rate)
    config = student_config(folder, teacher_file, STAGES)
    config["train_ds"]["channel_selector"] = 0
    build_cache(whole(config), folder / "cache", progress=False)
    return folder


def overwrite(path: Path) -> None:
    """Other speech of the same length, level and format."""
    info, (audio, rate) = soundfile.info(path), soundfile.read(path)
    soundfile.write(path, audio[::-1], rate, subtype=info.subtype)


def train(config: dict[str, Any], make_student: Any) -> None:
    """Reads the targets of an epoch."""
    model = make_student(config)
    model.setup("fit")
    stage = model.distiller.schedule.stages[-1]
    for batch in model._train_dl:
        model.distiller.teacher_targets(stage, TrainingBatch.from_nemo(batch))


def of_channel(stereo: Path, channel: Any, **settings: Any) -> dict[str, Any]:
    config = cached(stereo, stereo / "cache")
    config["train_ds"].update(settings, channel_selector=channel)
    return config


def test_another_channel_is_refused(stereo, teacher_file, make_student):
    train(of_channel(stereo, 0), make_student)
    for channel in (1, "average", [0]):
        words = r"cache was built from other samples .*model\.train_ds\.channel_selector is 0 there"
        with pytest.raises(TutorError, match=words):
            make_student(of_channel(stereo, channel)).setup("fit")
    with pytest.raises(TutorError, match=r"trim_silence is false there and true here"):
        make_student(of_channel(stereo, 0, trim_silence=True)).setup("fit")
    config = student_config(stereo, teacher_file, STAGES)
    config["train_ds"]["channel_selector"] = 1
    with pytest.raises(TutorError, match=r"is a cache of other targets .*audio\.channel_selector is 0 there"):
        build_cache(whole(config), stereo / "cache", progress=False)


@pytest.mark.parametrize("settings", [{}, NOISE], ids=["plain", "noise"])
def test_audio_that_was_overwritten_is_refused(stereo, make_student, settings):
    path = stereo / "train3.wav"
    before = path.read_bytes()
    try:
        audio, rate = soundfile.read(path)
        soundfile.write(path, audio[:, ::-1], rate)
        with pytest.raises(
            TutorError, match=r"train3\.wav .* has other audio than the cache .* was built from: .*;"
        ):
            train(of_channel(stereo, 0, **settings), make_student)
    finally:
        path.write_bytes(before)
    train(of_channel(stereo, 0, **settings), make_student)


@pytest.mark.parametrize("reader", ["tars", "lhotse", "parts"])
def test_whatever_reads_the_audio(corpus, teacher_file, make_student, tmp_path, reader):
    moved = tmp_path / "corpus"
    shutil.copytree(corpus, moved)
    rows = [json.loads(line) for line in (moved / "train.jsonl").read_text(encoding="utf-8").splitlines()]

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        if reader == "tars":
            names = [row["audio_filepath"] for row in rows]
            config["train_ds"].update(tar(moved, tmp_path, names, 0), is_tarred=True, shuffle_n=4)
        elif reader == "lhotse":
            config["train_ds"].update(use_lhotse=True, batch_size=3, force_finite=True, num_workers=0)
        else:
            halves = [{**row, "offset": 0.3, "duration": 0.34} for row in rows]
            text = "".join(json.dumps(row) + "\n" for row in halves)
            (moved / "train.jsonl").write_text(text, encoding="utf-8")
        return config

    config = changed(student_config(moved, teacher_file, STAGES))
    build_cache(whole(config), tmp_path / "cache", progress=False)
    train(changed(cached(moved, tmp_path / "cache")), make_student)
    overwrite(moved / "train5.wav")
    with pytest.raises(TutorError, match=r"train5\S* .* has other audio than the cache"):
        train(changed(cached(moved, tmp_path / "cache")), make_student)


def test_a_cache_of_an_earlier_version_is_read_and_continued(
    corpus, teacher_file, make_student, tmp_path, monkeypatch, capsys
):
    """It has no record of the audio: a training says so, and the builder adds to it without one."""
    moved, folder = tmp_path / "corpus", tmp_path / "cache"
    shutil.copytree(corpus, moved)
    rows = (moved / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (moved / "train.jsonl").write_text("".join(rows[:5]), encoding="utf-8")
    config = whole(student_config(moved, teacher_file, STAGES))
    commands = "nemo_tutornet.commands"
    with monkeypatch.context() as patch:
        patch.setattr(f"{commands}.cache_targets.read_provenance", lambda folder: {})
        patch.setattr(
            f"{commands}.cache_schema.CacheSchema", lambda fingerprints, **rest: CacheSchema(**rest)
        )
        build_cache(config, folder, progress=False)
    header = read_header(folder)
    assert "audio" not in header["binding"] and "fingerprints" not in header["coding"]
    assert header_bytes(header) == (folder / "cache.json").read_bytes()
    (moved / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    capsys.readouterr()
    assert build_cache(config, folder, progress=False).added == 3
    assert "an earlier version built this cache" in capsys.readouterr().err
    overwrite(moved / "train0.wav")
    logger, records = logging.getLogger("nemo_logger"), []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    try:
        train(cached(moved, folder), make_student)
    finally:
        logger.removeHandler(handler)
    assert sum("an earlier version built this cache" in line for line in records) == 1
