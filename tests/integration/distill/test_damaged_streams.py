# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Damaged audio in tars and with Lhotse, and audio with several channels: named with the tar, and left out
while it is little.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from omegaconf import OmegaConf

from nemo_tutornet import TutorError
from nemo_tutornet.data.damaged_audio import decode_all, guard_audio
from nemo_tutornet.data.damaged_tars import check_tar
from tests.conftest import student_config, write_manifest
from tests.integration.target_cache.caching import tar

# Utterances 1 and 2 of six are damaged: of one the audio, of the other the header, too.
KEPT = {"u1": 0.5, "u2": 0.0}
READERS = ["tars", "lhotse", "lhotse tars", "cuts", "shar"]
LHOTSE = {"use_lhotse": True, "force_finite": True, "batch_size": 2, "shuffle": False, "num_workers": 0}
LHOTSE |= {"seed": 0, "shard_seed": 0}


def damage(audio: bytes, share: float) -> bytes:
    """Audio whose end is missing; and without any of it, whose header is not one."""
    return audio[: int(share * len(audio))] if share else b"no audio" * 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six FLAC files and their manifests for each reader, of which two are damaged in `bad`."""
    folder = tmp_path_factory.mktemp("streams")
    write_manifest(folder, "valid", [0.9])
    rows = [
        json.loads(line) for line in write_manifest(folder, "train", [0.9 + 0.1 * i for i in range(6)]).open()
    ]
    whole, bad = folder / "whole", folder / "bad"
    for part in (whole, bad):
        (part / "shar").mkdir(parents=True)
        for i, row in enumerate(rows):
            samples, rate = soundfile.read(folder / f"train{i}.wav")
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, rate, format="flac")
            audio = buffer.getvalue()
            if part == bad and f"u{i}" in KEPT:
                audio = damage(audio, KEPT[f"u{i}"])
            (part / f"u{i}.flac").write_bytes(audio)
            row["audio_filepath"] = f"u{i}.flac"
        (part / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recordings = [Recording.from_file(whole / f"u{i}.flac") for i in range(6)]
    cuts = []
    for recording, row in zip(recordings, rows, strict=True):
        said = SupervisionSegment(recording.id, recording.id, 0, recording.duration, text=row["text"])
        cuts.append(MonoCut(recording.id, 0, recording.duration, 0, [said], recording=recording))
    CutSet.from_cuts(cuts).to_shar(whole / "shar", fields={"recording": "flac"})
    (bad / "shar" / "cuts.000000.jsonl.gz").write_bytes(
        (whole / "shar" / "cuts.000000.jsonl.gz").read_bytes()
    )
    with (
        tarfile.open(whole / "shar" / "recording.000000.tar") as source,
        tarfile.open(bad / "shar" / "recording.000000.tar", "w") as target,
    ):
        for member in source:
            data = source.extractfile(member).read()
            stem, suffix = member.name.split(".")
            if stem in KEPT and suffix == "flac":
                data = damage(data, KEPT[stem])
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    for cut in cuts:
        cut.recording.sources[0].source = str(bad / f"{cut.id}.flac")
    CutSet.from_cuts(cuts).to_file(bad / "cuts.jsonl")
    return folder


def settings_of(reader: str, folder: Path, name: str = "bad") -> dict[str, Any]:
    """What `train_ds` needs to read the six files."""
    part = folder / name
    settings: dict[str, Any] = dict(LHOTSE)
    if "tars" in reader:
        settings |= tar(part, part, [f"u{i}.flac" for i in range(6)], 0)
    if reader == "tars":
        return settings | {"use_lhotse": False, "is_tarred": True, "shuffle_n": 1, "batch_size": 2}
    if reader == "cuts":
        return settings | {"manifest_filepath": None, "cuts_path": str(part / "cuts.jsonl")}
    if reader == "shar":
        return settings | {"manifest_filepath": None, "shar_path": str(part / "shar")}
    return {"manifest_filepath": str(part / "train.jsonl")} | settings


def where_of(reader: str, name: str = "u1") -> str:
    """How a message names an utterance."""
    if reader == "shar":
        return rf"{name} in \S*/cuts\.000000\.jsonl\.gz"
    return rf"{name}\.flac in \S*/audio_0\.tar" if "tars" in reader else rf"/bad/{name}\.flac"


def config_of(folder: Path, settings: dict[str, Any], teacher: Path | None = None) -> dict[str, Any]:
    config = student_config(folder, teacher)
    config["train_ds"].update(settings)
    return config


def train_set(make_student, config: dict[str, Any]) -> Any:
    return make_student(config, limit_train_batches=3)._train_dl


def audio_of(loader: Any) -> list[int]:
    """Tenths of seconds of what is read: 9 for the first utterance, 14 for the last."""
    return [round(10 * int(length) / 16000) for batch in loader for length in batch[1]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reader", READERS)
def test_a_training_goes_on_while_they_are_few(reader, workers, folder, make_student, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr("nemo.utils.logging.warning", lambda text, *_, **__: warnings.append(str(text)))
    settings = settings_of(reader, folder) | {"num_workers": workers}
    loader = train_set(make_student, config_of(folder, settings))
    guard_audio(loader, "model.train_ds", 0.5, OmegaConf.create(settings))
    # In NeMo's tars each sample is replaced; Lhotse's batches are smaller.
    expected = [9, 9, 9, 12, 13, 14] if reader == "tars" else [9, 12, 13, 14]
    del warnings[:]
    for _ in range(2):
        assert sorted(audio_of(loader)) == expected
    if not workers:
        printed = [text for text in warnings if "damaged so far" in text]
        assert len(printed) == 2 and all("\n" not in text and len(text) < 600 for text in printed), printed
        for text, name in zip(sorted(printed), KEPT, strict=True):
            assert re_search(
                where_of(reader, name) + r" cannot be decoded \((Error : flac|Error opening)", text
            )
        assert printed[-1].endswith("(damaged so far: 2 of 6).")


def re_search(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("reader", READERS)
def test_a_training_with_many_stops_at_a_sentence(reader, folder, make_student, teacher_file):
    """Also in a worker, whose traceback is not shown."""
    config = config_of(folder, settings_of(reader, folder) | {"num_workers": 1}, teacher_file)
    config["tutor"]["max_damaged_share"] = 0.01
    student = make_student(config, max_epochs=-1, max_steps=6, limit_train_batches=3)
    with pytest.raises(TutorError) as error:
        student.trainer.fit(student)
    said = str(error.value)
    assert said.startswith("model.train_ds: ") and "\n" not in said
    assert re_search(where_of(reader, "u[12]") + r" cannot be decoded \(", said)
    assert ", and at most 1 % of 6 utterances may be; " in said


def test_a_batch_of_damaged_ones_is_the_last_one_again(folder, make_student):
    settings = settings_of("lhotse", folder) | {"batch_size": 1}
    loader = train_set(make_student, config_of(folder, settings))
    guard_audio(loader, "model.train_ds", 0.5, OmegaConf.create(settings))
    assert audio_of(loader) == [9, 9, 9, 12, 13, 14]


def test_damaged_noise_is_named(folder, make_student, tmp_path):
    (tmp_path / "noise.wav").write_bytes((folder / "train0.wav").read_bytes())
    CutSet.from_cuts([Recording.from_file(tmp_path / "noise.wav").to_cut()]).to_file(tmp_path / "noise.jsonl")
    (tmp_path / "noise.wav").write_bytes(b"no audio" * 100)
    settings = settings_of("lhotse", folder, "whole")
    settings |= {"noise_path": str(tmp_path / "noise.jsonl"), "noise_mix_prob": 1.0, "noise_snr": [5.0, 10.0]}
    loader = train_set(make_student, config_of(folder, settings))
    guard_audio(loader, "model.train_ds", 0.0, OmegaConf.create(settings))
    words = r"/u\d\.flac cannot be decoded \(/\S*/noise\.wav is mixed into it: Error opening"
    with pytest.raises(TutorError, match=words):
        audio_of(loader)


def test_a_validation_set_stops_at_the_first(folder, make_student):
    config = config_of(folder, {})
    config["validation_ds"].update(settings_of("lhotse tars", folder))
    student = make_student(config, limit_val_batches=3)
    with pytest.raises(TutorError, match=r"^model\.validation_ds: u1\.flac in \S* cannot be decoded"):
        student.trainer.fit(student)


def cut_off(path: Path) -> None:
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size // 2])


def break_header(path: Path) -> None:
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    data = bytearray(path.read_bytes())
    data[third.offset : third.offset + 512] = b"\xff" * 512
    path.write_bytes(data)


@pytest.mark.parametrize("reader", ["tars", "lhotse tars", "shar"])
def test_a_tar_that_is_cut_off(reader, folder, make_student, tmp_path):
    """NeMo and Lhotse read what is before the place, in every epoch, and say so at most in a warning."""
    settings = settings_of(reader, folder, "whole")
    copied = copy_tar(reader, settings, tmp_path)
    cut_off(copied)
    loader = train_set(make_student, config_of(folder, settings))
    with pytest.raises(
        TutorError, match=rf"^model\.train_ds: the tar {copied} is cut off or damaged in or after its member"
    ):
        guard_audio(loader, "model.train_ds", 0.5)


def copy_tar(reader: str, settings: dict[str, Any], folder: Path) -> Path:
    if reader != "shar":
        path = folder / "audio_0.tar"
        path.write_bytes(Path(settings["tarred_audio_filepaths"]).read_bytes())
        settings["tarred_audio_filepaths"] = str(path)
        return path
    for path in Path(settings["shar_path"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings["shar_path"] = str(folder)
    return folder / "recording.000000.tar"


@pytest.mark.parametrize("reader", ["tars", "lhotse tars"])
def test_a_tar_that_is_damaged_in_the_middle(reader, folder, make_student, tmp_path):
    settings = settings_of(reader, folder, "whole")
    copied = copy_tar(reader, settings, tmp_path)
    break_header(copied)
    loader = train_set(make_student, config_of(folder, settings))
    guard_audio(loader, "model.train_ds", 0.5)
    with pytest.raises(
        TutorError, match=rf"the tar {copied} is cut off or damaged in or after its member u1.flac, .*is lost"
    ):
        audio_of(loader)


def test_a_tar_without_its_end_may_be_whole(folder, tmp_path):
    whole = Path(settings_of("tars", folder, "whole")["tarred_audio_filepaths"]).read_bytes()
    with tarfile.open(folder / "whole" / "audio_0.tar") as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    path = tmp_path / "a.tar"
    for kept, refused in ((end, False), (end - 512, True), (last.offset + 100, True), (0, True)):
        path.write_bytes(whole[:kept])
        if refused:
            with pytest.raises(TutorError, match=r"is cut off or damaged in or after its (member u|begin)"):
                check_tar(str(path), "model.train_ds")
        else:
            check_tar(str(path), "model.train_ds")


@pytest.mark.parametrize("reader", READERS)
def test_check_decodes_all(reader, folder, make_student):
    for name, count in (("whole", 0), ("bad", 2)):
        if name == "whole" and reader == "cuts":
            continue
        settings = settings_of(reader, folder, name)
        loader = train_set(make_student, config_of(folder, settings))
        found = decode_all(loader, "model.train_ds", data=OmegaConf.create(settings))
        assert len(found) == count, found
        for sentence, damaged in zip(found, KEPT, strict=False):
            assert re_search(rf"{where_of(reader, damaged)} cannot be decoded \(", sentence)


@pytest.mark.parametrize("reader", ["tars", "lhotse tars", "shar"])
def test_check_names_tars_that_are_damaged(reader, folder, make_student, tmp_path):
    settings = settings_of(reader, folder, "whole")
    copied = copy_tar(reader, settings, tmp_path)
    break_header(copied)
    loader = train_set(make_student, config_of(folder, settings))
    assert [
        f"the tar {copied} is cut off or damaged" in one for one in decode_all(loader, "s", data=settings)
    ] == [True]


@pytest.mark.parametrize("reader", ["tars", "tars of one", "lhotse"])
def test_several_channels_are_refused_by_every_reader(reader, make_student, tmp_path):
    """Of files `check_manifests` says so. NeMo would make batches of three dimensions, or fail to stack
    them.
    """
    write_manifest(tmp_path, "train", [0.9, 1.1])
    write_manifest(tmp_path, "valid", [0.9])
    for path in tmp_path.glob("train*.wav"):
        audio, rate = soundfile.read(path)
        soundfile.write(path, np.stack([audio, audio], axis=1), rate)
    config = student_config(tmp_path, None)
    if reader == "lhotse":
        config["train_ds"].update(use_lhotse=True, force_finite=True)
        words = r"model\.train_ds: .*train\d\.wav has 2 channels, .* model\.train_ds\.channel_selector"
    else:
        names = ["train0.wav", "train1.wav"]
        config["train_ds"].update(tar(tmp_path, tmp_path, names, 0), is_tarred=True, shuffle_n=2)
        config["train_ds"]["batch_size"] = 1 if reader == "tars of one" else 2
        words = r"model\.train_ds: train\d\.wav in \S*/audio_0\.tar has 2 channels"
    model = make_student(config)
    model.setup("fit")
    with pytest.raises(TutorError, match=words):
        next(iter(model._train_dl))
    if reader == "lhotse":
        config["train_ds"]["channel_selector"] = 1
        chosen = make_student(config)
        chosen.setup("fit")
        assert next(iter(chosen._train_dl))[0].dim() == 2
