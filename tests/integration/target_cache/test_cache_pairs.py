# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""RKD with several pairs of layers from a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.commands.check import check_training
from tests.conftest import refusal, student_config
from tests.integration.recorder import RKD, Recorder

INNER = "encoder.layers.0"
PAIRS = [
    {"hint_layer": INNER, "guided_layer": "encoder.encoder.0"},
    {"hint_layer": "encoder.pre_encode.out", "guided_layer": "encoder.encoder.1"},
]


def whole(config: dict[str, Any]) -> Any:
    trainer = {"max_epochs": 1, "accelerator": "cpu", "devices": 1}
    return OmegaConf.create({"model": copy.deepcopy(config), "trainer": trainer})


def test_the_losses_are_those_of_a_live_teacher(corpus, teacher_file, make_student, tmp_path):
    config = student_config(corpus, teacher_file, [RKD], rkd={"pairs": PAIRS})
    config["train_ds"]["shuffle"] = False
    cfg = whole(config)
    (size,) = check_training(cfg, batches=1).cache
    built = build_cache(cfg, tmp_path / "cache", progress=False)
    assert size.megabytes == pytest.approx(built.megabytes, rel=0.3)
    steps = {}
    for pairs in (PAIRS, PAIRS[::-1], PAIRS[1:], []):
        for source in ({"model_path": str(teacher_file)}, {"cache": str(tmp_path / "cache")}):
            config["tutor"].update(teacher=source, rkd={"pairs": pairs})
            recorder = Recorder()
            model = make_student(config, max_epochs=1, callbacks=[recorder])
            model.trainer.fit(model)
            assert len(model.distiller.projections) == 1 + len(pairs)
            steps[next(iter(source))] = [log["train_rkd"] for log in recorder.steps]
        assert steps["cache"] == pytest.approx(steps["model_path"], rel=0.02)


def test_a_layer_that_is_not_in_the_cache_is_named(corpus, teacher_file, make_student, tmp_path):
    config = student_config(corpus, teacher_file, [RKD], rkd={"pairs": PAIRS[:1]})
    build_cache(whole(config), tmp_path / "one", progress=False)
    config["tutor"]["rkd"] = {}
    build_cache(whole(config), tmp_path / "none", progress=False)
    config["tutor"]["rkd"] = {"pairs": PAIRS}
    for folder, there in (("one", f"only {INNER!r}"), ("none", "no further layers")):
        config["tutor"]["teacher"] = {"cache": str(tmp_path / folder)}
        model = make_student(config, max_epochs=1)
        message = refusal(model.trainer.fit, model)
        assert "model.tutor.rkd.pairs[" in message and there in message
    config["tutor"]["teacher"] = {"model_path": str(teacher_file)}
    assert "further_hints" in refusal(build_cache, whole(config), tmp_path / "one")
