# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training from a cache of the teacher's targets: the same lesson without a teacher, whatever reads the
audio.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import TutorCTCModelBPE, TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import student_config, teacher_config
from tests.integration import teacher_models
from tests.integration.recorder import Recorder
from tests.integration.students import of_kind, subword, write_tokenizer
from tests.integration.target_cache.caching import (
    STAGES,
    cached,
    check_against,
    tar,
    targets_of_batches,
    whole,
)


def test_a_log_file_shows_how_far_it_is(corpus, teacher_file, tmp_path, capsys):
    build_cache(whole(student_config(corpus, teacher_file, STAGES)), tmp_path / "cache")
    assert capsys.readouterr().err.splitlines() == ["teacher: 0.00 of 0.00 hours of audio"]


def test_the_lesson_is_the_same(corpus, teacher_file, cache, make_student, monkeypatch):
    runs = []
    for config in (student_config(corpus, teacher_file, STAGES), cached(corpus, cache)):
        config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
        recorder = Recorder()
        model = make_student(config, max_epochs=3, callbacks=[recorder])
        torch.manual_seed(4)
        model.trainer.fit(model)
        runs.append(recorder.steps)
        monkeypatch.setattr(LiveTeacher, "from_config", lambda *_: pytest.fail("a teacher was loaded"))
    live, read = runs
    assert len(live) == len(read) == 12
    for one, other in zip(live, read, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=0.01), name


def test_a_student_of_another_front_end_takes_the_same_cache(corpus, teacher_file, cache, make_student):
    """The targets are the teacher's, which has a front end of its own."""
    config = cached(corpus, cache)
    config["preprocessor"].update(features=80, window_size=0.025)
    config["encoder"]["feat_in"] = 80
    model = make_student(config)
    assert model.preprocessor.featurizer.nfilt == 80
    check_against(LiveTeacher.from_config(TeacherConfig(str(teacher_file))), targets_of_batches(model), 8)
    stocks, deployable = (
        build_cache(whole({**student_config(corpus, teacher_file, STAGES), **changes}), cache, progress=False)
        for changes in ({}, {"preprocessor": config["preprocessor"], "encoder": config["encoder"]})
    )
    assert stocks.added == deployable.added == 0


def test_it_resumes_from_a_cache(corpus, cache, make_student, tmp_path):
    model = make_student(cached(corpus, cache), max_epochs=1, folder=tmp_path)
    model.trainer.fit(model)
    resumed = make_student(cached(corpus, cache), max_epochs=3, folder=tmp_path)
    resumed.trainer.fit(resumed)
    assert resumed.distiller.stage == 1 and resumed.trainer.global_step == 12


@pytest.mark.parametrize(
    "settings",
    [{"num_workers": 2}, {"use_semi_sorted_batching": True, "randomization_factor": 0.1, "drop_last": False}],
)
def test_shuffled_files(corpus, teacher_file, cache, make_student, settings):
    config = cached(corpus, cache)
    config["train_ds"].update(settings)
    found = targets_of_batches(make_student(config))
    check_against(LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))), found, 8)


def test_noise_and_masks_do_not_disturb(corpus, cache, make_student):
    config = cached(corpus, cache)
    config["train_ds"]["augmentor"] = {"white_noise": {"prob": 1.0, "min_level": -40, "max_level": -20}}
    clean, noisy = (
        targets_of_batches(make_student(cached(corpus, cache))),
        targets_of_batches(make_student(config)),
    )
    lengths = [
        sorted(samples for _, batch in found for samples in batch[1].tolist()) for found in (clean, noisy)
    ]
    assert lengths[0] == lengths[1]
    assert not any(torch.equal(a[1][0], b[1][0]) for a in clean for b in noisy)


@pytest.mark.parametrize("buckets", [1, 2])
def test_tarred_sets(corpus, teacher_file, make_student, tmp_path, buckets):
    names = [f"train{i}.wav" for i in range(8)]
    parts = [tar(corpus, tmp_path, names[i::buckets], i) for i in range(buckets)]
    source = parts[0]
    if buckets > 1:
        source = {key: [[part[key]] for part in parts] for key in parts[0]}

    def tarred(config: dict[str, Any]) -> dict[str, Any]:
        config["train_ds"].update(
            source, is_tarred=True, shuffle_n=4, bucketing_batch_size=[3, 2] if buckets > 1 else None
        )
        config["train_ds"]["batch_size"] = 1 if buckets > 1 else 2
        return config

    folder = tmp_path / "cache"
    built = build_cache(whole(tarred(student_config(corpus, teacher_file, STAGES))), folder, progress=False)
    assert built.utterances == 8
    found = targets_of_batches(make_student(tarred(cached(corpus, folder))))
    check_against(LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))), found, 8)


@pytest.mark.parametrize("tarred", [False, True], ids=["files", "tarred"])
def test_lhotse(corpus, teacher_file, make_student, tmp_path, tarred):
    source = tar(corpus, tmp_path, [f"train{i}.wav" for i in range(8)], 0) if tarred else {}

    def lhotse(config: dict[str, Any]) -> dict[str, Any]:
        config["train_ds"].update(source, use_lhotse=True, batch_size=3, force_finite=True, num_workers=0)
        return config

    folder = tmp_path / "cache"
    assert (
        build_cache(
            whole(lhotse(student_config(corpus, teacher_file, STAGES))), folder, progress=False
        ).utterances
        == 8
    )
    # NeMo wants a number of batches for a tarred Lhotse set.
    found = targets_of_batches(
        make_student(lhotse(cached(corpus, folder)), **({"limit_train_batches": 9} if tarred else {}))
    )
    check_against(LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))), found, 8)
    config = lhotse(cached(corpus, folder))
    config["train_ds"]["perturb_speed"] = True
    with pytest.raises(TutorError, match=r"holds 1 of the 3 speeds .*missing: perturb_speed 0\.9, perturb"):
        make_student(config, limit_train_batches=9).setup("fit")


def test_a_subword_student_finds_its_tokenizer_in_the_cache(corpus, make_student, tmp_path, monkeypatch):
    from nemo.collections.asr.models import EncDecCTCModelBPE

    torch.manual_seed(0)
    config = subword(teacher_config(corpus), write_tokenizer(tmp_path / "tokenizer"))
    EncDecCTCModelBPE(OmegaConf.create(config)).save_to(str(tmp_path / "teacher.nemo"))
    student = subword(student_config(corpus, tmp_path / "teacher.nemo", STAGES), tmp_path)
    student["tokenizer"] = "teacher"
    build_cache(whole(student), tmp_path / "cache", progress=False)
    (tmp_path / "teacher.nemo").unlink()
    shutil.rmtree(tmp_path / "tokenizer")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    student["tutor"]["teacher"] = {"cache": str(tmp_path / "cache")}
    trainer = make_student(student_config(corpus, None)).trainer
    model = TutorCTCModelBPE(OmegaConf.create({"model": student}).model, trainer=trainer)
    trainer.fit(model)
    assert model.distiller.match.label_order is None and len(model.decoder.vocabulary) == 11


def test_a_finished_cache_takes_what_is_new(corpus, teacher_file, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    manifest = tmp_path / "corpus" / "train.jsonl"
    rows = manifest.read_text()
    manifest.write_text("".join(line + "\n" for line in rows.splitlines()[:5]), encoding="utf-8")
    config = student_config(tmp_path / "corpus", teacher_file, STAGES)
    assert build_cache(whole(config), tmp_path / "cache", progress=False).added == 5
    manifest.write_text(rows, encoding="utf-8")
    built = build_cache(whole(config), tmp_path / "cache", progress=False)
    assert (built.utterances, built.added) == (8, 3) and len(CacheReader(tmp_path / "cache")) == 8


def test_several_cached_teachers(corpus, teacher_file, cache, make_student):
    config = cached(corpus, cache, other_teachers=[{"cache": str(cache), "weight": 2.0}])
    model = make_student(config, max_epochs=3)
    model.trainer.fit(model)
    assert len(model.distiller.others) == 1 and model.distiller.stage == 1


def test_a_transducers_hypotheses(corpus, make_student, tmp_path):
    path = teacher_models.save("transducer", corpus, tmp_path / "transducer.nemo")
    stages = [
        {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
        {"name": "b", "weights": {"ctc": 1.0, "pseudo": 1.0}},
    ]
    build_cache(whole(student_config(corpus, path, stages)), tmp_path / "cache", progress=False)
    model = make_student(cached(corpus, tmp_path / "cache", stages))
    model.trainer.fit(model)
    assert not model.distiller.teacher.has_posteriors and model.distiller.match.frame_weighting == "uniform"


def test_slower_students_and_inner_layers(corpus, teacher_file, make_student, tmp_path):
    layers = {"hint_layer": "encoder.layers.0", "guided_layer": "encoder.encoder.2"}
    config = of_kind("citrinet", student_config(corpus, teacher_file, STAGES, rkd=layers, pool_frames=True))
    build_cache(whole(config), tmp_path / "cache", progress=False)
    config["tutor"]["teacher"] = {"cache": str(tmp_path / "cache")}
    recorder = Recorder()
    model = make_student(config, max_epochs=3, callbacks=[recorder])
    model.trainer.fit(model)
    assert model.distiller.match.hint.path == "encoder.layers.0" and all(
        step["train_loss"] < 1e4 for step in recorder.steps
    )


@pytest.fixture
def run(tmp_path):
    """The command on a config of the tests."""

    def call(config: dict[str, Any], *arguments: str) -> Any:
        (tmp_path / "student.yaml").write_text(
            yaml.safe_dump(OmegaConf.to_container(whole(config))), encoding="utf-8"
        )
        result = CliRunner().invoke(
            app, ["cache", "--config-path", str(tmp_path), "--config-name", "student", *arguments]
        )
        assert "Traceback" not in result.output
        return result

    return call


def test_the_command(run, corpus, teacher_file, tmp_path):
    config, output = student_config(corpus, teacher_file, STAGES), ["--output", str(tmp_path / "cache")]
    result = run(config, *output, "--batch-size", "3")
    assert result.exit_code == 0, result.output
    assert (
        "8 utterances" in result.stdout and f"model.tutor.teacher.cache={tmp_path / 'cache'}" in result.stdout
    )
    assert json.loads(run(config, *output, "--json").stdout)["added"] == 0
    short = run({**config, "train_ds": {**config["train_ds"], "max_duration": 1.0}}, *output)
    assert "model.train_ds leaves out 5 of 8 rows" in short.stderr
    for change, words in (
        ({"tutor": None}, "model.tutor is not there"),
        ({"tutor": {"teacher": {"cache": "c"}}}, "model.tutor.teacher.cache is set"),
        (
            {"train_ds": {**config["train_ds"], "manifest_filepath": None}},
            "model.train_ds.manifest_filepath is not set",
        ),
        (
            {"tutor": {**config["tutor"], "stages": [{"name": "ctc", "weights": {"ctc": 1.0}}]}},
            "reads anything of the teacher",
        ),
    ):
        result = run({**config, **change}, *output)
        assert result.exit_code == 2 and words in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    result = run(config, "--output", str(tmp_path / "mine"))
    assert result.exit_code == 2 and "holds 'notes.txt' and no cache" in result.output.replace("\n", " ")
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name[0] != "."] == ["notes.txt"]


def test_another_training_begins_with_the_first_stage_and_its_own_data(corpus, cache, make_student):
    config = cached(corpus, cache)
    model = make_student(config, max_epochs=3)
    model.trainer.fit(model)
    assert model.distiller.stage == 1
    first = model.distiller
    model.setup_training_data(OmegaConf.create({**config["train_ds"], "batch_size": 3}))
    model.trainer.fit_loop.max_epochs = 4  # the same training goes on
    model.trainer.fit(model)
    assert model.distiller is first and first.stage == 1 and model.trainer.current_epoch == 4
    model.setup_training_data(OmegaConf.create({**config["train_ds"], "batch_size": 4}))
    another = make_student(config, max_epochs=1).trainer
    model.set_trainer(another)
    another.fit(model)
    assert model.distiller.stage == 0 and another.num_training_batches == 2
