# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tars that do not hold, or do not give to every rank, what their manifest names."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.cache.build import build_cache
from nemo_tutornet.cache.layout import read_header
from nemo_tutornet.errors import TutorError
from tests.conftest import student_config
from tests.integration.test_cache import STAGES, cached, heard, tar, whole
from tests.integration.test_cache_killed import call, write

NAMES = [f"train{i}.wav" for i in range(8)]


def tarred(config: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    config["train_ds"].update(source, is_tarred=True, shuffle_n=0)
    return config


def test_a_manifest_of_more_than_its_tars(corpus, teacher_file, make_student, tmp_path, capsys):
    source = tar(corpus, tmp_path, NAMES, 0)
    source["tarred_audio_filepaths"] = tar(corpus, tmp_path, NAMES[:5], 1)["tarred_audio_filepaths"]
    built = build_cache(whole(tarred(student_config(corpus, teacher_file, STAGES), source)), tmp_path / "cache", progress=False)
    assert (built.utterances, built.unheard) == (5, 3)
    told = capsys.readouterr().err
    assert "The manifest has train5.wav from 0 s for 0.68 s and 2 more of 8, but no tar has" in told, told
    found = heard(make_student(tarred(cached(corpus, tmp_path / "cache"), source)))
    assert sum(len(batch[1]) for _, batch in found) == 5


def test_an_utterance_that_a_tar_has_and_the_cache_has_not(corpus, teacher_file, make_student, tmp_path):
    less, all_of_it = tar(corpus, tmp_path, NAMES[:7], 0), tar(corpus, tmp_path, NAMES, 1)
    build_cache(whole(tarred(student_config(corpus, teacher_file, STAGES), less)), tmp_path / "cache", progress=False)
    with pytest.raises(TutorError, match=r"has no targets for train7\.wav .*; run `nemo-tutornet cache`"):
        heard(make_student(tarred(cached(corpus, tmp_path / "cache"), all_of_it)))


@pytest.mark.parametrize("buckets", [False, True])
def test_tars_that_the_ranks_cannot_share(corpus, teacher_file, tmp_path, buckets):
    tars = f"{tmp_path}/audio__OP_0..9_CL_.tar"
    source: dict[str, Any] = {"manifest_filepath": "m.jsonl", "tarred_audio_filepaths": tars}
    if buckets:
        even = [f"{tmp_path}/audio__OP_0..7_CL_.tar"]
        source = {"manifest_filepath": [["m.jsonl"], ["m.jsonl"]], "tarred_audio_filepaths": [even, [tars]]}
    config = whole(tarred(student_config(corpus, teacher_file, STAGES), source))
    config.trainer = OmegaConf.create({"accelerator": "cpu", "devices": 4, "strategy": "ddp"})
    with pytest.raises(TutorError, match=r"has 10 tars, of which 4 ranks would leave 2 out .*trainer\.devices"):
        build_cache(config, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_workers_whose_last_batches_are_not_full(corpus, teacher_file, tmp_path):
    rows = (corpus / "train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "tarred.jsonl").write_text(rows, encoding="utf-8")
    for number, names in enumerate((NAMES[:5], NAMES[5:])):  # three batches of one worker, two of the other; not 8 / 2
        tar(corpus, tmp_path, names, number)
    source = {"manifest_filepath": f"{tmp_path}/tarred.jsonl", "tarred_audio_filepaths": f"{tmp_path}/audio__OP_0..1_CL_.tar"}
    config = tarred(student_config(corpus, teacher_file, STAGES), {**source, "num_workers": 2})
    built = build_cache(whole(config), tmp_path / "cache", progress=False)
    assert (built.utterances, built.unheard) == (8, 0)


def test_two_ranks_that_read_the_same_tars(corpus, teacher_file, tmp_path):
    config = tarred(student_config(corpus, teacher_file, STAGES), tar(corpus, tmp_path, NAMES, 0))
    config["train_ds"]["tarred_shard_strategy"] = "replicate"
    write(config, tmp_path, trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    arguments = ["-m", "nemo_tutornet", "cache", "--config-path", str(tmp_path), "--config-name", "student", "--output", "cache"]
    done = call(*arguments, folder=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
    header = read_header(tmp_path / "cache")
    counts = [shard["utterances"] for shard in header["shards"]]
    assert len(counts) == 2 and sum(counts) == header["totals"]["utterances"] == 8
