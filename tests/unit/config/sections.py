# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sections written in YAML, for tests."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from nemo_tutornet.config import TutorConfig, parse_tutor
from nemo_tutornet.errors import TutorError

TEACHER = "teacher: {model_path: t.nemo}"


SECOND = "name: a, epochs: 1, weights: {rkd: 1}"


SKD = "name: b, weights: {skd: 1}"


def parse(section: str) -> TutorConfig:
    """Parses a `tutor:` section written in YAML, as part of a whole config."""
    config = parse_tutor(
        OmegaConf.create(f"name: mine\nmodel: {{path: other.nemo, tutor: {{{section}}}}}").model
    )
    assert config is not None
    return config


def refusal(section: str) -> str:
    with pytest.raises(TutorError) as error:
        parse(section)
    message = str(error.value)
    assert "\n" not in message and message[-1] in ".?"
    return message


def stages(*items: str) -> str:
    return f"{TEACHER}, stages: [{', '.join('{' + item + '}' for item in items)}]"
