# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the values of a `tutor:` section. Every message names the full path of the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import MISSING

from nemo_tutornet.config.renamed import RENAMED_DIVERGENCES
from nemo_tutornet.config.schema import (
    DIVERGENCES,
    FRAME_SELECTIONS,
    FRAME_WEIGHTINGS,
    INIT_SOURCES,
    PRECISIONS,
    RKD_REDUCTIONS,
    SKD_ALIGNMENTS,
    STAGE_UNITS,
    StageConfig,
    TeacherConfig,
    TutorConfig,
)
from nemo_tutornet.errors import TutorError, shorten, shown

# Limits of what makes sense. Far beyond them a training would run out of memory or of the range of fp32.
_MOST_WEIGHT = 1e6
_LEAST_WEIGHT = 1e-6
_MOST_FRAMES = 1000
_MOST_UTTERANCES = 10_000
_MOST_STEPS = 10**9
_MOST_TIME_MASKS = 100.0
_BETAS = (0.01, 100.0)
_TEMPERATURES = (0.01, 100.0)


def check_values(config: TutorConfig) -> None:
    """Checks the values of a section whose keys and types are right.

    Args:
        config: the section.

    Raises:
        TutorError: a value is out of range, or settings cannot be combined.
    """
    _check_consistency(config)
    _check_mixup(config)
    if config.without_teacher:
        _check_without_teacher(config)
    else:
        _check_teacher(config.teacher, "teacher")
    for i, teacher in enumerate(config.other_teachers):
        _check_teacher(teacher, f"other_teachers[{i}]")
    for key, value in (
        ("other_teachers", config.other_teachers),
        ("skd.intermediate_layers", config.skd.intermediate_layers),
    ):
        if value and not config.uses("skd"):
            raise TutorError(
                f"model.tutor.{key} is for skd, and no stage uses it; drop the key or give a stage in "
                "model.tutor.stages a "
                f"weight for skd, e.g. {{name: skd, weights: {{ctc: 1.0, skd: 0.25}}}}."
            )
    _one_of("rkd.frame_weighting", config.rkd.frame_weighting, FRAME_WEIGHTINGS)
    if config.rkd.reduction is not None:
        _one_of("rkd.reduction", config.rkd.reduction, RKD_REDUCTIONS)
    if config.skd.divergence in RENAMED_DIVERGENCES:
        new = RENAMED_DIVERGENCES[config.skd.divergence]
        raise TutorError(
            f"model.tutor.skd.divergence: {config.skd.divergence} is now called {new}; rename the value."
        )
    _one_of("skd.divergence", config.skd.divergence, DIVERGENCES)
    _one_of("skd.frames", config.skd.frames, FRAME_SELECTIONS)
    low, high = _TEMPERATURES
    if not low <= config.skd.temperature <= high:
        raise TutorError(
            f"model.tutor.skd.temperature must be above 0, from {low:g} to {high:g}, not "
            f"{shown(config.skd.temperature)}."
        )
    if config.skd.temperature != 1.0 and config.skd.divergence != "kl":
        raise TutorError(
            f"model.tutor.skd.temperature is {config.skd.temperature}, but only the divergence 'kl' has a "
            f"temperature, and model.tutor.skd.divergence is {config.skd.divergence!r}; leave the "
            "temperature at 1 or choose 'kl'."
        )
    _in_range("skd.frames_around", config.skd.frames_around, _MOST_FRAMES)
    _in_range("skd.match_window", config.skd.match_window, _MOST_FRAMES)
    _check_alignment(config)
    layers = config.skd.intermediate_layers
    if len(set(layers)) < len(layers):
        raise TutorError(
            f"model.tutor.skd.intermediate_layers names a layer twice ({_names(layers)}); name each once."
        )
    _positive_weight(
        "model.tutor.skd.intermediate_weight",
        config.skd.intermediate_weight,
        "; without heads, leave model.tutor.skd.intermediate_layers empty",
    )
    if not 0 <= config.pseudo_labels.min_confidence <= 1:
        raise TutorError(
            "model.tutor.pseudo_labels.min_confidence must be 0 to 1, not "
            f"{shown(config.pseudo_labels.min_confidence)}."
        )
    if config.pseudo_labels.max_wer is not None and not config.pseudo_labels.max_wer >= 0:
        raise TutorError(
            f"model.tutor.pseudo_labels.max_wer must be 0 or more, not {shown(config.pseudo_labels.max_wer)}."
        )
    _check_init(config)
    for key in ("max_nonfinite_share", "max_damaged_share"):
        share = getattr(config, key)
        if not 0 <= share < 1:
            raise TutorError(f"model.tutor.{key} must be 0 or more and below 1, not {shown(share)}.")
    for i, weight in enumerate(config.manifest_weights or []):
        _positive_weight(
            f"model.tutor.manifest_weights[{i}]", weight, "; leave a manifest out that is not to be used"
        )
    _in_range("log.agreement", config.log.agreement, _MOST_UTTERANCES)
    if not config.stages:
        raise TutorError(
            "model.tutor.stages is empty; give at least one stage, or leave the key out for the default."
        )
    for i, stage in enumerate(config.stages):
        _check_stage(stage, f"model.tutor.stages[{i}]", last=i == len(config.stages) - 1)
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise TutorError(
            f"model.tutor.stages has two stages of one name ({_names(names)}); name each differently."
        )
    units = [unit for unit in STAGE_UNITS if any(getattr(stage, unit) is not None for stage in config.stages)]
    if len(units) > 1:
        raise TutorError(
            f"model.tutor.stages mixes lengths in {' and in '.join(units)}; use one unit for all stages."
        )
    shares = sum(stage.share or 0.0 for stage in config.stages[:-1])
    if shares >= 1:
        raise TutorError(
            f"model.tutor.stages gives {shares:g} of the training to all stages but the last; leave it some, "
            "too."
        )


def _check_teacher(teacher: TeacherConfig, key: str) -> None:
    if not (teacher.model_path or "").strip() and not teacher.cache:
        raise TutorError(
            f"model.tutor.{key}.model_path is not set; give the teacher's .nemo file or the name of a "
            f"pretrained NeMo model, or model.tutor.{key}.cache, a folder that `nemo-tutornet cache` wrote."
        )
    _one_of(f"{key}.precision", teacher.precision, PRECISIONS)
    _positive_weight(f"model.tutor.{key}.weight", teacher.weight)


def _check_consistency(config: TutorConfig) -> None:
    consistency = config.consistency
    if not 0 <= consistency.weight <= _MOST_WEIGHT:
        raise TutorError(
            f"model.tutor.consistency.weight must be 0 or more, and at most {_MOST_WEIGHT:g}, not "
            f"{shown(consistency.weight)}."
        )
    if 0 < consistency.weight < _LEAST_WEIGHT:
        raise TutorError(
            f"model.tutor.consistency.weight is {consistency.weight:g}, too little to matter; give 0, or "
            f"{_LEAST_WEIGHT:g} or more."
        )
    if not 1 <= consistency.time_masks <= _MOST_TIME_MASKS:
        raise TutorError(
            f"model.tutor.consistency.time_masks must be 1 to {_MOST_TIME_MASKS:g}, not "
            f"{shown(consistency.time_masks)}."
        )
    _in_range("consistency.warmup", consistency.warmup, _MOST_STEPS)


def _check_mixup(config: TutorConfig) -> None:
    mixup, (low, high) = config.mixup, _BETAS
    if not 0 <= mixup.share < 1:
        raise TutorError(f"model.tutor.mixup.share must be 0 or more and below 1, not {shown(mixup.share)}.")
    if not low <= mixup.alpha <= high:
        raise TutorError(f"model.tutor.mixup.alpha must be {low:g} to {high:g}, not {shown(mixup.alpha)}.")
    if not mixup.share:
        return
    if config.without_teacher:
        raise TutorError(
            "model.tutor.mixup needs a teacher, which labels the mixtures, and model.tutor.teacher is null; "
            "set model.tutor.mixup.share=0."
        )
    teachers = {"teacher": config.teacher}
    teachers |= {f"other_teachers[{i}]": teacher for i, teacher in enumerate(config.other_teachers)}
    cached = next((name for name, teacher in teachers.items() if teacher.cache), None)
    if cached is not None:
        raise TutorError(
            "model.tutor.mixup mixes waveforms anew in every step, and a cache has no targets of them; train "
            f"with the teacher itself (model.tutor.{cached}.cache=null), or set model.tutor.mixup.share=0."
        )
    if config.uses("pseudo"):
        raise TutorError(
            "model.tutor.mixup mixes utterances, whose hypotheses are no transcripts, and a stage gives "
            "pseudo a weight; set model.tutor.mixup.share=0, or leave pseudo out."
        )


def _check_without_teacher(config: TutorConfig) -> None:
    if config.consistency.weight <= 0:
        raise TutorError(
            "model.tutor.teacher is null; set model.tutor.consistency.weight to train on two views of each "
            "batch, or model.tutor=null to train as NeMo does."
        )
    others = {loss for stage in config.stages for loss in stage.weights if stage.weights[loss] > 0} - {"ctc"}
    if config.stages != TutorConfig().stages and (others or len(config.stages) > 1):
        what = f"gives {', '.join(sorted(others))} a weight" if others else "has several stages"
        raise TutorError(
            f"model.tutor.teacher is null, and model.tutor.stages {what}; leave the stages out: without a "
            "teacher the student trains with CTC and consistency."
        )
    if config.other_teachers or config.init.source is not None:
        key = "other_teachers" if config.other_teachers else "init"
        raise TutorError(
            f"model.tutor.{key} needs model.tutor.teacher, which is null; drop the one or the other."
        )


def _check_alignment(config: TutorConfig) -> None:
    """Refuses settings that `skd.alignment` leaves without an effect."""
    skd = config.skd
    _one_of("skd.alignment", skd.alignment, SKD_ALIGNMENTS)
    if skd.alignment == "frames":
        return
    divergences = ("kl",) if skd.alignment == "occurrences" else ("l2", "kl")
    if skd.divergence not in divergences:
        raise TutorError(
            f"model.tutor.skd.alignment is {skd.alignment}, which has no divergence {skd.divergence!r}; set "
            f"model.tutor.skd.divergence to {' or '.join(divergences)}."
        )
    others = {
        "skd.match_window": skd.match_window == 0,
        "skd.frames": skd.frames == "all",
        "other_teachers": not config.other_teachers,
        "skd.temperature": skd.alignment != "occurrences" or skd.temperature == 1.0,
    }
    for key, is_default in others.items():
        if not is_default:
            raise TutorError(
                f"model.tutor.skd.alignment is {skd.alignment}, with which model.tutor.{key} has no meaning; "
                "leave it at its default, or set the alignment to frames."
            )


def _check_init(config: TutorConfig) -> None:
    source, layers = config.init.source, config.init.layers
    if source is not None and source not in INIT_SOURCES:
        raise TutorError(
            f"model.tutor.init.source is {shown(source)}; choose {' or '.join(INIT_SOURCES)}, or null for "
            "random "
            "weights."
        )
    if layers is not None and source is None:
        raise TutorError(
            "model.tutor.init.layers is set, but model.tutor.init.source is null, so nothing is copied; set "
            "the source to teacher, or leave layers out."
        )
    if layers is not None and not (layers and all(0 <= layer < _MOST_FRAMES for layer in layers)):
        raise TutorError(
            f"model.tutor.init.layers is {shown(list(layers))}; give the index of a teacher's block or "
            "layer, 0 or more, for each of the student's."
        )
    teacher = config.teacher
    if source is not None and teacher.cache and (teacher.model_path or MISSING) == MISSING:
        raise TutorError(
            "model.tutor.init copies the teacher's weights, and a cache has none; give "
            "model.tutor.teacher.model_path beside model.tutor.teacher.cache, or leave init out."
        )


def _check_stage(stage: StageConfig, path: str, last: bool) -> None:
    name = shown(stage.name)
    if not stage.name.strip():
        raise TutorError(f"{path}.name is empty; give the stage a name.")
    for loss, weight in stage.weights.items():
        key = f"{path}.weights.{shorten(str(loss))}"
        if not 0 <= weight <= _MOST_WEIGHT:
            raise TutorError(f"{key} must be 0 or more, and at most {_MOST_WEIGHT:g}, not {shown(weight)}.")
        if 0 < weight < _LEAST_WEIGHT:
            raise TutorError(
                f"{key} is {weight:g}, too little to matter; give 0, or {_LEAST_WEIGHT:g} or more."
            )
    if not any(weight > 0 for weight in stage.weights.values()):
        raise TutorError(
            f"{path}.weights gives no loss a positive weight, so stage {name} would learn nothing."
        )
    units = [unit for unit in STAGE_UNITS if getattr(stage, unit) is not None]
    if len(units) > 1:
        raise TutorError(f"{path} has a length in {units[0]} and one in {units[1]}; give one of them.")
    if not units and not last:
        raise TutorError(
            f"{path} ({name}) has no length but is not the last stage; give it a share, epochs or steps."
        )
    if stage.share is not None and not 0 < stage.share < 1:
        raise TutorError(
            f"{path}.share is {stage.share:g}; give a share of the training above 0 and below 1."
        )
    if units and getattr(stage, units[0]) <= 0:
        raise TutorError(f"{path} ({name}) must be 1 or more {units[0]} long.")
    if units and getattr(stage, units[0]) > _MOST_STEPS:
        raise TutorError(f"{path} ({name}) is too long; give at most {_MOST_STEPS:,} {units[0]}.")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise TutorError(f"model.tutor.{key} is {shown(value)}; choose from {', '.join(allowed)}.")


def _in_range(key: str, value: int, most: int) -> None:
    if value < 0:
        raise TutorError(f"model.tutor.{key} must be 0 or more, not {shown(value)}.")
    if value > most:
        raise TutorError(f"model.tutor.{key} must be at most {most}, not {shown(value)}.")


def _positive_weight(key: str, value: float, hint: str = "") -> None:
    if not _LEAST_WEIGHT <= value <= _MOST_WEIGHT:
        raise TutorError(
            f"{key} must be above 0, from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}, not {shown(value)}{hint}."
        )


def _names(names: Sequence[Any]) -> str:
    return shorten(", ".join(shorten(str(name), 40) for name in names))
