# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written on Hydra's command line by a program of this project is what Hydra reads there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_tutornet.check import compose_config
from nemo_tutornet.demo import hydra_value
from tests.conftest import refusal

NAMES = st.text(st.one_of(st.sampled_from("'\\\\\"=,()[]{}#&~!:$ "), st.characters(exclude_categories=("C", "Z"))), min_size=1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=NAMES)
@example(name="it's")
@example(name="repo (1)")
@example(name="end\\")
@example(name="a\\\\'b")
def test_any_path_is_a_value(name: str) -> None:
    for value, text in ((f"k={hydra_value(Path(name))}", "{}"), (f"k=[x,{hydra_value(Path(name))}]", "['x', {}]")):
        found = OverridesParser.create().parse_override(value).value()
        assert (found if text == "{}" else found[1]) == str(Path(name))


def test_a_relative_config_path_is_the_training_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra starts at the script; a `conf` beside the working directory is somebody else's."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "work" / "mine").mkdir(parents=True)
    for folder in ("conf", "work/mine"):
        (tmp_path / folder / "quartznet_5x5.yaml").write_text("name: foreign")
    monkeypatch.chdir(tmp_path / "work")
    assert compose_config("../conf", "quartznet_5x5", []).name == "QuartzNet5x5"
    assert compose_config("mine", "quartznet_5x5", []).name == "foreign"  # where the script has no such folder
    assert compose_config(str(tmp_path / "conf"), "quartznet_5x5", []).name == "foreign"
    assert "neither beside the training script nor here" in refusal(compose_config, "nowhere", "quartznet_5x5", [])
