# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tars that do not hold, or do not give to every rank, what their manifest names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from nemo_tutornet import LiveTeacher
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.layout import read_header
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import student_config
from tests.integration.students import of_kind
from tests.integration.target_cache.caching import (
    STAGES,
    cached,
    check_against,
    tar,
    targets_of_batches,
    whole,
)
from tests.integration.target_cache.test_cache_killed import call, write

NAMES = [f"train{i}.wav" for i in range(8)]


def tarred(config: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    config["train_ds"].update(source, is_tarred=True, shuffle_n=0)
    return config


def test_a_manifest_of_more_than_its_tars(corpus, teacher_file, make_student, tmp_path, capsys):
    source = tar(corpus, tmp_path, NAMES, 0)
    source["tarred_audio_filepaths"] = tar(corpus, tmp_path, NAMES[:5], 1)["tarred_audio_filepaths"]
    built = build_cache(
        whole(tarred(student_config(corpus, teacher_file, STAGES), source)),
        tmp_path / "cache",
        progress=False,
    )
    assert (built.utterances, built.missing_from_tars) == (5, 3)
    shown = capsys.readouterr().err
    assert "The manifest has train5.wav from 0 s for 0.68 s and 2 more of 8, but no tar has" in shown, shown
    found = targets_of_batches(make_student(tarred(cached(corpus, tmp_path / "cache"), source)))
    assert sum(len(batch[1]) for _, batch in found) == 5


def test_an_utterance_that_a_tar_has_and_the_cache_has_not(corpus, teacher_file, make_student, tmp_path):
    less, all_of_it = tar(corpus, tmp_path, NAMES[:7], 0), tar(corpus, tmp_path, NAMES, 1)
    build_cache(
        whole(tarred(student_config(corpus, teacher_file, STAGES), less)), tmp_path / "cache", progress=False
    )
    with pytest.raises(TutorError, match=r"has no targets for train7\.wav .*; run `nemo-tutornet cache`"):
        targets_of_batches(make_student(tarred(cached(corpus, tmp_path / "cache"), all_of_it)))


@pytest.mark.parametrize("buckets", [False, True])
def test_tars_that_the_ranks_cannot_share(corpus, teacher_file, tmp_path, buckets):
    tars = f"{tmp_path}/audio__OP_0..9_CL_.tar"
    source: dict[str, Any] = {"manifest_filepath": "m.jsonl", "tarred_audio_filepaths": tars}
    if buckets:
        even = [f"{tmp_path}/audio__OP_0..7_CL_.tar"]
        source = {"manifest_filepath": [["m.jsonl"], ["m.jsonl"]], "tarred_audio_filepaths": [even, [tars]]}
    config = whole(tarred(student_config(corpus, teacher_file, STAGES), source))
    config.trainer = OmegaConf.create({"accelerator": "cpu", "devices": 4, "strategy": "ddp"})
    with pytest.raises(TutorError, match=r"has 10 tars, of which 4 ranks would skip 2 .*trainer\.devices"):
        build_cache(config, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_workers_whose_last_batches_are_not_full(corpus, teacher_file, tmp_path):
    rows = (corpus / "train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "tarred.jsonl").write_text(rows, encoding="utf-8")
    # Three batches of one worker, two of the other; not 8 / 2.
    for number, names in enumerate((NAMES[:5], NAMES[5:])):
        tar(corpus, tmp_path, names, number)
    source = {
        "manifest_filepath": f"{tmp_path}/tarred.jsonl",
        "tarred_audio_filepaths": f"{tmp_path}/audio__OP_0..1_CL_.tar",
    }
    config = tarred(student_config(corpus, teacher_file, STAGES), {**source, "num_workers": 2})
    built = build_cache(whole(config), tmp_path / "cache", progress=False)
    assert (built.utterances, built.missing_from_tars) == (8, 0)


def test_two_ranks_that_read_the_same_tars(corpus, teacher_file, tmp_path):
    config = tarred(student_config(corpus, teacher_file, STAGES), tar(corpus, tmp_path, NAMES, 0))
    config["train_ds"]["tarred_shard_strategy"] = "replicate"
    write(config, tmp_path, trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
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
    assert len(counts) == 2 and sum(counts) == header["totals"]["utterances"] == 8


def test_the_same_buckets_are_read_twice(corpus, teacher_file, make_student, tmp_path):
    names = [f"train{i}.wav" for i in range(8)]
    parts = [tar(corpus, tmp_path, names[i::2], i) for i in range(2)]
    source = {key: [[part[key]] for part in parts] for key in parts[0]}

    def tarred(config):
        config["train_ds"].update(
            source, is_tarred=True, shuffle_n=4, bucketing_batch_size=[3, 2], batch_size=1
        )
        return config

    build_cache(
        whole(tarred(student_config(corpus, teacher_file, STAGES))), tmp_path / "cache", progress=False
    )
    model = make_student(tarred(cached(corpus, tmp_path / "cache")))
    targets_of_batches(model)
    check_against(
        LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))), targets_of_batches(model), 8
    )


def test_the_teacher_of_a_cache_gets_no_augmentation(corpus, teacher_file, make_student, tmp_path):
    config = student_config(corpus, teacher_file, STAGES)
    config["train_ds"]["augmentor"] = {"white_noise": {"prob": 1.0, "min_level": -20, "max_level": -10}}
    build_cache(whole(config), tmp_path / "cache", progress=False)
    found = targets_of_batches(make_student(cached(corpus, tmp_path / "cache")))
    check_against(LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))), found, 8)


def test_a_hint_layer_of_more_frames_than_the_output(corpus, make_student, tmp_path):
    torch.manual_seed(0)
    config = of_kind("citrinet", student_config(corpus, None))
    for name in ("train_ds", "validation_ds"):
        config.pop(name)
    EncDecCTCModel(OmegaConf.create(config)).eval().save_to(str(tmp_path / "teacher.nemo"))
    rkd = [{"name": "rkd", "weights": {"rkd": 1.0}}]
    layer = {"hint_layer": "encoder.encoder.1", "frame_weighting": "energy"}
    live = student_config(corpus, tmp_path / "teacher.nemo", rkd, rkd=layer)
    build_cache(whole(live), tmp_path / "cache", progress=False)
    model, beside = make_student(cached(corpus, tmp_path / "cache", rkd, rkd=layer)), make_student(live)
    found = targets_of_batches(model)
    beside.setup("fit")
    teacher = beside.distiller.teacher
    assert teacher.hint_layer.frame_ms == 20.0 and teacher.encoder_layer.frame_ms == 80.0
    for targets, batch in found:
        one = teacher.targets(TrainingBatch(batch[0], batch[1]), TargetRequest(hidden=True))
        frames = 4 * int(one.lengths.max()) - 3
        came = model.distiller.match.align_hidden(targets.hidden, targets.lengths, frames)
        expected = model.distiller.match.align_hidden(one.hidden, one.lengths, frames)
        torch.testing.assert_close(came, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_a_loss_that_a_cache_does_not_hold_is_refused(corpus, teacher_file, make_student, tmp_path):
    rkd = [{"name": "rkd", "weights": {"rkd": 1.0}}]
    uniform = student_config(corpus, teacher_file, rkd, rkd={"frame_weighting": "uniform"})
    build_cache(whole(uniform), tmp_path / "cache", progress=False)
    for loss, words in (
        ("skd", "does not hold posteriors, which skd"),
        ("pseudo", "does not hold hypotheses, which pseudo"),
    ):
        with pytest.raises(TutorError, match=words):
            make_student(cached(corpus, tmp_path / "cache", [{"name": "a", "weights": {loss: 1.0}}])).setup(
                "fit"
            )
