# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Random `tutor:` sections and student configs: each is read, or refused with one short sentence."""

from __future__ import annotations

import copy
import unicodedata
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_tutornet.config import TutorConfig, check_student, check_teacher_files, check_trainer, parse_tutor
from nemo_tutornet.errors import LONGEST_INPUT, TutorError

pytestmark = pytest.mark.fuzz
RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))

MARK = "ж"  # is in no message of ours, so that what a message repeats can be counted
LONGEST_MESSAGE = 700


def deep(levels: int, inside: Any) -> Any:
    for _ in range(levels):
        inside = {MARK: inside}
    return inside


NUMBERS = st.one_of(
    st.integers(-5, 30),
    st.integers(),
    st.integers(380, 420).map(lambda digits: 10**digits),
    st.sampled_from([10**5000, -(10**400), 2**63, -1, 0]),
    st.floats(allow_nan=True, allow_infinity=True),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.integers(1, 5000).map(lambda length: MARK * length),
    st.sampled_from(
        [
            *[
                "???",
                "",
                " ",
                "~nobody/t.nemo",
                "~/t.nemo",
                "t.nemo",
                "/dev/null",
                "a\0b",
                "a\nb",
                "\x1b[31m",
            ],
            *[
                "${nowhere}",
                "${tutor}",
                "${oc.env:NEMO_TUTORNET_NOT_SET}",
                "${",
                "l2",
                "kl",
                "auto",
                "teacher",
            ],
            *[
                "true",
                "null",
                "1e400",
                "9" * 400,
                "nan",
                "encoder.encoder.0",
                MARK * 300 + "/t.nemo",
                "\ud800",
            ],
        ]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.binary(max_size=5))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.dictionaries(st.one_of(TEXTS, st.integers(), st.none(), st.booleans()), SCALARS, max_size=3),
    st.sampled_from([deep(400, 1), deep(5, MARK * 999), [deep(50, None)], [[[]]], [{}], {}, []]),
)


def _section_of(annotation: Any) -> type | None:
    found = (a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and is_dataclass(a))
    return next(found, None)


def paths(schema: type) -> list[tuple[Any, ...]]:
    """Every key of a schema, as the keys that lead to it; 0 is the first section of a list."""
    found: list[tuple[Any, ...]] = []
    for field in fields(schema):
        annotation = get_type_hints(schema)[field.name]
        found.append((field.name,))
        below = _section_of(annotation)
        if below is not None:
            step = () if annotation is below else (0,)
            found += [(field.name, *step, *path) for path in paths(below)]
    return found


PATHS = [
    *paths(TutorConfig),
    ("stages", 0, "weights", "ctc"),
    ("teacher", "prompt", "de"),
    ("skd", "intermediate_layers", 0),
]
VALID: dict[str, Any] = {
    "teacher": {"model_path": "t.nemo", "prompt": {"pnc": "yes"}},
    "other_teachers": [{"model_path": "u.nemo", "weight": 2.0}],
    "rkd": {"pairs": [{"hint_layer": "a", "guided_layer": "b"}]},
    "skd": {"intermediate_layers": ["encoder.encoder.0"]},
    "pseudo_labels": {},
    "consistency": {},
    "mixup": {},
    "init": {},
    "log": {},
    "stages": [{"name": "a", "weights": {"ctc": 1.0, "skd": 0.5, "rkd": 1.0}}],
}


def put(section: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a section with another value at a path; the section itself where nothing is there."""
    section = copy.deepcopy(section)
    here = section
    for step in path[:-1]:
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            return section
    if isinstance(here, dict) or (isinstance(here, list) and here and path[-1] == 0):
        here[path[-1]] = value
    return section


def one_sentence(check: Any, config: Any) -> str | None:
    """What a check says of a config; every exception of another kind fails the test."""
    try:
        check(config)
    except TutorError as error:
        message = str(error)
        assert not any(unicodedata.category(c) == "Cc" for c in message), message
        assert len(message) <= LONGEST_MESSAGE, len(message)
        assert message.count(MARK) <= LONGEST_INPUT
        assert message[-1] in ".?" and message.startswith(("model", "trainer", "neither model")), message
        return message
    return None


def kinds_of(config: dict[str, Any]) -> list[Any]:
    """A config as plain values, and as OmegaConf's where that can hold it."""
    try:
        return [copy.deepcopy(config), OmegaConf.create(config)]
    except (Exception, RecursionError):  # OmegaConf refuses it, so no YAML holds it
        return [config]


@RELAXED
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3))
def test_any_value_at_any_key_is_read_or_refused(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    section: Any = VALID
    for path, value in changes:
        section = put(section, path, value)

    def check(config: Any) -> None:
        parsed = parse_tutor(config)
        assert parsed is not None
        check_teacher_files(parsed)

    for config in kinds_of({"tutor": section}):
        one_sentence(check, config)


@RELAXED
@given(section=VALUES, key=st.sampled_from([None, "teacher", "stages", "tutr", "rkd"]), train_ds=VALUES)
def test_any_section_is_read_or_refused(section: Any, key: str | None, train_ds: Any) -> None:
    for config in kinds_of({"tutor": section if key is None else {key: section}, "train_ds": train_ds}):
        one_sentence(parse_tutor, config)


LABELS = [" ", "a", "b"]
STUDENT: dict[str, Any] = {
    "model": {
        "labels": LABELS,
        "preprocessor": {"features": 64},
        "encoder": {"jasper": []},
        "decoder": {"vocabulary": LABELS, "num_classes": 3},
        "optim": {"name": "adamw", "sched": {"name": "CosineAnnealing"}},
        "train_ds": {"manifest_filepath": "a.jsonl", "labels": LABELS, "use_lhotse": False},
        "validation_ds": {"manifest_filepath": "b.jsonl"},
        "tokenizer": None,
        "tutor": None,
    },
    "trainer": {"max_epochs": 2, "max_steps": -1},
}
STUDENT_PATHS = [
    *[("model", name) for name in STUDENT["model"]],
    *[("model", "decoder", name) for name in ("vocabulary", "num_classes")],
    *[
        ("model", "train_ds", name)
        for name in ("labels", "use_lhotse", "use_semi_sorted_batching", "drop_last", "sample_rate")
    ],
    *[("model", "optim", name) for name in ("sched", "name")],
    ("model", "optim", "sched", "max_steps"),
    ("model", "tokenizer", "type"),
    ("trainer",),
    *[
        ("trainer", name)
        for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "log_every_n_steps")
    ],
]


@RELAXED
@given(changes=st.lists(st.tuples(st.sampled_from(STUDENT_PATHS), VALUES), min_size=1, max_size=3))
def test_any_student_config_is_accepted_or_refused(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    config: Any = STUDENT
    for path, value in changes:
        config = put(config, path, value)
    try:
        config = OmegaConf.create(config)
    except (Exception, RecursionError):
        return
    if isinstance(config.get("model"), type(config)):
        one_sentence(lambda cfg: check_student(cfg.model), config)
        one_sentence(check_trainer, config)
