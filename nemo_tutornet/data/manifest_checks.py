# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the manifests that a model's config names, before the model is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_tutornet.data.manifest import Rules, Utterance, check_address, in_store, read_rows
from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.utils.files import expand_user

_ROUNDING = 0.1  # seconds by which a duration may be rounded
_NOT_SET = "{key} is not set; give the path of a manifest, e.g. {key}=train.jsonl."


def check_manifests(model_cfg: Mapping[str, Any], train_section: str = "model.train_ds") -> list[str]:
    """Checks every manifest of audio files in a model's config, before the model is built.

    Tarred and Lhotse data sets and object stores are not checked here, but by NeMo.

    Args:
        model_cfg: config of a NeMo CTC model with `train_ds`, `validation_ds` and `test_ds`.
        train_section: the section of the user's config that `train_ds` comes from, for messages.

    Returns:
        Warnings, a sentence each: NeMo will leave out rows because of their duration; training rows have an
        empty transcript, in a config with a `tutor:` section; training rows have no transcript, in a config
        without it; there is no validation set.

    Raises:
        TutorError: the first mistake, e.g. a config without a training set.
    """
    from omegaconf.errors import OmegaConfBaseException

    warnings: list[str] = []
    for name in ("train_ds", "validation_ds", "test_ds"):
        try:
            shown = train_section if name == "train_ds" else f"model.{name}"
            warnings += _check_section(model_cfg, name, shown)
        except (
            OmegaConfBaseException
        ) as error:  # e.g. an interpolation of a variable or key that does not exist
            raise TutorError(
                f"model.{name} cannot be read: {first_line(error).rstrip('.')}; fix the config."
            ) from None
    return warnings


def _check_section(model_cfg: Mapping[str, Any], name: str, shown: str) -> list[str]:
    """Checks one data set of a config, as `check_manifests` describes; messages call it `shown`."""
    warnings: list[str] = []
    section, key = model_cfg.get(name) or {}, f"{shown}.manifest_filepath"
    if not isinstance(section, Mapping):
        raise TutorError(
            f"{shown} is {str(section)[:100]}, but it must be a section; give a manifest as {key}."
        )
    if section.get("is_tarred") or section.get("use_lhotse"):
        return warnings
    shortest, longest = (
        default if section.get(limit) is None else _limit(section, shown, limit)
        for limit, default in (("min_duration", -math.inf), ("max_duration", math.inf))
    )
    channel = _channel(section, shown)
    is_sorted = name == "train_ds" and bool(section.get("use_semi_sorted_batching"))
    rules = Rules(
        frame_seconds(model_cfg), shortest, longest, for_nemo=True, channel=channel, needs_numbers=is_sorted
    )
    manifests = manifests_of(section, key)
    if not manifests and name == "train_ds":
        raise TutorError(_NOT_SET.format(key=key))
    if not manifests and name == "validation_ds":
        warnings.append(
            f"{key} is not set, so no checkpoint can be selected by its WER; ignore val_wer=0.0000 in the "
            "names of checkpoints."
        )
    empty, is_transcribed = [], False
    for manifest in manifests:
        if in_store(manifest):
            continue
        check_address(manifest, key)
        path = expand_user(manifest)
        if len(manifests) > 1 and not path.is_file():
            raise TutorError(
                f"there is no manifest {path}; {key} names {len(manifests)} manifests, because NeMo ends a "
                "path at a comma."
            )
        rows, left_out = read_rows(path, rules)
        if left_out:
            warnings.append(
                f"{shown} leaves out {left_out} of {left_out + len(rows)} rows of {manifest}: it keeps "
                f"rows{rules}."
            )
        if not rows:
            empty.append(manifest)
        warnings += _truncated(rows, manifest)
        is_transcribed |= any(row.text for row in rows)
        empty_texts = sum(row.text == "" for row in rows)
        without_text = sum(row.text is None for row in rows)
        if without_text and name == "train_ds" and not model_cfg.get("tutor"):
            warnings.append(
                f"{without_text} of {len(rows)} rows of {manifest} have no text: without a teacher the "
                f"student learns to output silence for them; remove them from {key}."
            )
        if empty_texts and name == "train_ds" and model_cfg.get("tutor"):
            warnings.append(
                f"{empty_texts} rows of {manifest} have an empty text: NeMo cannot distinguish them from "
                "rows without a text, so CTC skips them with a teacher; without a teacher the student learns "
                "to output silence for them."
            )
    if manifests and not is_transcribed and name == "train_ds" and _uses_ctc(model_cfg.get("tutor")):
        warnings.append(
            f"no row of {key} has a transcript, so the loss ctc learns nothing; leave it out of "
            "model.tutor.stages."
        )
    # NeMo joins the manifests of a training set, and those in one string; elsewhere each manifest of a list
    # is a data set of its own.
    joined = isinstance(section.get("manifest_filepath"), str) or (
        name == "train_ds" and not section.get("is_concat")
    )
    if empty and (not joined or len(empty) == len(manifests)):
        raise TutorError(f"{key}: {', '.join(empty)} has no utterance{rules}; give at least one.")
    return warnings


def _truncated(rows: Sequence[Utterance], manifest: str) -> list[str]:
    """Returns a warning where files are shorter than their rows say, as after an interrupted copy."""
    short = [row for row in rows if row.missing > max(_ROUNDING, 0.01 * (row.duration + row.missing))]
    if not short:
        return []
    first = short[0]
    return [
        f"{len(short)} of {len(rows)} rows of {manifest} have more seconds than their file, e.g. "
        f"{first.duration + first.missing:g} s of {first.audio}, which has {first.duration:g} s: correct the "
        "duration, or copy the file again if it is truncated."
    ]


def _uses_ctc(tutor: Any) -> bool:
    stages = tutor.get("stages") if isinstance(tutor, Mapping) else None
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        return False
    weights = [stage.get("weights") for stage in stages if isinstance(stage, Mapping)]
    return any(isinstance(one, Mapping) and one.get("ctc") for one in weights)


def _limit(section: Mapping[str, Any], shown: str, key: str) -> float:
    value = section[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TutorError(f"{shown}.{key} is {str(value)[:100]}, but it must be a number of seconds.")
    return float(value)


def _channel(section: Mapping[str, Any], shown: str) -> int | str | None:
    """Returns the channel that a data set of files reads; None where it chooses none."""
    value = section.get("channel_selector")
    if value in (None, "average") or (type(value) is int and value >= 0):
        return value
    raise TutorError(
        f"{shown}.channel_selector is {str(value)[:100]}, but it must be the number of one channel, "
        "from 0, or average."
    )


def manifests_of(section: Any, key: str) -> list[str]:
    """Returns the paths that a data set's section names as `manifest_filepath`.

    Args:
        section: of a model's config, e.g. `train_ds`.
        key: of the paths, for the message.

    Returns:
        The paths; none where the section has none.

    Raises:
        TutorError: the key is `???`, or holds something that is not a path.
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(section, DictConfig) and OmegaConf.is_missing(section, "manifest_filepath"):
        raise TutorError(_NOT_SET.format(key=key))
    found: Any | None = section.get("manifest_filepath")
    return list(_flat([found], key)) if found else []


def _flat(found: Any, key: str) -> Iterator[str]:
    """Yields every path in a string with commas, a list, or the nested lists of concatenated data sets."""
    for item in found:
        if isinstance(item, str):
            yield from item.split(",")
        elif isinstance(item, Sequence):  # OmegaConf's lists are no `list`, but a Sequence
            yield from _flat(item, key)
        else:
            raise TutorError(
                f"{key} holds {str(item)[:100]}, which is not a path; give the path of a manifest, or a list "
                "of paths."
            )


def frame_seconds(model_cfg: Mapping[str, Any]) -> float:
    """Computes the seconds of one encoder frame from a config: window stride times the encoder's strides.

    Args:
        model_cfg: config of a NeMo CTC model.
    """
    encoder, front, stride = model_cfg.get("encoder") or {}, model_cfg.get("preprocessor") or {}, 1
    for block in encoder.get("jasper") or []:
        stride *= int(block["stride"][0]) ** (1 if block.get("stride_last") else int(block["repeat"]))
    stride *= int(encoder.get("subsampling_factor") or 1)
    if front.get("n_window_stride"):
        return float(front["n_window_stride"]) / float(front.get("sample_rate") or 16000) * stride
    return float(front.get("window_stride") or 0.01) * stride
