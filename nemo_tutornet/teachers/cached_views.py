# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the targets of an utterance at the speed at which a training plays it.

NeMo does not say which speed it has drawn, but the number of samples does.

Legend: `B` utterances of a batch, `U` utterances of a training set, `V` views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import ORIGINAL, SPEED, View, check_lengths, fewer_rates
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.reader import CacheReader

_RUN = "run `nemo-tutornet cache` with the arguments of this training, it adds what is missing"


def check_views(reader: CacheReader, train_data: UtteranceResolver) -> None:
    """Checks before a training that a cache holds each utterance at every speed of the training set.

    Tar files may hold fewer utterances than their manifest. One that is stored at no speed is therefore not
    missed there. Lhotse's manifests are not read here; only the speeds are compared.

    Args:
        reader: the cache.
        train_data: resolves the utterances of the training set.

    Raises:
        TutorError: a speed or an utterance is missing, or an utterance has the same number of samples at two
            speeds. The message names the first such utterance.
    """
    views = getattr(train_data, "views", (ORIGINAL,))
    lacking = [view for view in views if view.name not in reader.views]
    if lacking:
        fewer = fewer_rates(views, reader.views)
        instead = "" if fewer is None else f", or set {SPEED}.num_rates={fewer}, which it has"
        raise TutorError(
            f"{reader.folder} holds {len(views) - len(lacking)} of the {len(views)} speeds at which "
            f"model.train_ds plays an utterance (missing: {', '.join(map(str, lacking))}); {_RUN}{instead}."
        )
    known = train_data.manifest_utterances
    if not known:
        return
    lengths = stored_lengths(reader, known, views)
    missing = (
        (lengths < 0) & (lengths.max(axis=1, keepdims=True) >= 0) if train_data.is_iterable else lengths < 0
    )
    rows = np.flatnonzero(missing.any(axis=1))
    if len(rows):
        first = known[int(rows[0])]
        if len(views) > 1:
            first = replace(first, view=str(views[int(np.argmax(missing[rows[0]]))]))
        more = f" and {len(rows) - 1} more of {len(known)}" if len(rows) > 1 else ""
        raise TutorError(
            f"{reader.folder} has no targets for {first}{more}; run `nemo-tutornet cache` on the manifest "
            "that you train with, it adds what is missing."
        )
    if len(views) > 1:
        check_lengths(list(map(str, known)), views, lengths)


def stored_lengths(reader: CacheReader, utterances: Sequence[Utterance], views: Sequence[View]) -> np.ndarray:
    """Looks up the number of samples of utterances at several speeds.

    Args:
        reader: the cache.
        utterances: `U` utterances.
        views: `V` views.

    Returns:
        Numbers of samples `[U, V]`, int64; -1 where one is missing.
    """
    columns = [
        reader.samples([replace(utterance, view=view.name) for utterance in utterances]) for view in views
    ]
    return np.stack(columns, axis=1)


def with_views(reader: CacheReader, batch: TrainingBatch) -> list[Utterance]:
    """Tells at which speed each utterance of a batch is played, from its number of samples.

    Args:
        reader: the cache.
        batch: the batch, with its `utterances` `[B]` and `views`. An utterance that has a view, as those of
            Lhotse have, is left as it is.

    Returns:
        The utterances `[B]`, each with its view.

    Raises:
        TutorError: an utterance has a number of samples that it has at no speed in the cache, or at two.
    """
    assert batch.utterances is not None
    utterances = list(batch.utterances)
    if tuple(batch.views) == (ORIGINAL,) or any(view.rate is None and view.name for view in batch.views):
        return utterances
    stored = stored_lengths(reader, utterances, batch.views)
    counts = batch.signal_lengths.cpu().numpy()
    found = stored == counts[:, None]
    if (found.sum(axis=1) != 1).any():
        row = int(np.flatnonzero(found.sum(axis=1) != 1)[0])
        raise _not_told(reader, utterances[row], int(counts[row]), batch.views, stored[row], found[row])
    return [
        replace(utterance, view=batch.views[int(place)].name)
        for utterance, place in zip(utterances, found.argmax(axis=1), strict=True)
    ]


def _not_told(
    reader: CacheReader,
    utterance: Utterance,
    samples: int,
    views: Sequence[View],
    stored: np.ndarray,
    found: np.ndarray,
) -> TutorError:
    """Says why the speed of an utterance cannot be identified."""
    if found.any():
        both = " and ".join(str(view) for view, same in zip(views, found, strict=True) if same)
        return TutorError(
            f"{utterance} has {samples} samples at two speeds of model.train_ds ({both}), so the cache "
            f"{reader.folder} cannot tell them apart; set fewer rates or rates further apart ({SPEED})."
        )
    if (stored < 0).all():
        return TutorError(f"{reader.folder} has no targets for {utterance}; {_RUN}.")
    held = ", ".join(
        f"{count} ({view})" for view, count in zip(views, stored.tolist(), strict=True) if count >= 0
    )
    return TutorError(
        f"{utterance} has {samples} samples in training, but the cache {reader.folder} was built from "
        f"{held}: the audio changed, or model.train_ds plays it at another speed; {_RUN}, or build it again."
    )
