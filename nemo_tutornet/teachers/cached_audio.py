# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares the audio of a training set with the audio that a cache was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from nemo.utils import logging

from nemo_tutornet.data.clean_audio import clean_samples
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.train_settings import changes_sound, reading_of
from nemo_tutornet.data.views import kept_random_state, views_of
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.fingerprint import fingerprints, same_audio
from nemo_tutornet.target_cache.layout import differences
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.target_cache.records import BatchTargets, Kinds

# Follows the folder of a cache.
UNCHECKED_AUDIO = (
    "an earlier version built this cache, without a record of the channel and the content of the audio, so "
    "audio that has changed since is found only by its length; build the cache again to have it checked."
)
# Files that are compared before a training whose batches are augmented.
_MOST_FILES = 100


def check_reading(reader: CacheReader, train_ds: Mapping[str, Any], loader: Any) -> None:
    """Checks before a training that its set reads the samples that the cache was built from.

    Batches with augmented sound cannot be compared later. A part of their files is therefore compared here:
    up to `_MOST_FILES`, spread over the manifest; none from tars or with Lhotse.

    Args:
        reader: the cache.
        train_ds: section of the model's config.
        loader: its dataloader.

    Raises:
        TutorError: another channel or another setting is read, or a file has other audio.
    """
    stored = reader.provenance.get("audio")
    if stored is None or not reader.schema.fingerprints:
        logging.warning(f"{reader.folder}: {UNCHECKED_AUDIO}")
    found = "" if stored is None else differences(stored, reading_of(train_ds), "model.train_ds")
    if found:
        raise TutorError(
            f"{reader.folder} was built from other samples of the audio ({found}); set what it was built "
            "with, or build another cache."
        )
    if not (changes_sound(train_ds) and reader.schema.fingerprints):
        return
    view = views_of(train_ds)[0]  # the audio as it was recorded, unless it is never played so
    augmentor = view.augmentor()
    for utterance, samples in clean_samples(loader, _MOST_FILES):
        utterance = replace(utterance, view=view.name)
        segment = SimpleNamespace(_samples=samples.numpy())
        with kept_random_state():
            augmentor.perturb(segment)
        samples = torch.from_numpy(segment._samples).float()
        if utterance in reader:
            batch = TrainingBatch(samples[None], torch.tensor([len(samples)]), utterances=[utterance])
            check_same_audio(reader, reader.read([utterance], Kinds()), batch)


def check_same_audio(reader: CacheReader, stored: BatchTargets, batch: TrainingBatch) -> None:
    """Checks that the audio of a batch is what the cache was built from.

    Args:
        reader: the cache.
        stored: its targets of the batch, in the batch's order.
        batch: the batch, with its `utterances`. Only the lengths are compared if its sound is augmented, or
            if an earlier version built the cache.

    Raises:
        TutorError: an utterance has other audio.
    """
    assert batch.utterances is not None
    lengths = batch.signal_lengths.cpu()
    different = (stored.samples != lengths).nonzero()
    if len(different):
        row = int(different[0])
        raise TutorError(
            f"{batch.utterances[row]} has {int(lengths[row])} samples in training, but the cache "
            f"{reader.folder} was built from {int(stored.samples[row])}: the audio changed, or something in "
            "model.train_ds changes its time; build the cache again or drop that."
        )
    if stored.fingerprints is None or batch.is_augmented:
        return
    same = same_audio(stored.fingerprints, fingerprints(batch.signal, batch.signal_lengths))
    if not bool(same.all()):
        row = int((~same).nonzero()[0])
        raise TutorError(
            f"{batch.utterances[row]} has other audio than the cache {reader.folder} was built from: the "
            "file was overwritten, or is read in another way; remove that folder and build the cache again, "
            "or bring the audio back."
        )
