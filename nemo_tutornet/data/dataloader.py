# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which utterance each row of a training batch is, for each of NeMo's dataloaders.

NeMo's datasets can give the place of a sample in their manifest (`return_sample_id`), Lhotse's its cuts
(`return_cuts`); both are turned on in the dataset that a dataloader already has, so that shuffling,
bucketing, workers and ranks stay as they are.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.errors import TutorError

# What NeMo's `augmentor` may do to a waveform without moving anything in time.
TIME_PRESERVING_AUGMENTATIONS = ("white_noise", "noise", "noise_norm", "gain")
# Settings of NeMo's Lhotse dataloader that move or join what is heard, and their harmless value.
TIMING_AUGMENTATIONS = {
    "perturb_speed": False,
    "concatenate_samples": False,
    "truncate_duration": None,
    "cut_into_windows_duration": None,
    "pad_min_duration": None,
    "rir_enabled": False,
}
# Those that change how it sounds, which a student may hear and the teacher of a cache does not.
ACOUSTIC_AUGMENTATIONS = {
    "noise_path": None,
    "lowpass_enabled": False,
    "clipping_enabled": False,
    "compression_enabled": False,
}
# Those with which it does not read every utterance once.
SUBSETTING_OPTIONS = {"slice_length": None, "max_open_streams": None}


def check_augmentation(train_ds: Mapping[str, Any]) -> None:
    """Refuses waveform augmentation that moves time: the cached teacher heard the audio as it is.

    Raises:
        TutorError: names the key.
    """
    for name in train_ds.get("augmentor") or {}:
        if name not in TIME_PRESERVING_AUGMENTATIONS:
            raise TutorError(
                f"model.train_ds.augmentor.{name} may change the audio's time, and the cached teacher heard "
                "it as it is; drop "
                "it, or train with the teacher itself (model.tutor.teacher.cache=null); "
                f"{', '.join(TIME_PRESERVING_AUGMENTATIONS)} and SpecAugment "
                f"do no harm."
            )
    if train_ds.get("use_lhotse"):
        for name, harmless in TIMING_AUGMENTATIONS.items():
            if train_ds.get(name, harmless) not in (harmless, None):
                raise TutorError(
                    f"model.train_ds.{name} changes the audio's time, and the cached teacher heard it as it "
                    "is; drop it, or "
                    f"train with the teacher itself (model.tutor.teacher.cache=null)."
                )


def check_tars(train_ds: Mapping[str, Any], ranks: int) -> None:
    """Refuses tars that NeMo would not all hand out: each rank gets as many (`scatter`), the rest nobody.

    Args:
        train_ds: of the model's config.
        ranks: that share them.

    Raises:
        TutorError: counts them, and says what to change.
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
                f"model.train_ds.tarred_audio_filepaths has {tars} tars, of which {ranks} ranks would leave "
                f"{tars % ranks} out "
                f"(each takes {tars // ranks}); run on a number of devices that divides {tars} "
                "(trainer.devices), or set "
                f"model.train_ds.tarred_shard_strategy=replicate."
            )


def drop_sample_ids(batch: Sequence[Any]) -> tuple[Any, ...]:
    """A batch as NeMo's training step wants it: signal, its lengths, transcripts and theirs, and no ids."""
    return tuple(batch[:4])


class UtteranceResolver:
    """Tells which utterance each row of a batch is.

    Args:
        loader: a dataloader of NeMo's, character or subword, of files, tarred (also bucketed) or Lhotse; its
            dataset is changed.

    Raises:
        TutorError: a dataset of another kind.
    """

    def __init__(self, loader: Any) -> None:
        self._collections: list[Any] = []
        self._starts: list[int] = []
        self._dataset = dataset = loader.dataset
        lhotse = getattr(dataset, "dataset", dataset)  # a tarred one is wrapped
        if hasattr(lhotse, "return_cuts"):
            lhotse.return_cuts = True
            return
        for leaf in _leaves(dataset):
            start = self._starts[-1] + len(self._collections[-1]) if self._starts else 0
            if start and not isinstance(getattr(leaf, "_dataset", None), _Shifted):
                leaf._dataset = _Shifted(leaf._dataset, start)
            leaf.return_sample_id = True
            self._starts.append(start)
            self._collections.append(leaf.manifest_processor.collection)

    def __call__(self, batch: Sequence[Any]) -> list[Utterance]:
        """The utterances of a batch's rows."""
        if not self._collections:
            return [_of_cut(cut) for cut in batch[4]]
        return [self._of_sample(int(sample)) for sample in batch[4]]

    @property
    def manifest_utterances(self) -> list[Utterance]:
        """Every utterance of the manifests, in their order; none where a dataloader reads them as it goes
        (Lhotse).
        """
        return [_of_entry(entry) for collection in self._collections for entry in collection]

    @property
    def is_iterable(self) -> bool:
        """Whether audio comes out of tars, which need not hold all that the manifests name."""
        return isinstance(self._dataset, IterableDataset)

    def _of_sample(self, sample: int) -> Utterance:
        place = bisect.bisect_right(self._starts, sample) - 1
        return _of_entry(self._collections[place][sample - self._starts[place]])


class _Shifted:
    """A tarred dataset's samples with ids that are unique among the buckets it is chained with."""

    def __init__(self, samples: Iterable[tuple[Any, ...]], start: int) -> None:
        self._samples, self._start = samples, start

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for *sample, number in self._samples:
            yield (*sample, number + self._start)


def _leaves(dataset: Any) -> list[Any]:
    """The datasets that read manifests, in or under a dataset."""
    if hasattr(dataset, "manifest_processor") and hasattr(dataset, "return_sample_id"):
        return [dataset]
    if hasattr(dataset, "wrapped_dataset"):
        return _leaves(dataset.wrapped_dataset)
    parts = [leaf for part in getattr(dataset, "datasets", []) for leaf in _leaves(part)]
    if parts and all(hasattr(leaf, "_dataset") for leaf in parts):
        return parts
    raise TutorError(
        f"model.train_ds makes a {type(dataset).__name__}, in which a cache cannot tell utterances apart; "
        "use a manifest of "
        f"files, a tarred set or Lhotse (model.train_ds.use_lhotse=true), or train with the teacher itself "
        f"(model.tutor.teacher.cache=null)."
    )


def _of_entry(entry: Any) -> Utterance:
    return Utterance(str(entry.audio_file), float(entry.offset or 0.0), entry.duration)


def _of_cut(cut: Any) -> Utterance:
    """The utterance that a cut is, by what no augmentation changes.

    Its id is not that: noise gives a cut a random one, a filter, a codec and the sharing among ranks give it
    an ending, and without a `sampling_rate` in the manifest it is the file's name without its folder.
    """
    if hasattr(cut, "tracks"):  # noise was mixed in; the speech is the first that is no padding
        cut = next(track.cut for track in cut.tracks if type(track.cut).__name__ != "PaddingCut")
    source = cut.recording.sources[0].source
    if isinstance(source, str) and source:
        name = source if cut.channel in (0, [0]) else f"{source}#{cut.channel}"
        return Utterance(name, float(cut.start), float(cut.duration))
    # Out of a tar: the id of what is said is the name there. A part of a file is a recording of its own,
    # which begins at 0: where it was tells NeMo's manifest, and in Lhotse's Shar how long before it what is
    # said began.
    said, row = cut.supervisions[0], cut.custom or {}
    offset = float(row.get("offset") or 0.0) if "tar_origin" in row else 0.0
    return Utterance(str(said.id), float(cut.start - said.start) + offset, float(cut.duration))
