# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A cache and NeMo's Lhotse dataloader: what it does to cuts and to ranks must not lose an utterance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording

from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.target_cache.layout import read_header
from tests.conftest import SAMPLE_RATE, student_config
from tests.integration.target_cache.caching import STAGES, cached, tar, whole
from tests.integration.target_cache.test_cache_killed import call, write


def lhotse(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    config["train_ds"].update(use_lhotse=True, batch_size=3, force_finite=True, num_workers=0, **settings)
    return config


def musan(folder: Path) -> Path:
    """A Lhotse manifest of noise: one longer than any utterance, one shorter."""
    random = np.random.default_rng(0)
    cuts = []
    for seconds in (3.0, 0.4):
        soundfile.write(
            folder / f"noise{seconds}.wav",
            0.2 * random.standard_normal(int(seconds * SAMPLE_RATE)),
            SAMPLE_RATE,
        )
        cuts.append(Recording.from_file(folder / f"noise{seconds}.wav").to_cut())
    CutSet.from_cuts(cuts).to_file(folder / "musan.jsonl")
    return folder / "musan.jsonl"


def parts(corpus: Path, folder: Path) -> Path:
    """A manifest in which each file is two utterances, one as long as the other."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    halves = [
        {**row, "audio_filepath": str(corpus / row["audio_filepath"]), "offset": offset, "duration": 0.34}
        for row in rows
        for offset in (0.0, 0.34)
    ]
    (folder / "parts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in halves), encoding="utf-8")
    return folder / "parts.jsonl"


def by_key(model: Any) -> dict[str, tuple[Any, Any]]:
    """Each utterance's waveform and cached posteriors."""
    model.setup("fit")
    distiller, rows = model.distiller, {}
    for batch in model._train_dl:
        named = TrainingBatch.from_nemo(batch)
        targets = distiller.teacher_targets(distiller.schedule.stages[-1], named)
        for row, utterance in enumerate(distiller._resolver(named)):
            samples, frames = int(batch[1][row]), int(targets.lengths[row])
            rows[utterance.key] = (batch[0][row, :samples], targets.log_probs[row, :frames])
    return rows


NOISE = {"noise_path": "musan.jsonl", "noise_mix_prob": 1.0, "noise_snr": [5.0, 10.0]}


@pytest.mark.parametrize(
    ("augmentation", "whole_files"),
    [
        (NOISE, True),
        (NOISE, False),
        ({"clipping_enabled": True, "clipping_prob": 1.0, "clipping_gain_db": [6.0, 12.0]}, True),
        ({"lowpass_enabled": True, "lowpass_prob": 1.0}, True),
        ({"compression_enabled": True, "compression_prob": 1.0}, True),
    ],
    ids=["noise", "noise in parts of files", "clipping", "lowpass", "compression"],
)
def test_a_changed_sound_keeps_the_targets_of_the_clean_one(
    corpus, teacher_file, make_student, tmp_path, augmentation, whole_files
):
    if "noise_path" in augmentation:
        augmentation = {**augmentation, "noise_path": str(musan(tmp_path))}
    if not whole_files:
        augmentation = {**augmentation, "manifest_filepath": str(parts(corpus, tmp_path))}
    config = lhotse(student_config(corpus, teacher_file, STAGES), **augmentation)
    count = 8 if whole_files else 16
    assert build_cache(whole(config), tmp_path / "cache", progress=False).utterances == count
    manifest = {name: value for name, value in augmentation.items() if name == "manifest_filepath"}
    clean = by_key(make_student(lhotse(cached(corpus, tmp_path / "cache"), **manifest)))
    loud = by_key(make_student(lhotse(cached(corpus, tmp_path / "cache"), **augmentation)))
    assert clean.keys() == loud.keys() and len(clean) == count
    for key, (waveform, targets) in clean.items():
        assert not waveform.allclose(loud[key][0], atol=1e-3), "the student hears what was done to it"
        assert targets.equal(loud[key][1])


@pytest.mark.parametrize("tarred", [False, True], ids=["files", "tarred"])
def test_two_ranks_share_the_cuts(corpus, teacher_file, tmp_path, tarred):
    source = tar(corpus, tmp_path, [f"train{i}.wav" for i in range(7)], 0) if tarred else {}
    config = lhotse(student_config(corpus, teacher_file, STAGES), **source)
    write(
        config,
        tmp_path,
        trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp", "use_distributed_sampler": False},
    )
    arguments = [
        "-m",
        "nemo_tutornet",
        "cache",
        "--config-path",
        str(tmp_path),
        "--config-name",
        "student",
        "--output",
        "cache",
    ]
    done = call(*arguments, folder=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, (done.stdout + done.stderr)[
        -3000:
    ]
    header = read_header(tmp_path / "cache")
    counts = [shard["utterances"] for shard in header["shards"]]
    assert len(counts) == 2 and sum(counts) == header["totals"]["utterances"] == (7 if tarred else 8)


@pytest.mark.parametrize("tarred", [False, True], ids=["files", "tarred"])
def test_what_the_floor_is_chosen_by_is_kept_too(corpus, teacher_file, tmp_path, monkeypatch, tarred):
    # As if the teacher had more labels than are kept whole.
    monkeypatch.setattr("nemo_tutornet.commands.cache_schema.WHOLE_LABELS", 0)
    source = tar(corpus, tmp_path, [f"train{i}.wav" for i in range(8)], 0) if tarred else {}
    config = lhotse(student_config(corpus, teacher_file, STAGES), **source)
    config["train_ds"]["batch_size"] = 1
    assert build_cache(whole(config), tmp_path / "cache", progress=False).utterances == 8


# Each rank would choose another smallest posterior.
OWN_MIN_POSTERIORS = """
import os, sys
from omegaconf import OmegaConf
from nemo_tutornet.commands import cache_schema, cache_targets as build
cache_schema.WHOLE_LABELS = 0
cache_schema.choose_min_posterior = lambda *_: (1e-4, 1e-3)[int(os.environ.get("LOCAL_RANK", 0))]
build.build_cache(OmegaConf.load(sys.argv[1]), build.Path(sys.argv[2]), progress=False)
"""


def test_two_ranks_keep_to_one_floor(corpus, teacher_file, tmp_path):
    path = write(
        student_config(corpus, teacher_file, STAGES),
        tmp_path,
        trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    )
    (tmp_path / "build.py").write_text(OWN_MIN_POSTERIORS, encoding="utf-8")
    done = call(str(tmp_path / "build.py"), str(path), str(tmp_path / "cache"), folder=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    header = read_header(tmp_path / "cache")
    assert header["coding"]["floor"] == 1e-4
    assert [shard["utterances"] for shard in header["shards"]] == [4, 4]
