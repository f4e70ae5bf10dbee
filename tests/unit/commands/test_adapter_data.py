# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where an adapter is trained, where its data are kept, and when they are others."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_tutornet.commands import adapter_data
from nemo_tutornet.commands.adapter_data import device_of, encoding_config, fits_on_disk, manifest_digests


@pytest.mark.parametrize(
    ("trainer", "device", "devices"),
    [
        ({}, "cuda", 1),
        ({"devices": 4, "accelerator": "gpu"}, "cuda", 1),
        ({"devices": [3, 5]}, "cuda:3", [3]),
        ({"devices": [3], "accelerator": "cpu"}, "cpu", 1),
        ({"devices": "auto"}, "cuda", 1),
    ],
)
def test_the_gpu_is_the_one_that_the_trainer_lists(
    trainer: dict[str, Any], device: str, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = {"train_ds": {}, "tutor": {"teacher": {"model_path": "a.nemo"}}}
    cfg = OmegaConf.create({"trainer": trainer, "model": model})
    assert device_of(cfg) == torch.device(device)
    assert encoding_config(cfg, hypotheses=False).trainer.devices == devices


def test_other_manifests_are_other_data(tmp_path: Path) -> None:
    """Also where the encoder runs in every epoch, so that no utterance is known beforehand."""
    manifest = tmp_path / "train.jsonl"
    manifest.write_text('{"text": "a"}\n')
    section = OmegaConf.create({"manifest_filepath": [str(manifest), "s3://bucket/other.jsonl"]})
    before = manifest_digests(section)
    assert manifest_digests(section) == before
    manifest.write_text('{"text": "b"}\n')
    assert manifest_digests(section) != before
    tars = OmegaConf.create({"manifest_filepath": str(manifest), "tarred_audio_filepaths": "a_{0..1}.tar"})
    assert any("a_{0..1}.tar" in one for one in manifest_digests(tars))


def test_what_is_stored_already_needs_no_further_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 s at 10 frames a second, 2 values wide: 2,000 bytes. 1,500 of them are stored."""
    rows = SimpleNamespace(manifest_utterances=[SimpleNamespace(duration=100.0)])
    monkeypatch.setattr(adapter_data, "UtteranceResolver", lambda _: rows)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1100))
    teacher: Any = SimpleNamespace(encoder_layer=SimpleNamespace(frame_ms=100.0, width=2))
    student: Any = SimpleNamespace(_train_dl=None)
    assert not fits_on_disk(student, teacher, tmp_path)
    assert "the encoder runs in every epoch" in capsys.readouterr().err
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard-00000-00000.safetensors").write_bytes(bytes(1500))
    assert fits_on_disk(student, teacher, tmp_path)
