# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cache would hold, before anything is built: hours and megabytes for each speed of a training set."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from nemo_tutornet.commands.cache_builder import split_targets
from nemo_tutornet.commands.cache_schema import choose_schema
from nemo_tutornet.data.dataloader import TrainingBatch, manifest_entries
from nemo_tutornet.data.lhotse_rows import lhotse_rows
from nemo_tutornet.data.train_settings import check_augmentation
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import views_of
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.fingerprint import fingerprints
from nemo_tutornet.target_cache.records import encode
from nemo_tutornet.target_cache.schema import index_of
from nemo_tutornet.teachers.live import LiveTeacher

_INDEX_BYTES = {"U32": 4, "U64": 8}
# Rows of Lhotse's manifests that are read at most.
_MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class ViewSize:
    """What a cache would hold at one speed.

    Attributes:
        view: the speed, as text.
        hours: hours of audio.
        megabytes: size in units of 10^6 bytes.
    """

    view: str
    hours: float
    megabytes: float


def cache_sizes(student: Any, distiller: Distiller, batch: TrainingBatch) -> list[ViewSize]:
    """Computes what `nemo-tutornet cache` would write for a training, from the targets of one batch.

    Args:
        student: the student, with its training dataloader.
        distiller: its distiller.
        batch: a batch of the training set.

    Returns:
        One entry for each speed; none where the teacher is cached already, where the training cannot be
        served by a cache, and where durations are not known.
    """
    teacher, train_ds = distiller.teacher, student.cfg.train_ds
    request = distiller.objective.request(distiller.schedule.stages)
    if not isinstance(teacher, LiveTeacher) or not request:
        return []
    try:
        check_augmentation(train_ds)
        views = views_of(train_ds)
        seconds = _seconds(student)
    except TutorError:
        return []
    if seconds is None:
        return []
    audio = TrainingBatch(batch.signal, batch.signal_lengths)
    schema = choose_schema(teacher, [audio], request)
    given = teacher.targets(audio, request)
    prints = fingerprints(audio.signal, audio.signal_lengths)
    records = [
        encode(Utterance(""), targets, schema)
        for targets in split_targets(given, audio.signal_lengths, teacher, prints)
    ]
    size = sum(array.nbytes for array in chain.from_iterable(record.values() for record in records))
    size += len(records) * sum(_INDEX_BYTES[kind] for kind in index_of(schema).values())
    rate = size / (float(audio.signal_lengths.sum()) / teacher.sample_rate)
    return [
        ViewSize(str(view), seconds * view.length / 3600, rate * seconds * view.length / 1e6)
        for view in views
    ]


def _seconds(student: Any) -> float | None:
    """Sums the durations of a training set; None where one is not known."""
    train_ds = student.cfg.train_ds
    if train_ds.get("use_lhotse"):
        return sum(seconds for _, _, seconds in lhotse_rows(train_ds, "model.train_ds", _MOST_ROWS))
    durations = [entry.duration for entry in manifest_entries(student._train_dl)]
    return None if not durations or None in durations else float(sum(durations))
