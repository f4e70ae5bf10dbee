# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The speeds at which a training set plays each utterance: the views of which a cache holds the targets.

NeMo's `SpeedPerturbation` draws from `num_rates` rates and resamples the audio, and Lhotse's `perturb_speed`
plays each utterance at three speeds. Each is a fixed function of the audio, so a teacher can be run on it
once. Views are ours; "A good teacher is patient and consistent" (arXiv 2106.05237) says why teacher and
student should be given the same one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from nemo_tutornet.errors import TutorError

SPEED = "model.train_ds.augmentor.speed"
LIVE = "train with the teacher itself (model.tutor.teacher.cache=null)"
# NeMo's default.
_NUM_RATES = 5
# Lhotse's factors, as NeMo's dataloader has them: 1.1 is faster.
_FACTORS = (0.9, 1.1)


@dataclass(frozen=True)
class View:
    """One speed of an utterance.

    Attributes:
        name: part of the key in a cache; empty for the utterance as it was recorded.
        length: length in relation to the utterance as it was recorded.
        rate: what NeMo's perturbation draws; None where it is not NeMo's.
        source_rate: `sr` of NeMo's perturbation, in Hz.
        resample_type: of NeMo's perturbation.
        bounds: smallest and largest rate of NeMo's perturbation.
    """

    name: str = ""
    length: float = 1.0
    rate: float | None = None
    source_rate: int = 0
    resample_type: str = ""
    bounds: tuple[float, float] = (1.0, 1.0)

    def __str__(self) -> str:
        if self.rate is not None:
            return f"rate {self.rate:.5g}"
        return self.name or "as recorded"

    def augmentor(self) -> Any:
        """Returns NeMo's augmentor that always plays this speed."""
        from nemo.collections.asr.parts.preprocessing.perturb import AudioAugmentor, SpeedPerturbation

        if self.rate is None:
            return AudioAugmentor()
        perturbation = SpeedPerturbation(self.source_rate, self.resample_type, self.rate, self.rate, 1)
        return AudioAugmentor([(1.0, perturbation)])

    def samples_of(self, samples: int) -> int:
        """Returns the number of samples that NeMo makes of an utterance at this speed.

        Args:
            samples: of the utterance as it was recorded.
        """
        return samples if self.rate is None else int(np.ceil(samples * self.length))


ORIGINAL = View()
LHOTSE_VIEWS = (ORIGINAL, *(View(f"perturb_speed {factor}", 1 / factor) for factor in _FACTORS))


def views_of(train_ds: Mapping[str, Any]) -> tuple[View, ...]:
    """Returns every speed at which a training set may play an utterance, the recorded one first.

    Args:
        train_ds: section of the model's config.

    Raises:
        TutorError: the speeds cannot be listed one by one; the message says what to set.

    Example:
        >>> speed = {"prob": 0.8, "sr": 16000, "resample_type": "scipy", "num_rates": 2}
        >>> [str(view) for view in views_of({"augmentor": {"speed": speed}})]
        ['as recorded', 'rate 0.9', 'rate 1.1']
        >>> [str(view) for view in views_of({"use_lhotse": True, "perturb_speed": True})]
        ['as recorded', 'perturb_speed 0.9', 'perturb_speed 1.1']
    """
    if train_ds.get("use_lhotse"):
        perturbed = any(section.get("perturb_speed") for section in lhotse_sections(train_ds))
        return LHOTSE_VIEWS if perturbed else (ORIGINAL,)
    settings = (train_ds.get("augmentor") or {}).get("speed")
    return (ORIGINAL,) if settings is None else _nemo_views(settings)


def lhotse_sections(train_ds: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the sections of a Lhotse data set that have settings of their own: itself, and with
    `multi_config` the sections inside.

    Args:
        train_ds: section of the model's config, with `use_lhotse`.
    """
    inner = train_ds.values() if train_ds.get("multi_config") else ()
    return [train_ds, *(section for section in inner if isinstance(section, Mapping))]


def _nemo_views(settings: Any) -> tuple[View, ...]:
    if not isinstance(settings, Mapping) or settings.get("prob") is None:
        raise TutorError(f"{SPEED} has no prob, the share of the utterances that NeMo perturbs; set it.")
    if not settings["prob"]:
        return (ORIGINAL,)
    number = settings.get("num_rates", _NUM_RATES)
    if type(number) is not int or number < 1:
        raise TutorError(
            f"{SPEED}.num_rates is {number}, so NeMo draws speeds from a whole range, and a cache cannot "
            f"hold every one; set {SPEED}.num_rates to the number of speeds, e.g. {_NUM_RATES}, or {LIVE}."
        )
    slowest, fastest = float(settings.get("min_speed_rate", 0.9)), float(settings.get("max_speed_rate", 1.1))
    source, kind = settings.get("sr"), settings.get("resample_type")
    if type(source) is not int or source < 1 or min(slowest, fastest) <= 0:
        raise TutorError(
            f"{SPEED} has sr={source} and rates from {slowest:g} to {fastest:g}; set sr to the sample rate "
            "of the audio and the rates above 0."
        )
    found: dict[str, View] = {}
    if settings["prob"] < 1:
        found[""] = ORIGINAL
    for rate in np.linspace(slowest, fastest, number, endpoint=True).tolist():
        target = int(source * rate)
        view = ORIGINAL
        if target != source:
            name = f"speed {target}/{source} {kind}"
            view = View(name, target / source, rate, source, str(kind), (slowest, fastest))
            _check_resampling(view)
        found.setdefault(view.name, view)
    return tuple(sorted(found.values(), key=lambda view: (view.name != "", view.length)))


@lru_cache(maxsize=1000)
def _check_resampling(view: View) -> None:
    """Refuses a rate at which NeMo leaves the audio as it is, with a warning in its log only."""
    from nemo.utils import logging

    noise = np.random.default_rng(0).standard_normal(view.source_rate).astype(np.float32)
    segment = SimpleNamespace(_samples=noise)
    try:
        with logging.temp_verbosity(logging.ERROR), kept_random_state():
            view.augmentor().perturb(segment)
    except ValueError as error:  # an unknown resample_type
        raise TutorError(f"{SPEED} is refused by NeMo ({error}); fix it.") from None
    if segment._samples is noise:
        raise TutorError(
            f"{SPEED}.resample_type is {view.resample_type}, with which NeMo cannot resample here and leaves "
            "the audio as it is (the kaiser ones need the package resampy); set it to scipy."
        )


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restores Python's random state. NeMo's augmentation draws from it, and a training must not notice."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def with_speeds(train_ds: Mapping[str, Any], number: int) -> None:
    """Sets the number of speeds of a training set (`nemo-tutornet cache --views`).

    Args:
        train_ds: section of the model's config; changed.
        number: of rates, as NeMo's `num_rates`.

    Raises:
        TutorError: the section has no speed perturbation, or one whose speeds are fixed.
    """
    if train_ds.get("use_lhotse"):
        if views_of(train_ds) == (ORIGINAL,):
            raise TutorError(
                f"--views is {number}, but model.train_ds has no perturb_speed; set "
                "model.train_ds.perturb_speed=true, or leave --views out."
            )
        if number != len(LHOTSE_VIEWS):
            raise TutorError(
                f"--views is {number}, but Lhotse's perturb_speed always has {len(LHOTSE_VIEWS)} speeds; "
                "leave --views out."
            )
        return
    settings: Any = (train_ds.get("augmentor") or {}).get("speed")
    if not isinstance(settings, Mapping):
        raise TutorError(
            f"--views is {number}, but model.train_ds has no speed perturbation; set {SPEED} as for the "
            "training, or leave --views out."
        )
    settings["num_rates"] = number  # type: ignore[index]


def fewer_rates(views: Sequence[View], stored: Sequence[str]) -> int | None:
    """Returns the largest `num_rates` with which a training plays no other speeds than those in a cache.

    Args:
        views: the speeds of the training as it is.
        stored: names of the views in the cache.

    Returns:
        The number; None where fewer rates do not help.
    """
    view = next((view for view in views if view.rate is not None), None)
    if view is None or (ORIGINAL in views and ORIGINAL.name not in stored):
        return None
    settings = {
        "prob": 1.0,
        "sr": view.source_rate,
        "resample_type": view.resample_type,
        "min_speed_rate": view.bounds[0],
        "max_speed_rate": view.bounds[1],
    }
    for number in range(len(views) - 1, 0, -1):
        if all(one.name in stored for one in _nemo_views({**settings, "num_rates": number})):
            return number
    return None


def check_lengths(names: Sequence[str], views: Sequence[View], lengths: np.ndarray) -> None:
    """Refuses two speeds at which an utterance has the same number of samples, which identifies a speed.

    Args:
        names: of the utterances, `U` of them.
        views: the speeds, `V` of them.
        lengths: numbers of samples `[U, V]`; negative where a number is not known.

    Raises:
        TutorError: names the first such utterance and both speeds.
    """
    order = np.argsort(lengths, axis=1, kind="stable")
    ranked = np.take_along_axis(lengths, order, axis=1)
    same = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)
    if not same.any():
        return
    row, place = (int(value) for value in np.argwhere(same)[0])
    one, other = (views[int(order[row, place + i])] for i in (0, 1))
    raise TutorError(
        f"{names[row]} has {int(ranked[row, place])} samples at two speeds of model.train_ds ({one} and "
        f"{other}), so a cache cannot tell them apart; set fewer rates or rates further apart ({SPEED}), or "
        f"leave that utterance out."
    )
