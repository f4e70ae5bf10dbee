# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of a student's file that read its config and members, and run nothing of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.export.scrub import paths_in_tokenizers
from nemo_tutornet.export.summary import Check
from nemo_tutornet.nemo_io.archive import MODEL_CONFIG, MODEL_WEIGHTS, NemoArchive
from nemo_tutornet.nemo_io.stock_config import CTC_CLASSES, STOCK_BPE, names_data, target_of

SAMPLE_RATES = range(
    1000, 192001
)  # samples per second; a hostile rate would make probes that fill the memory
_PATH = re.compile(r"^(file:|/|~|[A-Za-z]:[\\/]|\\\\).+|.*\.(nemo|ckpt)$", re.DOTALL)
# These keys hold texts, not paths: a label may be a slash.
_NO_PATHS = ("labels", "vocabulary")


def archive_checks(archive: NemoArchive) -> list[Check]:
    """Checks the class, the config, the members and the tokenizer of an archive, in this order.

    Args:
        archive: the student's.
    """
    return [_target(archive.config), _config(archive.config), _artifacts(archive), _tokenizer(archive)]


def _target(config: DictConfig) -> Check:
    target, stock = target_of(config), list(CTC_CLASSES.values())
    wrong = f"the config's target is {target}, but a student is one of NeMo's {' and '.join(stock)}"
    return Check("target", target in stock, target if target in stock else wrong)


def _config(config: DictConfig) -> Check:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    content.pop("target", None)  # has its own check
    found = sorted(_leaks(content))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    if found:
        return Check("config", False, f"the config still tells of the training: {', '.join(found[:3])}{more}")
    return Check("config", True, "no tutor section, no path of another machine")


def _leaks(node: Any, key: str = "") -> Iterator[str]:
    """Yields the entries of a config that must not be in an exported file."""
    name = key.rsplit(".", 1)[-1]
    if isinstance(node, dict):
        for child, value in node.items():
            if child == "tutor":
                yield f"{key}.tutor".lstrip(".")
            else:
                yield from _leaks(value, f"{key}.{child}".lstrip("."))
    elif (
        names_data(name) and node and not isinstance(node, (int, float)) and not str(node).startswith("nemo:")
    ):
        yield f"{key}={node}"
    elif isinstance(node, list) and name not in _NO_PATHS:
        for i, value in enumerate(node):
            yield from _leaks(value, f"{key}[{i}]")
    elif (
        isinstance(node, str)
        and not node.startswith("nemo:")
        and (_PATH.match(node) or "nemo_tutornet" in node)
    ):
        yield f"{key}={node}"


def _artifacts(student: NemoArchive) -> Check:
    """Checks that the archive holds every file that the config names, and no other.

    The config of a subword model must name the files of its tokenizer.
    """
    values = _strings(OmegaConf.to_container(student.config, resolve=False))
    named = [value.removeprefix("nemo:") for value in values if value.startswith("nemo:")]
    members = student.members
    # A file that nothing reads would be copied along, into Riva's archive too.
    others = sorted(set(members) - {MODEL_CONFIG, MODEL_WEIGHTS, *named})
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return Check(
            "artifacts",
            False,
            f"the archive holds {', '.join(others[:3])}{more}, which the config does not name",
        )
    missing = [name for name in named if name not in members]
    if missing:
        return Check(
            "artifacts", False, f"the config names {', '.join(missing)}, which the archive does not hold"
        )
    if student.target == STOCK_BPE and not named:
        return Check(
            "artifacts", False, "a subword model, but its config names no tokenizer file inside the archive"
        )
    return Check("artifacts", True, ", ".join(named) or "none needed")


def _tokenizer(student: NemoArchive) -> Check:
    paths = paths_in_tokenizers(student)
    found = f"the tokenizer still contains paths of its training: {', '.join(paths[:2])}"
    return Check(
        "tokenizer",
        not paths,
        f"{found}; export the student again" if paths else "no path of another machine",
    )


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _strings(child)


def sample_rate_of(config: DictConfig) -> int | None:
    """Reads the samples per second from a config; None if the value cannot be a sample rate.

    A config without a sample rate gets NeMo's default.

    Args:
        config: the student's.
    """
    try:
        rate = int(
            OmegaConf.select(config, "sample_rate")
            or OmegaConf.select(config, "preprocessor.sample_rate")
            or 16000
        )
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError):
        return None
    return rate if rate in SAMPLE_RATES else None
