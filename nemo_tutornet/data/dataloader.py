# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The utterance behind each row of a training batch, for each of NeMo's dataloaders.

NeMo's datasets can return a sample's index in their manifest (`return_sample_id`), and NeMo's Lhotse dataset
the cuts (`return_cuts`). Both options are turned on in the existing dataset of a dataloader, so shuffling,
bucketing, workers and ranks do not change.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.data.views import ORIGINAL, View
from nemo_tutornet.errors import TutorError


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of a training set, its parts by name.

    Legend: `B` utterances, `N` samples, `L` labels.

    Attributes:
        signal: waveform `[B, N]`.
        signal_lengths: valid samples `[B]`.
        transcripts: labels `[B, L]`; None where only audio is wanted.
        transcript_lengths: valid labels `[B]`, 0 where there is no transcript.
        sample_ids: what NeMo's dataset gives to tell the rows apart; None where it was not asked for.
        utterances: the utterance of each row (`UtteranceResolver`); None where nobody has to know.
        views: the speeds at which the training set plays its utterances.
        is_augmented: the sound may not be that of the files, or of a view of them.
    """

    signal: Tensor
    signal_lengths: Tensor
    transcripts: Any = None
    transcript_lengths: Any = None
    sample_ids: Any = None
    utterances: Sequence[Utterance] | None = None
    views: Sequence[View] = (ORIGINAL,)
    is_augmented: bool = False

    @classmethod
    def from_nemo(cls, batch: Sequence[Any]) -> TrainingBatch:
        """Names the parts of a batch of NeMo's dataloader."""
        return cls(*batch[:5])

    def for_nemo(self) -> tuple[Any, ...]:
        """Returns the batch as NeMo's training step takes it, without ids."""
        return self.signal, self.signal_lengths, self.transcripts, self.transcript_lengths


class UtteranceResolver:
    """Finds the utterance of each row of a batch.

    Args:
        loader: a dataloader of NeMo, for characters or subwords, of files, tars (also bucketed) or Lhotse
            cuts. Its dataset is changed to return sample ids or cuts.
        views: the speeds at which it plays its utterances. A Lhotse cut says which of them it is; of NeMo's
            own datasets nobody says it.

    Attributes:
        collections: NeMo's manifest entries, one collection for each bucket; none for Lhotse.
        views: the argument.

    Raises:
        TutorError: the dataset is of another kind.
    """

    def __init__(self, loader: Any, views: Sequence[View] = (ORIGINAL,)) -> None:
        self.views = tuple(views)
        self.collections: list[Any] = []
        self._starts: list[int] = []
        self._dataset = dataset = loader.dataset
        lhotse = getattr(dataset, "dataset", dataset)  # Lhotse's tarred dataset is wrapped in another
        if hasattr(lhotse, "return_cuts"):
            lhotse.return_cuts = True
            return
        for leaf in _leaves(dataset):
            start = self._starts[-1] + len(self.collections[-1]) if self._starts else 0
            if start and not isinstance(getattr(leaf, "_dataset", None), _Shifted):
                leaf._dataset = _Shifted(leaf._dataset, start)
            leaf.return_sample_id = True
            self._starts.append(start)
            self.collections.append(leaf.manifest_processor.collection)

    def __call__(self, batch: TrainingBatch) -> list[Utterance]:
        """Returns the utterances of a batch's rows."""
        if not self.collections:
            return [_of_cut(cut, len(self.views) > 1) for cut in batch.sample_ids]
        # One copy of all ids from a GPU; a copy of each would wait for it as often.
        return [self._of_sample(sample) for sample in torch.as_tensor(batch.sample_ids).tolist()]

    @property
    def manifest_utterances(self) -> list[Utterance]:
        """All utterances of the manifests, in order; empty for Lhotse, which reads manifests lazily."""
        return [utterance_of(entry) for collection in self.collections for entry in collection]

    @property
    def is_iterable(self) -> bool:
        """Whether the dataset is iterable: its tars need not contain every utterance of the manifests."""
        return isinstance(self._dataset, IterableDataset)

    def _of_sample(self, sample: int) -> Utterance:
        bucket = bisect.bisect_right(self._starts, sample) - 1
        return utterance_of(self.collections[bucket][sample - self._starts[bucket]])


class _Shifted:
    """Adds an offset to the sample ids of one tarred bucket, so that they are unique among all buckets."""

    def __init__(self, samples: Iterable[tuple[Any, ...]], start: int) -> None:
        self._samples, self._start = samples, start

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for *sample, sample_id in self._samples:
            yield (*sample, sample_id + self._start)


def manifest_datasets(loader: Any) -> list[Any]:
    """Returns NeMo's data sets that read a dataloader's manifests; none for Lhotse, which reads lazily.

    Args:
        loader: a dataloader of NeMo, for characters or subwords, of files, tars (also bucketed) or Lhotse
            cuts.
    """
    try:
        return _leaves(loader.dataset)
    except TutorError:  # Lhotse, or a data set of one's own
        return []


def manifest_entries(loader: Any) -> list[Any]:
    """Returns NeMo's entries of all rows of a dataloader's manifests; none for Lhotse.

    Args:
        loader: as for `manifest_datasets`.
    """
    return [entry for dataset in manifest_datasets(loader) for entry in dataset.manifest_processor.collection]


def _leaves(dataset: Any) -> list[Any]:
    """Finds the datasets that read manifests, inside any wrappers of a dataset."""
    if hasattr(dataset, "manifest_processor") and hasattr(dataset, "return_sample_id"):
        return [dataset]
    if hasattr(dataset, "wrapped_dataset"):
        return _leaves(dataset.wrapped_dataset)
    parts = [leaf for part in getattr(dataset, "datasets", []) for leaf in _leaves(part)]
    if parts and all(hasattr(leaf, "_dataset") for leaf in parts):
        return parts
    raise TutorError(
        f"model.train_ds makes a {type(dataset).__name__}, in which a cache cannot identify utterances; use "
        "a manifest of files, a tarred set or Lhotse (model.train_ds.use_lhotse=true), or train with the "
        "teacher itself (model.tutor.teacher.cache=null)."
    )


def utterance_of(entry: Any) -> Utterance:
    """Returns the utterance of an entry of NeMo's manifests."""
    return Utterance(str(entry.audio_file), float(entry.offset or 0.0), entry.duration)


def speech_of(cut: Any) -> Any:
    """Returns a Lhotse cut, or its first track that is not padding where noise was mixed in."""
    if not hasattr(cut, "tracks"):
        return cut
    return next(track.cut for track in cut.tracks if type(track.cut).__name__ != "PaddingCut")


def _of_cut(cut: Any, perturbed: bool = False) -> Utterance:
    """Returns the utterance of a Lhotse cut, from properties that no augmentation changes.

    The cut's id is not such a property. Mixing in noise replaces it by a random one. A filter, a codec and
    the distribution among ranks append to it. Without a `sampling_rate` in the manifest, it is the file's
    name without its folder.

    Args:
        cut: the cut.
        perturbed: the data set perturbs the speed. Its copies have other times, from which those of the
            original are computed; they may be a sample off, but are always the same.
    """
    cut = speech_of(cut)
    factor = _speed_factor(cut) if perturbed else None
    source = cut.recording.sources[0].source
    if isinstance(source, str) and source:
        name = source if cut.channel in (0, [0]) else f"{source}#{cut.channel}"
        offset = _at_recorded_speed(cut.start, cut, factor)
    else:
        # The audio comes from a tar, and the supervision's id is its name there. A part of a file is a
        # recording of its own that starts at 0. Its offset in the file is in NeMo's manifest; in Lhotse's
        # Shar format it is how long before the cut the supervision starts.
        supervision, row = cut.supervisions[0], cut.custom or {}
        name = str(supervision.id) if factor is None else str(supervision.id).removesuffix(f"_sp{factor}")
        offset = _at_recorded_speed(cut.start, cut, factor) - _at_recorded_speed(
            supervision.start, cut, factor
        )
        offset += float(row.get("offset") or 0.0) if "tar_origin" in row else 0.0
    view = "" if factor is None else f"perturb_speed {factor}"
    return Utterance(name, offset, _at_recorded_speed(cut.duration, cut, factor), view)


def _speed_factor(cut: Any) -> float | None:
    """Returns the factor of the last speed perturbation of a cut; None where there is none."""
    found = None
    for transform in cut.recording.transforms or []:
        if isinstance(transform, Mapping):  # as a manifest has it
            if transform.get("name") == "Speed":
                found = float(transform["kwargs"]["factor"])
        elif type(transform).__name__ == "Speed":
            found = float(transform.factor)
    return found


def _at_recorded_speed(seconds: float, cut: Any, factor: float | None) -> float:
    """Undoes what a speed perturbation did to a time, as Lhotse does to read the audio."""
    if factor is None:
        return float(seconds)
    from lhotse.utils import compute_num_samples, perturb_num_samples

    sign, rate = (-1 if seconds < 0 else 1), cut.sampling_rate
    return sign * perturb_num_samples(compute_num_samples(abs(seconds), rate), 1 / factor) / float(rate)
