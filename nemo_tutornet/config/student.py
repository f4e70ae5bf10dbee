# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks what NeMo needs of a student's config, and tells by a traceback or not at all where it is
missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import LONGEST_INPUT, TutorError, first_line, shorten, shown

_SECTIONS = ("preprocessor", "encoder", "decoder")
_DATA = ("train_ds", "validation_ds", "test_ds")
_SAMPLE_RATE = 16000  # the default of NeMo's front end
# Whole numbers of the trainer, and the least value of each; with -1, 0 means that nothing is trained.
_LEAST = {
    "max_epochs": -1,
    "max_steps": -1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
}


def check_student(model_cfg: Any) -> None:
    """Checks the sections, labels and tokenizer of a student, before the model is built.

    Args:
        model_cfg: config of a NeMo CTC model that is to be trained.

    Raises:
        TutorError: a section is missing; a label is no text, appears twice or differs between sections; the
            number of classes is missing or wrong; audio is read at another sample rate than the front end's;
            the tokenizer is an aggregate one, and there is a teacher.
    """
    try:
        for name in _SECTIONS:
            if not isinstance(model_cfg.get(name), Mapping):
                raise TutorError(f"model.{name} must be a section of keys, not {shown(model_cfg.get(name))}.")
        tokenizer = model_cfg.get("tokenizer")
        if not tokenizer:
            _check_labels(model_cfg)
        _check_sample_rates(model_cfg)
        if tokenizer and model_cfg.get("tutor") is not None and _is_aggregate(tokenizer):
            raise TutorError(
                "model.tokenizer is an aggregate tokenizer (type agg), whose labels depend on the language "
                "of each row, and a distillation does not know it; train one tokenizer for all languages, or "
                "set model.tutor=null."
            )
        data = model_cfg.get("train_ds")
        if isinstance(data, Mapping) and data.get("use_semi_sorted_batching") and "drop_last" not in data:
            raise TutorError(
                "model.train_ds.use_semi_sorted_batching is on, and NeMo then needs the key drop_last; add "
                "+model.train_ds.drop_last=false."
            )
    except OmegaConfBaseException as error:  # an interpolation of a key that does not exist, or `???`
        raise _unreadable(error) from None


def check_trainer(cfg: Any) -> None:
    """Checks the optimizer and the limits of a training, before anything is built.

    Args:
        cfg: the whole config of a training.

    Raises:
        TutorError: the seed is no whole number; there is no optimizer or no trainer; a number of the trainer
            has another type or is too small; the training set has no length, and so neither has the schedule
            of the learning rate.
    """
    try:
        check_seed(cfg)
        optim, trainer = cfg.model.get("optim"), cfg.get("trainer")
        if not isinstance(optim, Mapping):
            raise TutorError(
                f"model.optim must be a section of keys, not {shown(optim)}; without it nothing is trained."
            )
        if not isinstance(trainer, Mapping):
            raise TutorError(f"trainer must be a section of keys, not {shown(trainer)}.")
        for key, least in _LEAST.items():
            value = trainer.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                given = shorten(value) if isinstance(value, str) else shown(value)
                raise TutorError(f"trainer.{key} is {given}, but it must be a number (a whole one).")
            if value < least or value == 0:
                unlimited = ", or -1 for no limit" if least < 0 else ""
                raise TutorError(f"trainer.{key} is {shown(value)}; give 1 or more{unlimited}.")
        _check_schedule_length(optim, trainer, cfg.model.get("train_ds"))
    except OmegaConfBaseException as error:
        raise _unreadable(error) from None


def check_seed(cfg: Any) -> None:
    """Checks the seed of a training.

    Args:
        cfg: the whole config of a training.

    Raises:
        TutorError: it is no whole number from 0 to 4294967295, which Lightning needs.
    """
    seed = cfg.get("seed")
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32):
        return
    given = shorten(seed) if isinstance(seed, str) else shown(seed)
    raise TutorError(f"seed is {given}, but it must be a whole number from 0 to {2**32 - 1}.")


def _check_schedule_length(optim: Mapping[Any, Any], trainer: Mapping[Any, Any], data: Any) -> None:
    schedule = optim.get("sched")
    if not (isinstance(schedule, Mapping) and isinstance(data, Mapping) and data.get("use_lhotse")):
        return
    if (trainer.get("max_steps") or -1) < 0 and schedule.get("max_steps") is None:
        raise TutorError(
            "trainer.max_steps is not set: a Lhotse training set has no length, so NeMo cannot compute how "
            "long the schedule of the learning rate is; set trainer.max_steps, and trainer.max_epochs=-1 if "
            "only the steps count."
        )


def _is_aggregate(tokenizer: Any) -> bool:
    return isinstance(tokenizer, Mapping) and str(tokenizer.get("type")).lower() == "agg"


def _check_labels(model_cfg: Any) -> None:
    """Checks the labels of a character student."""
    decoder = model_cfg["decoder"]
    labels = _labels(decoder.get("vocabulary"), "model.decoder.vocabulary")
    if not labels:
        raise TutorError(
            "model.decoder.vocabulary is not set; give the student's labels, e.g. "
            "model.decoder.vocabulary='${model.labels}'."
        )
    classes = decoder.get("num_classes")
    if classes is None:
        raise TutorError(
            f"model.decoder.num_classes is not set; give the number of labels, {len(labels)}, or -1 to count "
            "them."
        )
    if isinstance(classes, bool) or not isinstance(classes, int) or (classes > 0 and classes != len(labels)):
        raise TutorError(
            f"model.decoder.num_classes is {shown(classes)}, but model.decoder.vocabulary has {len(labels)} "
            "labels; give their number, or -1 to count them."
        )
    common = _labels(model_cfg.get("labels"), "model.labels")
    for name in _DATA:
        data = model_cfg.get(name)
        if not isinstance(data, Mapping) or not data.get("manifest_filepath"):
            continue
        where = f"model.{name}.labels"
        own = _labels(data.get("labels"), where)
        found = own if own is not None else common
        if found is None:
            raise TutorError(
                f"neither {where} nor model.labels is set, so transcripts would have no labels; set "
                "model.labels, and model.decoder.vocabulary='${model.labels}'."
            )
        if found != labels:
            raise TutorError(
                f"{where if own is not None else 'model.labels'} differs from model.decoder.vocabulary "
                f"({_difference(found, labels)}), so transcripts would be written with wrong labels; use the "
                "same list, e.g. '${model.labels}', in both."
            )


def _check_sample_rates(model_cfg: Any) -> None:
    """Refuses audio that NeMo would read at another rate than the front end takes it for.

    Student and teacher would train on speech at another speed, validation too, and only the deployed student
    would be given speech at its own.
    """
    rate = model_cfg["preprocessor"].get("sample_rate", _SAMPLE_RATE)
    for name in _DATA:
        data = model_cfg.get(name)
        if not isinstance(data, Mapping) or not (data.get("manifest_filepath") or data.get("use_lhotse")):
            continue
        where, found = f"model.{name}.sample_rate", data.get("sample_rate")
        if found is None:
            where, found = "model.sample_rate", model_cfg.get("sample_rate")
        if found is not None and found != rate:
            raise TutorError(
                f"{where} is {shown(found)}, but model.preprocessor.sample_rate is {shown(rate)}, so speech "
                "would be learned at another speed than it has; give both the same, e.g. "
                "'${model.sample_rate}'."
            )


def _labels(value: Any, key: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, (str, Sequence)):
        raise TutorError(f"{key} must be a list of labels, not {shown(value)}.")
    labels, seen = list(value), dict[str, int]()
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            made_of = {bool: "on, off, yes or no", type(None): "~ or null"}.get(type(label), "digits")
            raise TutorError(
                f"{key}[{i}] is {shown(label)} and no text: YAML makes that of {made_of} without quotes; put "
                "every label in quotes."
            )
        if not label:
            raise TutorError(
                f"{key}[{i}] is an empty text; leave it out (the blank is no label of the list)."
            )
        if label in seen:
            raise TutorError(
                f"{key} has the label {shown(label)} twice ({key}[{seen[label]}] and [{i}]); give each once."
            )
        seen[label] = i
    return labels


def _difference(one: list[str], other: list[str]) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} labels"
    i = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    return f"{shown(one[i], 40)} and {shown(other[i], 40)} at position {i}"


def _unreadable(error: OmegaConfBaseException) -> TutorError:
    key = f"model.{error.full_key}".replace("model.model.", "model.") if error.full_key else "model"
    reason = shorten(first_line(error), LONGEST_INPUT).rstrip(".")
    return TutorError(f"{shorten(key)} cannot be read: {reason}; fix the config.")
