# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""By what an utterance is known: whatever Lhotse does to a cut, and never the same for two."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator, LazyNeMoTarredIterator

from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver, utterance_of
from nemo_tutornet.data.train_settings import check_augmentation
from tests.conftest import refusal
from tests.operators import Operators

RATE = 16000


def batch_of(cuts: Any) -> TrainingBatch:
    ids = [cut.drop_in_memory_data() for cut in cuts]
    return TrainingBatch.from_nemo([None, None, None, None, ids])


def keys(cuts: Sequence[Any]) -> list[str]:
    rows = UtteranceResolver(SimpleNamespace(dataset=SimpleNamespace(return_cuts=False)))
    return [utterance.key for utterance in rows(batch_of(cuts))]


def write(path: Path, seconds: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).standard_normal(int(seconds * RATE)) / 10, RATE)
    return path


def nemo(folder: Path, rows: list[dict]) -> CutSet:
    manifest = folder / "manifest.json"
    manifest.write_text("".join(json.dumps({"text": "a", **row}) + "\n" for row in rows), encoding="utf-8")
    return CutSet(LazyNeMoIterator(manifest))


def test_the_ids_of_a_batch_leave_the_device_together() -> None:
    entries = [SimpleNamespace(audio_file=f"{i}.wav", offset=None, duration=1.0) for i in range(5)]
    manifest = SimpleNamespace(collection=entries)
    dataset = SimpleNamespace(manifest_processor=manifest, return_sample_id=False)
    rows = UtteranceResolver(SimpleNamespace(dataset=dataset))
    ids = torch.tensor([3, 0, 4], dtype=torch.int32)
    with Operators() as ran:
        found = rows(TrainingBatch.from_nemo([None, None, None, None, ids]))
    assert [utterance.key for utterance in found] == [utterance_of(entries[i]).key for i in (3, 0, 4)]
    assert not ran.counts["_local_scalar_dense.default"]


def test_what_augmentation_and_ranks_do_to_ids(tmp_path):
    rows = [
        {"audio_filepath": str(write(tmp_path / f"{i}.wav", 1.0)), "duration": 0.5, "offset": i / 4}
        for i in range(3)
    ]
    cuts = nemo(tmp_path, rows)
    noise = CutSet.from_cuts([Recording.from_file(write(tmp_path / "noise.wav", 2.0)).to_cut()])
    expected = [f"{row['audio_filepath']}|{250 * i}|500" for i, row in enumerate(rows)]
    assert keys(cuts) == expected
    assert keys(cuts.mix(noise, snr=(10, 20), mix_prob=1.0, random_mix_offset=True)) == expected
    assert keys(cuts.modify_ids(lambda name: f"{name}_dup0")) == expected
    assert keys([cut.clip_amplitude() for cut in cuts]) == expected


def test_files_of_one_name_in_two_folders(tmp_path):
    rows = [
        {"audio_filepath": str(write(tmp_path / name / "1.wav", 1.0)), "duration": 1.0}
        for name in ("yes", "no")
    ]
    assert len(set(keys(nemo(tmp_path, rows)))) == 2
    with_rate = [{**row, "sampling_rate": RATE} for row in rows]
    assert keys(nemo(tmp_path, rows)) == keys(nemo(tmp_path, with_rate)), (
        "its rate in the manifest makes it no other utterance"
    )


def test_channels_of_a_file(tmp_path):
    soundfile.write(tmp_path / "call.wav", np.zeros((RATE, 2)), RATE)
    recording = Recording.from_file(tmp_path / "call.wav")
    cut = recording.to_cut()
    assert len({*keys([cut, *cut.to_mono()])}) == 3


def test_equally_long_parts_of_a_file_in_a_tar(tmp_path):
    audio = write(tmp_path / "a.wav", 2.0)
    with tarfile.open(tmp_path / "audio_0.tar", "w") as archive:
        archive.add(audio, arcname="a.wav")
    rows = [
        {"audio_filepath": f"a-sub{i}.wav", "text": "a", "duration": 0.5, "offset": i / 2, "shard_id": 0}
        for i in range(3)
    ]
    (tmp_path / "tarred.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cuts = list(LazyNeMoTarredIterator(str(tmp_path / "tarred.json"), str(tmp_path / "audio_0.tar")))
    assert keys(cuts) == ["a.wav|0|500", "a.wav|500|500", "a.wav|1000|500"]


def test_equally_long_windows_in_shar(tmp_path):
    recording = Recording.from_file(write(tmp_path / "long.wav", 2.0))
    said = SupervisionSegment("long", recording.id, 0.0, recording.duration, text="")
    cut = recording.to_cut()
    cut.supervisions = [said]
    (tmp_path / "shar").mkdir()
    CutSet.from_cuts(cut.cut_into_windows(0.5)).to_shar(tmp_path / "shar", {"recording": "wav"})
    assert len(set(keys(list(CutSet.from_shar(in_dir=tmp_path / "shar"))))) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concatenate_samples", True),
        ("truncate_duration", 5.0),
        ("cut_into_windows_duration", 5.0),
        ("pad_min_duration", 5.0),
    ],
)
def test_what_moves_time_in_lhotse_is_refused(name: str, value: Any) -> None:
    assert name in refusal(check_augmentation, {"use_lhotse": True, name: value})
    check_augmentation({name: value})
    check_augmentation({"use_lhotse": True})
