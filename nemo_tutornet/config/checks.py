# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the `tutor:` section. Every message names the full path of the key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from nemo_tutornet.config.renamed import RENAMED_DIVERGENCES, check_renamed_key
from nemo_tutornet.config.schema import (
    DIVERGENCES,
    FRAME_SELECTIONS,
    FRAME_WEIGHTINGS,
    INIT_SOURCES,
    PRECISIONS,
    STAGE_UNITS,
    LayerPairConfig,
    StageConfig,
    TeacherConfig,
    TutorConfig,
)
from nemo_tutornet.errors import TutorError

# Ten seconds and more. Matching needs a step for each, and padding their number of frames.
_MOST_FRAMES = 1000


def parse_tutor(model_cfg: Any) -> TutorConfig | None:
    """Reads and checks the `tutor:` section of a model config.

    Args:
        model_cfg: the student's config (a mapping). Its `tutor` key may be absent or null. A teacher's
            `model_path: ???` in it is set to null, because NeMo rejects configs with missing values.

    Returns:
        The checked section, or None if there is none.

    Raises:
        TutorError: a key is unknown, a value has the wrong type, or settings cannot be combined. The message
            names the key's full path.
    """
    if isinstance(model_cfg, DictConfig) and OmegaConf.is_missing(model_cfg, "tutor"):
        raise TutorError(
            "model.tutor is not set; fill the section in, or leave it out to train without a teacher."
        )
    try:
        section = model_cfg.get("tutor") if model_cfg is not None else None
        plain = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
    except OmegaConfBaseException as error:
        raise TutorError(f"{error.full_key or 'model.tutor'}: {_first_line(error)}.") from None
    if plain is None:
        return None
    if not isinstance(plain, Mapping):
        raise TutorError(f"model.tutor must be a section of keys, not {plain!r}.")
    plain = _expand_init(plain)
    _refuse_unknown_keys(plain, TutorConfig, "model.tutor")
    # Build the items of lists one by one, because OmegaConf reports a key without its index in the list.
    sections = dict(plain)
    if isinstance(sections.get("rkd"), Mapping):
        sections["rkd"] = dict(sections["rkd"])
    lists = {path: _owner(sections, path).pop(path.split(".")[-1], None) for path in _LISTS}
    config = _build(TutorConfig, sections, "model.tutor")
    for path, items in lists.items():
        if items is not None:
            schema, where = _LISTS[path], f"model.tutor.{path}"
            owner = config.rkd if path.startswith("rkd.") else config
            built = [
                _build(schema, _without_nulls(item, schema), f"{where}[{i}]") for i, item in enumerate(items)
            ]
            setattr(owner, path.split(".")[-1], built)
    _check(config)
    _clear_missing_paths(section)
    if (model_cfg.get("train_ds") or {}).get("use_dali"):
        raise TutorError(
            "model.train_ds.use_dali is on, but DALI hands out the student's features and the teacher needs "
            "the waveform; "
            "turn it off."
        )
    return config


def _expand_init(section: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Replaces the short forms `init: teacher` and `init: null` by the section that they stand for."""
    init = section.get("init", {})
    if init is None or isinstance(init, str):
        return {**section, "init": {"source": init}}
    return section


def _without_nulls(section: Mapping[Any, Any], schema: type) -> Mapping[Any, Any]:
    """Removes required keys that are null, so that their message is the same as for an absent key."""
    required = {f.name for f in fields(schema) if f.default == MISSING}
    return {key: value for key, value in section.items() if value is not None or key not in required}


def _clear_missing_paths(section: Any) -> None:
    """Sets `model_path` to null if it is `???`, as in the YAMLs of earlier versions."""
    if isinstance(section, DictConfig):
        for teacher in (section.get("teacher"), *(section.get("other_teachers") or [])):
            if isinstance(teacher, DictConfig) and OmegaConf.is_missing(teacher, "model_path"):
                teacher.model_path = None


# Paths of the lists of sections, and the schema of one section.
_LISTS: dict[str, type] = {
    "other_teachers": TeacherConfig,
    "stages": StageConfig,
    "rkd.pairs": LayerPairConfig,
}


def _owner(sections: dict[str, Any], path: str) -> dict[str, Any]:
    """Returns the section that a list belongs to."""
    return sections.get("rkd", {}) if path.startswith("rkd.") else sections


def _build(schema: type, section: Mapping[Any, Any], path: str) -> Any:
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(section)))
        )
    except MissingMandatoryValue as error:
        raise TutorError(f"{path}.{error.full_key} is not set; give it.") from None
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if error.full_key else path
        raise TutorError(f"{key}: {_first_line(error)}.") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _refuse_unknown_keys(section: Mapping[Any, Any], schema: type, path: str) -> None:
    types = {f.name: f for f in fields(schema)}
    for key, value in section.items():
        check_renamed_key(f"{path}.{key}")
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(types)}."
            raise TutorError(f"{path}.{key} is not a key of this section; {hint}")
        nested = _nested_schema(schema, key)
        here = f"{path}.{key}"
        listed = _LISTS.get(here.removeprefix("model.tutor."))
        if listed is not None:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TutorError(f"{here} must be a list of {key.replace('_', ' ')}, not {value!r}.")
            for i, item in enumerate(value):
                if not isinstance(item, Mapping):
                    raise TutorError(f"{here}[{i}] must be a section of keys, not {item!r}.")
                _refuse_unknown_keys(item, listed, f"{here}[{i}]")
        elif nested is not None:
            if not isinstance(value, Mapping):
                hint = "; leave it out for the defaults" if value is None else ""
                raise TutorError(f"{here} must be a section of keys, not {value!r}{hint}.")
            _refuse_unknown_keys(value, nested, here)
        elif key == "weights":
            if value == MISSING:
                continue
            if not isinstance(value, Mapping):
                raise TutorError(f"{here} must map losses to weights, not {value!r}.")
            for loss, weight in value.items():
                if isinstance(weight, (Mapping, list)):
                    raise TutorError(f"{here}.{loss} must be a number, not {weight!r}.")
        elif key == "prompt" and value is not None:
            if not isinstance(value, Mapping):
                raise TutorError(f"{here} must map the slots of a prompt to values, not {value!r}.")
            for slot, option in value.items():
                if option is None or isinstance(option, (Mapping, list)):
                    raise TutorError(f"{here}.{slot} must be a word, not {option!r}.")


def _nested_schema(schema: type, key: str) -> type | None:
    annotation = get_type_hints(schema)[key]
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and is_dataclass(c)), None)


def _check(config: TutorConfig) -> None:
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
    if config.rkd.pairs and config.teacher.cache:
        raise TutorError(
            "model.tutor.rkd.pairs is set, but a cache holds one hint layer; leave the pairs out, or train "
            "with the teacher itself (model.tutor.teacher.cache=null)."
        )
    _one_of("rkd.frame_weighting", config.rkd.frame_weighting, FRAME_WEIGHTINGS)
    if config.skd.divergence in RENAMED_DIVERGENCES:
        new = RENAMED_DIVERGENCES[config.skd.divergence]
        raise TutorError(
            f"model.tutor.skd.divergence: {config.skd.divergence} is now called {new}; rename the value."
        )
    _one_of("skd.divergence", config.skd.divergence, DIVERGENCES)
    _one_of("skd.frames", config.skd.frames, FRAME_SELECTIONS)
    if not (config.skd.temperature > 0 and math.isfinite(config.skd.temperature)):
        raise TutorError(f"model.tutor.skd.temperature must be above 0, not {config.skd.temperature}.")
    if config.skd.temperature != 1.0 and config.skd.divergence != "kl":
        raise TutorError(
            f"model.tutor.skd.temperature is {config.skd.temperature}, but only the divergence 'kl' has a "
            "temperature, "
            f"and model.tutor.skd.divergence is {config.skd.divergence!r}; leave the temperature at 1 or "
            "choose 'kl'."
        )
    for key in ("frames_around", "match_window"):
        frames = getattr(config.skd, key)
        if not 0 <= frames <= _MOST_FRAMES:
            raise TutorError(
                f"model.tutor.skd.{key} must be 0 or more, not {frames}."
                if frames < 0
                else f"model.tutor.skd.{key} must be at most {_MOST_FRAMES} frames, not {str(frames)[:40]}."
            )
    layers = config.skd.intermediate_layers
    if len(set(layers)) < len(layers):
        raise TutorError(
            f"model.tutor.skd.intermediate_layers names a layer twice ({', '.join(layers)}); name each once."
        )
    if not (config.skd.intermediate_weight > 0 and math.isfinite(config.skd.intermediate_weight)):
        raise TutorError(
            f"model.tutor.skd.intermediate_weight must be above 0, not {config.skd.intermediate_weight}; "
            "without "
            "heads, leave "
            f"model.tutor.skd.intermediate_layers empty."
        )
    if not 0 <= config.pseudo_labels.min_confidence <= 1:
        raise TutorError(
            "model.tutor.pseudo_labels.min_confidence must be 0 to 1, not "
            f"{config.pseudo_labels.min_confidence}."
        )
    if config.pseudo_labels.max_wer is not None and not config.pseudo_labels.max_wer >= 0:
        raise TutorError(
            f"model.tutor.pseudo_labels.max_wer must be 0 or more, not {config.pseudo_labels.max_wer}."
        )
    _check_init(config)
    if not 0 <= config.max_nonfinite_share < 1:
        raise TutorError(
            "model.tutor.max_nonfinite_share must be 0 or more and below 1, not "
            f"{config.max_nonfinite_share}."
        )
    if config.log.agreement < 0:
        raise TutorError(f"model.tutor.log.agreement must be 0 or more, not {config.log.agreement}.")
    if config.log.agreement > _MOST_FRAMES:
        raise TutorError(
            f"model.tutor.log.agreement must be at most {_MOST_FRAMES} utterances, not "
            f"{str(config.log.agreement)[:40]}."
        )
    if not config.stages:
        raise TutorError(
            "model.tutor.stages is empty; give at least one stage, or leave the key out for the default."
        )
    for i, stage in enumerate(config.stages):
        _check_stage(stage, f"model.tutor.stages[{i}]", last=i == len(config.stages) - 1)
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names):
        raise TutorError(
            f"model.tutor.stages has two stages of one name ({', '.join(names)}); name each differently."
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
            "pretrained NeMo model, "
            f"or model.tutor.{key}.cache, a folder that `nemo-tutornet cache` wrote."
        )
    _one_of(f"{key}.precision", teacher.precision, PRECISIONS)
    if not (teacher.weight > 0 and math.isfinite(teacher.weight)):
        raise TutorError(f"model.tutor.{key}.weight must be above 0, not {teacher.weight}.")


def _check_init(config: TutorConfig) -> None:
    source, layers = config.init.source, config.init.layers
    if source is not None and source not in INIT_SOURCES:
        raise TutorError(
            f"model.tutor.init.source is {source!r}; choose {' or '.join(INIT_SOURCES)}, or null for random "
            "weights."
        )
    if layers is not None and source is None:
        raise TutorError(
            "model.tutor.init.layers is set, but model.tutor.init.source is null, so nothing is copied; set "
            "the source to teacher, or leave layers out."
        )
    if layers is not None and not (layers and all(layer >= 0 for layer in layers)):
        raise TutorError(
            f"model.tutor.init.layers is {layers}; give the index of a teacher's block or layer, 0 or more, "
            "for "
            "each of the student's."
        )
    teacher = config.teacher
    if source is not None and teacher.cache and (teacher.model_path or MISSING) == MISSING:
        raise TutorError(
            "model.tutor.init copies the teacher's weights, and a cache has none; give "
            "model.tutor.teacher.model_path beside model.tutor.teacher.cache, or leave init out."
        )


def _check_stage(stage: StageConfig, path: str, last: bool) -> None:
    for loss, weight in stage.weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise TutorError(f"{path}.weights.{loss} must be 0 or more, not {weight}.")
    if not any(weight > 0 for weight in stage.weights.values()):
        raise TutorError(
            f"{path}.weights gives no loss a positive weight, so stage {stage.name!r} would learn nothing."
        )
    units = [unit for unit in STAGE_UNITS if getattr(stage, unit) is not None]
    if len(units) > 1:
        raise TutorError(f"{path} has a length in {units[0]} and one in {units[1]}; give one of them.")
    if not units and not last:
        raise TutorError(
            f"{path} ({stage.name!r}) has no length but is not the last stage; give it a share, epochs or "
            "steps."
        )
    if stage.share is not None and not 0 < stage.share < 1:
        raise TutorError(
            f"{path}.share is {stage.share:g}; give a share of the training above 0 and below 1."
        )
    if units and getattr(stage, units[0]) <= 0:
        raise TutorError(f"{path} ({stage.name!r}) must be 1 or more {units[0]} long.")


def _one_of(key: str, value: str, allowed: tuple) -> None:
    if value not in allowed:
        raise TutorError(f"model.tutor.{key} is {value!r}; choose from {', '.join(allowed)}.")
