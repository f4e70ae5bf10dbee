# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section of the students' configs: one for all, and every key of it can be overridden."""

import math
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import (
    ConsistencyConfig,
    InitConfig,
    LogConfig,
    MixupConfig,
    PseudoLabelsConfig,
    RKDConfig,
    SKDConfig,
    StageConfig,
    TeacherConfig,
    TutorConfig,
    parse_tutor,
)
from tests.integration.conf.confs import CONF, CONFIGS, STUDENTS, SUBWORD_ONLY, composed, flat, overrides_of

pytestmark = pytest.mark.integration

# Values that go together; a field that is not named has its default, and is overridden all the same.
OVERRIDDEN = TutorConfig(
    teacher=TeacherConfig(
        "teacher.nemo",
        sha256="ab" * 32,
        precision="fp32",
        cache="targets",
        adapter="a",
        weight=2.0,
        prompt={"source_lang": "de"},
    ),
    other_teachers=[TeacherConfig("other.nemo")],
    rkd=RKDConfig(
        "encoder.layers.8",
        "encoder.encoder.2",
        frame_weighting="energy",
        warm_start_decoder=False,
        reduction="frame_mean",
    ),
    skd=SKDConfig(
        "kl",
        2.0,
        frames="symmetric",
        frames_around=2,
        match_window=1,
        intermediate_layers=["encoder.encoder.1"],
        intermediate_weight=0.5,
    ),
    pseudo_labels=PseudoLabelsConfig(min_confidence=0.5, max_wer=0.2),
    consistency=ConsistencyConfig(weight=0.2, time_masks=2.0, warmup=100),
    mixup=MixupConfig(share=0.0, alpha=0.4),
    pool_frames=True,
    init=InitConfig("teacher", [0, 2], fit=False),
    max_nonfinite_share=0.1,
    max_damaged_share=0.2,
    manifest_weights=[1.0, 3.0],
    log=LogConfig(agreement=4, posteriors=False),
    stages=[
        StageConfig("rkd", {"rkd": 1.0}, steps=100),
        StageConfig("all", {"ctc": 1.0, "skd": 0.5, "pseudo": 0.5}),
    ],
)


def test_students_share_one_tutor_section():
    sections = {
        name: OmegaConf.to_container(composed(name).model.tutor, throw_on_missing=False) for name in STUDENTS
    }
    for name, section in sections.items():
        rkd, second = section.pop("stages")
        assert rkd == {"name": "rkd", "share": 0.25, "weights": {"rkd": 0.37}}
        assert second == {"name": "ctc", "weights": {"ctc": 1.0, "rkd": 1.85}}, name
    pooled = {name for name, section in sections.items() if section.pop("pool_frames", False)}
    encoders = {name: composed(name).model.encoder for name in STUDENTS}
    strides = {
        name: math.prod(block.stride[0] for block in encoder.get("jasper", []))
        * encoder.get("subsampling_factor", 1)
        for name, encoder in encoders.items()
    }
    # A Conformer's frames last 40 ms.
    assert pooled == {name for name, stride in strides.items() if stride > 4}
    first, *others = sections.values()
    first["teacher"]["model_path"] = "teacher.nemo"
    assert parse_tutor({"tutor": first}) == TutorConfig(teacher=TeacherConfig("teacher.nemo"))
    first["teacher"]["model_path"] = None
    assert others and all(section == first for section in others)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_key_of_the_tutor_section_can_be_overridden(name):
    # Without a plus, which is for keys that a config does not have: the YAMLs get them from `tutor_defaults`.
    section = asdict(OVERRIDDEN)
    defaults = flat(asdict(TutorConfig()))
    # A cache, which is overridden here, has no mixtures, and several teachers have one alignment.
    lists = ("other_teachers", "stages", "rkd.pairs", "skd.alignment", "mixup.share")
    same = [key for key, value in flat(section).items() if defaults.get(key, "") == value]
    assert not [key for key in same if not key.startswith(lists)]
    assert parse_tutor(composed(name, *overrides_of(section, "model.tutor")).model) == OVERRIDDEN


@pytest.mark.parametrize("name", STUDENTS)
def test_the_section_can_be_overridden_whole_and_in_part(name):
    assert parse_tutor(composed(name, "model.tutor=null").model) is None
    stages = "model.tutor.stages=[{name:a,weights:{ctc:1.0,skd:0.5}}]"
    cached = ("model.tutor.teacher.cache=one", "model.tutor.other_teachers=[{cache:two}]", stages)
    found = parse_tutor(composed(name, *cached).model)
    assert (found.teacher, found.other_teachers) == (TeacherConfig(cache="one"), [TeacherConfig(cache="two")])
    assert found.stages == [StageConfig("a", {"ctc": 1.0, "skd": 0.5})]
    aligned = ("model.tutor.skd.alignment=occurrences", "model.tutor.skd.divergence=kl", *cached[::2])
    assert parse_tutor(composed(name, *aligned).model).skd == SKDConfig("kl", alignment="occurrences")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_yaml_says_only_what_it_changes(name):
    """A default is defined in `nemo_tutornet.config` alone; the teacher and the stages are shown in every
    YAML.
    """
    written = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), throw_on_missing=False)
    assert ("defaults" in written) == ("tutor" in written["model"]) == (name in STUDENTS)
    if name in STUDENTS:
        pooled = {"pool_frames"} if name == "citrinet_256_bpe" or name in SUBWORD_ONLY else set()
        assert set(written["model"]["tutor"]) == {"teacher", "stages"} | pooled
        assert written["model"]["tutor"]["teacher"] == {"model_path": None}
