# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of a training set that decide whether cached targets match it, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tutornet.data.views import LIVE, lhotse_sections, views_of
from nemo_tutornet.errors import TutorError

# The entries of NeMo's `augmentor` that move nothing in time. `impulse` is one with `shift_impulse`.
TIME_PRESERVING_AUGMENTATIONS = ("white_noise", "noise", "noise_norm", "gain", "rir_noise_aug")
# Settings of NeMo's Lhotse dataloader that move, cut or join audio, and their neutral value.
TIMING_AUGMENTATIONS = {
    "perturb_speed": False,
    "concatenate_samples": False,
    "truncate_duration": None,
    "cut_into_windows_duration": None,
    "pad_min_duration": None,
}
# Settings that change the sound only: allowed for the student, but turned off while a cache is built. Lhotse
# moves a room's response so that the direct sound comes first.
ACOUSTIC_AUGMENTATIONS = {
    "noise_path": None,
    "rir_enabled": False,
    "lowpass_enabled": False,
    "clipping_enabled": False,
    "compression_enabled": False,
}
# Settings with which the dataloader does not read every utterance exactly once, and their neutral value.
SUBSETTING_OPTIONS = {"slice_length": None, "max_open_streams": None}
# Settings that decide which samples are read from a file, and their neutral value.
READING_OPTIONS = {"channel_selector": None, "trim_silence": False, "int_values": False}


def reading_of(train_ds: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a data set that decide which samples are read from a file, as JSON values.

    Args:
        train_ds: section of the model's config.

    Example:
        >>> reading_of({"channel_selector": 1, "batch_size": 4})
        {'channel_selector': 1, 'trim_silence': False, 'int_values': False}
    """
    found: dict[str, Any] = {}
    for name, neutral in READING_OPTIONS.items():
        value = train_ds.get(name)
        value = neutral if value is None else value
        found[name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return found


def changes_sound(train_ds: Mapping[str, Any]) -> bool:
    """Returns whether augmentation changes the sound of a data set, so that it is not that of its files.

    Speed perturbation does not count: its views are in the cache.

    Args:
        train_ds: section of the model's config.

    Example:
        >>> changes_sound({"augmentor": {"white_noise": {"prob": 0.5}}}), changes_sound({"noise_path": None})
        (True, False)
    """
    augmented = any(
        section.get(name, neutral) not in (neutral, None)
        for section in lhotse_sections(train_ds)
        for name, neutral in ACOUSTIC_AUGMENTATIONS.items()
    )
    return any(name != "speed" for name in train_ds.get("augmentor") or {}) or augmented


def check_augmentation(train_ds: Mapping[str, Any]) -> None:
    """Rejects augmentation with which the targets in a cache would no longer match the audio.

    Speed perturbation with discrete rates is allowed: the cache holds targets at each speed.

    Args:
        train_ds: section of the model's config.

    Raises:
        TutorError: the section has such an augmentation; the message names the key.

    Example:
        >>> check_augmentation({"augmentor": {"white_noise": {"prob": 0.5}}})
        >>> check_augmentation({"augmentor": {"shift": {"prob": 0.5}}})
        Traceback (most recent call last):
        nemo_tutornet.errors.TutorError: model.train_ds.augmentor.shift may change the timing ...
    """
    for name, settings in (train_ds.get("augmentor") or {}).items():
        if name in TIME_PRESERVING_AUGMENTATIONS:
            continue
        key = f"model.train_ds.augmentor.{name}"
        if name == "impulse":
            if not isinstance(settings, Mapping) or not settings.get("shift_impulse"):
                raise TutorError(
                    f"{key} delays the audio by the path from the source to the microphone, but the cached "
                    f"targets are of the original audio; set {key}.shift_impulse=true, which takes the delay "
                    f"out, remove it, or {LIVE}."
                )
        elif name != "speed":
            raise TutorError(
                f"{key} may change the timing of the audio, but the cached targets "
                f"are of the original audio; remove it, or {LIVE}; "
                f"{', '.join(TIME_PRESERVING_AUGMENTATIONS)}, impulse with shift_impulse, speed and "
                "SpecAugment are allowed."
            )
        elif train_ds.get("use_lhotse"):
            raise TutorError(
                f"{key} is not read by Lhotse; set model.train_ds.perturb_speed=true instead, or remove it."
            )
    for section in lhotse_sections(train_ds) if train_ds.get("use_lhotse") else ():
        for name, neutral in TIMING_AUGMENTATIONS.items():
            if name != "perturb_speed" and section.get(name, neutral) not in (neutral, None):
                raise TutorError(
                    f"model.train_ds.{name} changes the timing of the audio, but the cached targets are of "
                    f"the original audio; remove it, or {LIVE}."
                )
    views_of(train_ds)


def check_tars(train_ds: Mapping[str, Any], ranks: int) -> None:
    """Rejects a number of tars that the ranks do not divide.

    With the strategy `scatter`, NeMo gives each rank the same number of tars and drops the remaining ones.

    Args:
        train_ds: section of the model's config.
        ranks: number of ranks that share the tars.

    Raises:
        TutorError: tars would be dropped; the message counts them.

    Example:
        >>> check_tars({"is_tarred": False}, ranks=4)
    """
    strategy = train_ds.get("tarred_shard_strategy", "scatter")
    if train_ds.get("use_lhotse") or not train_ds.get("is_tarred") or strategy != "scatter":
        return
    from nemo.collections.asr.data.audio_to_text import expand_sharded_filepaths
    from nemo.collections.asr.data.audio_to_text_dataset import convert_to_config_list

    for bucket in convert_to_config_list(train_ds["tarred_audio_filepaths"]):
        tars = len(
            expand_sharded_filepaths(bucket[0] if len(bucket) == 1 else list(bucket), "replicate", 1, 0)
        )
        if tars % ranks:
            raise TutorError(
                f"model.train_ds.tarred_audio_filepaths has {tars} tars, of which {ranks} ranks would skip "
                f"{tars % ranks} (each reads {tars // ranks}); run on a number of devices that divides "
                f"{tars} (trainer.devices), or set model.train_ds.tarred_shard_strategy=replicate."
            )
