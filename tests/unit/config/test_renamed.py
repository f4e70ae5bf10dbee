# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys of earlier versions in overrides."""

from __future__ import annotations

import pytest

from nemo_tutornet.config import check_renamed_overrides
from tests.conftest import refusal as refused

OLD = {"shift": "match_window", "at_layers": "intermediate_layers", "at_layers_weight": "intermediate_weight"}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize(
    "override",
    [
        "model.tutor.skd.{}=4",
        "+model.tutor.skd.{}=4",
        "++model.tutor.skd.{}=[a]",
        "~model.tutor.skd.{}",
        "model.tutor.skd.{}=1,2",
        "model.tutor.skd={{divergence:kl,{}:4}}",
        "++model.tutor={{skd:{{{}:4}}}}",
    ],
)
def test_an_override_of_an_old_key_gets_the_name_of_the_new_one(override: str, old: str) -> None:
    message = refused(check_renamed_overrides, ["--config-path=../conf", override.format(old)])
    assert message == f"model.tutor.skd.{old} is now called model.tutor.skd.{OLD[old]}; rename the key."


@pytest.mark.parametrize(
    "argument",
    [
        "model.tutor.skd.match_window=4",
        "model.train_ds.augmentor={shift:{prob:0.5}}",
        "model.tutor.teacher.model_path='model.tutor.skd.shift=4'",
        "--config-name",
        "model.tutor.skd.shifts=4",
        "a=(",
        "",
        "../conf",
    ],
)
def test_other_arguments_are_left_to_hydra(argument: str) -> None:
    check_renamed_overrides([argument])
