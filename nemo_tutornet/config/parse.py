# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the `tutor:` section, and checks its keys and types. Every message names the full path of the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from nemo_tutornet.config.checks import check_values
from nemo_tutornet.config.renamed import check_renamed_key
from nemo_tutornet.config.schema import LayerPairConfig, StageConfig, TeacherConfig, TutorConfig
from nemo_tutornet.errors import LONGEST_INPUT, TutorError, first_line, shorten, shown

_LARGEST = 10**15  # of a whole number; OmegaConf cannot make floats of the largest ones


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
        key = str(error.full_key or "tutor")
        key = key if key.startswith("model.") else f"model.{key}"
        raise TutorError(f"{shorten(key)}: {_reason(error)}.") from None
    except RecursionError:
        raise TutorError("model.tutor has sections in sections without end; it needs three levels.") from None
    if plain is None:
        return None
    if not isinstance(plain, Mapping):
        raise TutorError(f"model.tutor must be a section of keys, not {shown(plain)}.")
    plain = _expand_init(plain)
    without_teacher = "teacher" in plain and plain["teacher"] is None
    if without_teacher:
        plain = {key: value for key, value in plain.items() if key != "teacher"}
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
    if without_teacher:
        config.without_teacher = True
    check_values(config)
    _clear_missing_paths(section)
    train_ds = model_cfg.get("train_ds")
    if isinstance(train_ds, Mapping) and train_ds.get("use_dali"):
        raise TutorError(
            "model.train_ds.use_dali is on, but DALI hands out the student's features and the teacher needs "
            "the waveform; turn it off."
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
        raise TutorError(f"{path}.{shorten(str(error.full_key))} is not set; give it.") from None
    except OmegaConfBaseException as error:
        key = f"{path}.{shorten(str(error.full_key))}" if error.full_key else path
        raise TutorError(f"{key}: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    return shorten(first_line(error), LONGEST_INPUT).rstrip(".")


def _refuse_unknown_keys(section: Mapping[Any, Any], schema: type, path: str) -> None:
    """Checks the keys of a section and of the sections below it, and what OmegaConf would take silently."""
    types = {f.name: f for f in fields(schema)}
    for key, value in section.items():
        here = f"{path}.{shorten(str(key))}"
        check_renamed_key(here)
        if key not in types:
            near = difflib.get_close_matches(str(key)[:LONGEST_INPUT], types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(types)}."
            raise TutorError(f"{here} is not a key of this section; {hint}")
        nested = _nested_schema(schema, key)
        listed = _LISTS.get(here.removeprefix("model.tutor."))
        if listed is not None:
            if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
                raise TutorError(f"{here} must be a list of {key.replace('_', ' ')}, not {shown(value)}.")
            for i, item in enumerate(value):
                if not isinstance(item, Mapping):
                    raise TutorError(f"{here}[{i}] must be a section of keys, not {shown(item)}.")
                _refuse_unknown_keys(item, listed, f"{here}[{i}]")
        elif nested is not None:
            if not isinstance(value, Mapping):
                hint = "; leave it out for the defaults" if value is None else ""
                raise TutorError(f"{here} must be a section of keys, not {shown(value)}{hint}.")
            _refuse_unknown_keys(value, nested, here)
        elif key == "weights":
            _check_weights(value, here)
        elif key == "prompt" and value is not None:
            _check_prompt(value, here)
        elif value == MISSING and (key == "model_path" or types[key].default == MISSING):
            continue  # has a message of its own, or is not needed
        else:
            _check_value(value, get_type_hints(schema)[key], here)


def _check_weights(value: Any, path: str) -> None:
    if value == MISSING:
        return
    if not isinstance(value, Mapping):
        raise TutorError(f"{path} must map losses to weights, not {shown(value)}.")
    for loss, weight in value.items():
        _check_value(weight, float, f"{path}.{shorten(str(loss))}")


def _check_prompt(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise TutorError(f"{path} must map the slots of a prompt to values, not {shown(value)}.")
    for slot, option in value.items():
        here = f"{path}.{shorten(str(slot))}"
        if option is None or isinstance(option, (Mapping, list, tuple)):
            raise TutorError(f"{here} must be a word, not {shown(option)}.")
        _check_value(option, bool if isinstance(option, bool) else float, here)


def _check_value(value: Any, annotation: Any, path: str) -> None:
    """Refuses what OmegaConf would take silently, or with an error of its own, as the value of a key.

    Args:
        value: the value.
        annotation: type of the key.
        path: full path of the key.

    Raises:
        TutorError: `???`; a list or section in place of one value; a huge number; something else in place of
            text that YAML made of unquoted text.
    """
    items = next((get_args(a)[0] for a in (annotation, *get_args(annotation)) if get_origin(a) is list), None)
    if value is None:
        return
    if isinstance(value, str) and value.strip() == MISSING:
        raise TutorError(
            f"{path} is ???, which stands for a value that is to be given; give one, or leave the key out."
        )
    if items is not None:
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            for i, item in enumerate(value):
                if item is None:
                    raise TutorError(f"{path}[{i}] must be a value, not null.")
                _check_value(item, items, f"{path}[{i}]")
            return
        raise TutorError(f"{path} must be a list, not {shown(value)}.")
    is_text = str in (annotation, *get_args(annotation))
    if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str):
        what = "text" if is_text else "one value"
        raise TutorError(f"{path}: expected {what}, not {shown(value)}.")
    if is_text and isinstance(value, (bool, float)):
        raise TutorError(f"{path} must be text, not {shown(value)}; put text in quotes.")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise TutorError(f"{path} is {shown(value)}, which is too large; give a smaller number.")


def _nested_schema(schema: type, key: str) -> type | None:
    annotation = get_type_hints(schema)[key]
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and is_dataclass(c)), None)
