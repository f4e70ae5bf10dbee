# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model is said to be: `inspect`'s tests cover the kinds, these cover what differs within a kind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.distill.projections import Projection
from nemo_tutornet.nemo_io.model_info import describe_model, front_end_in_words
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import LABELS, student_config
from tests.integration import teacher_models


def _config(tmp_path: Path) -> dict[str, Any]:
    config = student_config(tmp_path, None)
    del config["train_ds"], config["validation_ds"]
    return config


def test_a_transducer_has_labels_and_no_posteriors(corpus: Path, tmp_path: Path) -> None:
    hybrid, transducer = (
        describe_model(restore_ctc(teacher_models.save(kind, corpus, tmp_path / f"{kind}.nemo")))
        for kind in ("hybrid", "transducer")
    )
    assert hybrid.labels == transducer.labels == tuple(LABELS)
    assert hybrid.has_ctc_head and hybrid.as_facts()["labels"] == f"{len(LABELS)} and the blank"
    assert not transducer.has_ctc_head
    assert transducer.as_facts()["labels"] == "none on frames"


def test_interpolations_of_the_front_end_are_resolved_and_the_config_is_left_alone(tmp_path: Path) -> None:
    config = _config(tmp_path)
    config["sample_rate"] = config["preprocessor"]["sample_rate"]
    config["preprocessor"]["sample_rate"] = "${model.sample_rate}"
    model = TutorCTCModel(OmegaConf.create({"model": config}).model)
    before = copy.deepcopy(OmegaConf.to_container(model.cfg))
    info = describe_model(model)
    assert info.preprocessor["sample_rate"] == info.front_end.sample_rate == 16000
    assert info.preprocessor["_target_"].endswith("AudioToMelSpectrogramPreprocessor")
    assert OmegaConf.to_container(model.cfg) == before
    assert info.class_name == "TutorCTCModel" and info.target.endswith("ctc_models.EncDecCTCModel")
    parameters = sum(p.numel() for p in model.parameters())
    assert info.parameters == parameters
    assert info.as_facts()["parameters"].startswith(f"{parameters / 1e6:.2f} M (")
    model.projection = Projection(3, 4)  # the student that is exported has none
    assert describe_model(model).parameters == parameters


def test_a_character_model_has_no_tokenizer_whatever_its_config_still_says(tmp_path: Path) -> None:
    config = {**_config(tmp_path), "tokenizer": {"dir": "nowhere", "type": "bpe"}}
    info = describe_model(EncDecCTCModel(OmegaConf.create(config)))
    assert (info.label_kind, info.tokenizer, info.labels) == ("characters", None, tuple(LABELS))


@pytest.mark.parametrize(
    ("section", "words", "normalize"),
    [
        ({}, "16000 Hz, 64 mel bins", "per_feature"),
        ({"normalize": None}, "16000 Hz, 64 mel bins", None),
        (
            {"normalize": {"fixed_mean": [0.0] * 64, "fixed_std": [1.0] * 64}},
            "16000 Hz, 64 mel bins",
            "fixed",
        ),
        ({"features": None}, "16000 Hz, 64 mel bins", "per_feature"),  # NeMo's default, not written down
    ],
)
def test_the_front_end_is_the_one_that_runs(
    tmp_path: Path, section: dict[str, Any], words: str, normalize: str | None
) -> None:
    config = _config(tmp_path)
    config["preprocessor"].update(section)
    if config["preprocessor"]["features"] is None:
        del config["preprocessor"]["features"]
    info = describe_model(EncDecCTCModel(OmegaConf.create(config)))
    assert info.as_facts()["front end"] == words and info.front_end.normalize == normalize
    assert (info.front_end.window_ms, info.front_end.stride_ms) == (20.0, 10.0)


def test_a_front_end_without_mel_bins_says_so() -> None:
    assert front_end_in_words(8000, None) == "8000 Hz, no mel spectrogram"
