# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `tutor:` section of a student's config: names, defaults and checks, in one place.

Nothing is loaded here, so a mistake in the section costs seconds and not the time of restoring a teacher.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from nemo_tutornet.errors import TutorError

PRECISIONS = ("auto", "fp32", "bf16")
FRAME_WEIGHTINGS = ("auto", "nonblank", "energy", "uniform")
DIVERGENCES = ("l2", "kl", "guided_ctc")
FRAME_SELECTIONS = ("all", "nonblank", "symmetric")
STAGE_UNITS = ("epochs", "steps", "share")
# Keys and values of earlier versions, and what replaces them.
RENAMED_KEYS = {
    "model.tutor.skd.shift": "match_window",
    "model.tutor.skd.at_layers": "intermediate_layers",
    "model.tutor.skd.at_layers_weight": "intermediate_weight",
}
RENAMED_DIVERGENCES = {"guided": "guided_ctc"}


@dataclass
class TeacherConfig:
    """Where the teacher comes from and how it runs.

    Attributes:
        model_path: a `.nemo` file, or the name of a pretrained NeMo model.
        sha256: refuse any other file when set.
        precision: `auto` is bf16 where the GPU has it and fp32 elsewhere.
        cache: folder that `nemo-tutornet cache` wrote; then no teacher is loaded, and `model_path` may be
            left out.
        weight: of its posteriors, where there are several teachers.
    """

    model_path: str = MISSING
    sha256: Optional[str] = None
    precision: str = "auto"
    cache: Optional[str] = None
    weight: float = 1.0


@dataclass
class RKDConfig:
    """Representation-level distillation: which layers meet, and how frames are weighted.

    Attributes:
        hint_layer: module path in the teacher; null is the encoder's output.
        guided_layer: module path in the student; null is the encoder's output.
        frame_weighting: `auto`, `nonblank`, `energy` or `uniform`.
        warm_start_decoder: compose the student's decoder from the teacher's at the end of RKD (ours).
    """

    hint_layer: Optional[str] = None
    guided_layer: Optional[str] = None
    frame_weighting: str = "auto"
    warm_start_decoder: bool = True


@dataclass
class SKDConfig:
    """Softmax-level distillation: the divergence between posteriors, and the frames that count.

    Attributes:
        divergence: `l2` (the paper), `kl` or `guided_ctc`.
        temperature: softens both posteriors; only `kl` has one.
        frames: `all` (the paper), `nonblank` or `symmetric`.
        frames_around: for `symmetric`, the frames kept on each side of a non-blank one.
        match_window: compare a teacher frame with the student's most similar one at most so many frames away
            (`losses.match_frames`).
        intermediate_layers: module paths in the student that get a head of their own, with CTC and SKD
            (Inter-KD, arXiv 2211.15075).
        intermediate_weight: of the heads' losses, averaged over the heads, relative to those of the student's
        output.
    """

    divergence: str = "l2"
    temperature: float = 1.0
    frames: str = "all"
    frames_around: int = 4
    match_window: int = 0
    intermediate_layers: List[str] = field(default_factory=list)
    intermediate_weight: float = 1.0


@dataclass
class PseudoLabelsConfig:
    """Sequence-level targets (the loss `pseudo`): which of the teacher's hypotheses count.

    Attributes:
        min_confidence: drop a hypothesis of which the teacher is less sure, 0 to 1; not for transducers.
        max_wer: where there is a transcript, drop a hypothesis whose word error rate against it is higher;
        null keeps all.
    """

    min_confidence: float = 0.0
    max_wer: Optional[float] = None


@dataclass
class StageConfig:
    """One stage of the schedule.

    Attributes:
        name: shown in the log.
        weights: loss name to weight; a loss that is not named is not computed.
        share: length as a share of the whole training, above 0 and below 1.
        epochs: length in epochs of the training data.
        steps: length in optimizer steps. A stage without a length runs to the end.
    """

    name: str = MISSING
    weights: Dict[str, float] = MISSING
    share: Optional[float] = None
    epochs: Optional[int] = None
    steps: Optional[int] = None


def _default_stages() -> List[StageConfig]:
    # The first is the paper's. Its second, {ctc: 1.0, skd: 0.25}, did harm in long trainings
    # (docs/choices.md).
    return [
        StageConfig(name="rkd", weights={"rkd": 1.0}, share=0.25),
        StageConfig(name="ctc", weights={"ctc": 1.0, "rkd": 5.0}),
    ]


@dataclass
class TutorConfig:
    """The whole `tutor:` section.

    Attributes:
        teacher: RKD and pseudo-labels come from this one.
        other_teachers: their posteriors are averaged with its own for SKD (Hinton et al., arXiv 1503.02531).
        pool_frames: let a student have longer frames than its teacher; those under one frame are pooled
        (ours).
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    other_teachers: List[TeacherConfig] = field(default_factory=list)
    rkd: RKDConfig = field(default_factory=RKDConfig)
    skd: SKDConfig = field(default_factory=SKDConfig)
    pseudo_labels: PseudoLabelsConfig = field(default_factory=PseudoLabelsConfig)
    pool_frames: bool = False
    stages: List[StageConfig] = field(default_factory=_default_stages)

    def uses(self, loss: str) -> bool:
        """True when any stage gives `loss` a positive weight."""
        return any(stage.weights.get(loss, 0.0) > 0 for stage in self.stages)

    def unused(self) -> List[str]:
        """Settings that were changed for a loss that no stage uses, a sentence for each section."""
        told = []
        for name, loss in (("rkd", "rkd"), ("skd", "skd"), ("pseudo_labels", "pseudo")):
            section = getattr(self, name)
            changed = [
                f.name
                for f in fields(section)
                if getattr(section, f.name) != getattr(type(section)(), f.name)
            ]
            if changed and not self.uses(loss):
                told.append(
                    f"model.tutor.{name} changes {', '.join(changed)}, but no stage gives {loss} a weight: "
                    "no effect."
                )
        return told


def parse_tutor(model_cfg: Any) -> Optional[TutorConfig]:
    """Reads and checks the `tutor:` section of a model config.

    Args:
        model_cfg: the student's config (a mapping); its `tutor` key may be absent or null.

    Returns:
        The checked section, or None when there is none.

    Raises:
        TutorError: an unknown key, a wrong type or an impossible combination, with the key's full path.
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
    _refuse_unknown_keys(plain, TutorConfig, "model.tutor")
    # What stands in a list is built by itself: there OmegaConf reports a key without its place in the list.
    sections = dict(plain)
    if isinstance(sections.get("teacher"), Mapping):
        sections["teacher"] = _given(sections["teacher"], TeacherConfig)
    lists = {key: sections.pop(key, None) for key in _LISTS}
    config = _build(TutorConfig, sections, "model.tutor")
    for key, items in lists.items():
        if items is not None:
            schema = _LISTS[key]
            setattr(
                config,
                key,
                [
                    _build(schema, _given(item, schema), f"model.tutor.{key}[{i}]")
                    for i, item in enumerate(items)
                ],
            )
    _check(config)
    if (model_cfg.get("train_ds") or {}).get("use_dali"):
        raise TutorError(
            "model.train_ds.use_dali is on, but DALI hands out the student's features and the teacher needs "
            "the waveform; "
            "turn it off."
        )
    return config


def _given(section: Mapping[Any, Any], schema: type) -> Mapping[Any, Any]:
    """Null for a key that must be set is the same as leaving it out; and a teacher whose targets are cached
    needs no file.
    """
    without = [
        f.name for f in fields(schema) if f.default == MISSING and section.get(f.name) in (None, MISSING)
    ]
    cached = bool(section.get("cache"))
    return {**section, **{name: "" if cached and name == "model_path" else MISSING for name in without}}


# Lists of sections, and the schema of one.
_LISTS: Dict[str, type] = {"other_teachers": TeacherConfig, "stages": StageConfig}


def _build(schema: type, section: Mapping[Any, Any], path: str) -> Any:
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(section)))
        )
    except MissingMandatoryValue as error:
        key = f"{path}.{error.full_key}"
        what = (
            "the teacher's .nemo file or the name of a pretrained NeMo model"
            if key.endswith("model_path")
            else "it"
        )
        raise TutorError(f"{key} is not set; give {what}.") from None
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if error.full_key else path
        raise TutorError(f"{key}: {_first_line(error)}.") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _refuse_unknown_keys(section: Mapping[Any, Any], schema: type, path: str) -> None:
    types = {f.name: f for f in fields(schema)}
    for key, value in section.items():
        if f"{path}.{key}" in RENAMED_KEYS:
            new = f"{path}.{RENAMED_KEYS[f'{path}.{key}']}"
            raise TutorError(f"{path}.{key} is now called {new}; rename the key.")
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(types)}."
            raise TutorError(f"{path}.{key} is not a key of this section; {hint}")
        nested = _nested_schema(schema, key)
        here = f"{path}.{key}"
        if key in _LISTS:
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TutorError(f"{here} must be a list of {key.replace('_', ' ')}, not {value!r}.")
            for i, item in enumerate(value):
                if not isinstance(item, Mapping):
                    raise TutorError(f"{here}[{i}] must be a section of keys, not {item!r}.")
                _refuse_unknown_keys(item, _LISTS[key], f"{here}[{i}]")
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


def _nested_schema(schema: type, key: str) -> Optional[type]:
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
    if config.skd.frames_around < 0:
        raise TutorError(f"model.tutor.skd.frames_around must be 0 or more, not {config.skd.frames_around}.")
    if config.skd.match_window < 0:
        raise TutorError(f"model.tutor.skd.match_window must be 0 or more, not {config.skd.match_window}.")
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
    if not teacher.model_path.strip() and not teacher.cache:
        raise TutorError(
            f"model.tutor.{key}.model_path is empty; give the teacher's .nemo file or a pretrained name."
        )
    _one_of(f"{key}.precision", teacher.precision, PRECISIONS)
    if not (teacher.weight > 0 and math.isfinite(teacher.weight)):
        raise TutorError(f"model.tutor.{key}.weight must be above 0, not {teacher.weight}.")


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
