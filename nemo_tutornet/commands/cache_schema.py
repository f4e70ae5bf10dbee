# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Choice of a cache's schema: what the stages of a training read of the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.commands.min_posterior import WHOLE_LABELS, choose_min_posterior
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest

# Number of training batches from which the smallest stored posterior of a large label set is chosen.
_SAMPLE_BATCHES = 4


def schema_of_training(
    teacher: LiveTeacher, loader: Any, request: TargetRequest, device: torch.device
) -> CacheSchema:
    """Chooses the schema of a cache from the first batches of a loader.

    Args:
        teacher: see `choose_schema`.
        loader: the training set's.
        request: see `choose_schema`.
        device: where the teacher runs.
    """

    def batches() -> Iterator[TrainingBatch]:
        # Without this, Lhotse's loader would continue after the batches read here.
        if hasattr(loader.dataset, "reset_on_iter"):
            loader.dataset.reset_on_iter = True
        for batch in islice(loader, _SAMPLE_BATCHES):
            yield TrainingBatch(batch[0].to(device), batch[1].to(device))

    return choose_schema(teacher, batches(), request)


def choose_schema(
    teacher: LiveTeacher, batches: Iterable[TrainingBatch], request: TargetRequest
) -> CacheSchema:
    """Chooses the schema of a cache.

    For a large label set, small posteriors are dropped as long as the SKD losses stay almost the same
    (`choose_min_posterior`), unless the stages read them.

    Args:
        teacher: the teacher.
        batches: audio of the training set; read only for a large label set.
        request: the kinds of targets that the stages read.

    Returns:
        The schema.
    """
    labels = floor = None
    if request.posteriors:
        labels = len(teacher.labels) + 1
    if labels is not None and labels > WHOLE_LABELS and not request.small_posteriors:
        samples: list[Tensor] = []
        for audio in batches:
            given = teacher.targets(audio, TargetRequest(posteriors=True))
            assert given.log_probs is not None
            log_probs = given.log_probs.float().cpu()
            samples += [row[:length] for row, length in zip(log_probs, given.lengths.tolist(), strict=True)]
        floor = choose_min_posterior(samples)
    return CacheSchema(
        labels=labels,
        min_posterior=floor,
        width=teacher.hint_layer.width if request.hidden else None,
        hypotheses=request.hypotheses,
        fingerprints=True,
        further_widths=tuple(layer.width for layer in teacher.further_hint_layers) if request.hidden else (),
    )


def request_of_cache(request: TargetRequest, schema: CacheSchema, folder: Path) -> TargetRequest:
    """Returns what a teacher computes for further utterances of a cache: what its schema stores.

    Args:
        request: the kinds of targets that the stages read now.
        schema: schema of the cache, finished or not.
        folder: folder of the cache, for the message.

    Raises:
        TutorError: the stages read targets that the cache does not store.
    """
    stored = TargetRequest(
        hidden=schema.width is not None,
        posteriors=schema.labels is not None,
        hypotheses=schema.hypotheses,
        small_posteriors=schema.labels is not None and schema.min_posterior is None,
    )
    lacking = [
        words
        for words, is_read, is_stored in (
            ("the hint layer", request.hidden, stored.hidden),
            ("posteriors", request.posteriors, stored.posteriors),
            ("hypotheses", request.hypotheses, stored.hypotheses),
            (
                "small posteriors (for a temperature above 1)",
                request.small_posteriors and stored.posteriors,
                stored.small_posteriors,
            ),
        )
        if is_read and not is_stored
    ]
    if lacking:
        raise TutorError(
            f"{folder} is a cache without {' and '.join(lacking)}, which model.tutor.stages read now; give "
            "another folder (--output), or remove this one."
        )
    return stored
