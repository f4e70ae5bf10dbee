# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which share of each epoch comes from which manifest (`tutor.manifest_weights`).

NeMo joins plain manifests and draws each row once an epoch. Its own means of weighing them are for other data
sets: `is_concat` makes a stream in which a cache cannot identify utterances and a resumed run draws others,
and Lhotse's `input_cfg` has weights of its own. So only the order of indices is replaced here. The data set
stays NeMo's, with every row once: caches, checks and workers see no difference.

Legend: `N` utterances of an epoch, as many as the manifests have rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nemo.collections.asr.parts.utils.asr_batching import SemiSortBatchSampler
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from nemo_tutornet.data.dataloader import manifest_datasets
from nemo_tutornet.data.manifest_checks import manifests_of
from nemo_tutornet.errors import TutorError

KEY = "model.tutor.manifest_weights"
MANIFESTS = "model.train_ds.manifest_filepath"


@dataclass(frozen=True)
class ManifestShare:
    """What a training draws from one manifest.

    Attributes:
        manifest: its path, as in the config.
        rows: utterances in it that the training keeps.
        hours: of these.
        drawn: utterances in each epoch.
    """

    manifest: str
    rows: int
    hours: float
    drawn: int

    def __str__(self) -> str:
        times = self.drawn / self.rows if self.rows else 0.0
        utterances = "1 utterance" if self.drawn == 1 else f"{self.drawn} utterances"
        drawn = f" ({self.rows} in it, each drawn {times:.2g} times)" if self.drawn != self.rows else ""
        return f"{utterances}, {self.hours * times:.2f} h an epoch{drawn}"


class ManifestMix:
    """Draws the utterances of each epoch, with a given share from each manifest.

    Each manifest is read in random orders, one after the other, from which every epoch takes the next part.
    So over many epochs every utterance of a manifest is drawn equally often, also where an epoch takes only
    a part of it. A draw depends on the seed and the epoch alone: a resumed run and all ranks draw the same.

    Args:
        members: indices in the data set, of each manifest's utterances.
        weights: of the manifests, above 0; their ratio is what counts.
        seed: of the draws.

    Attributes:
        sizes: utterances of each manifest in an epoch; their sum is `N`.
        seed: as given; a resumed run sets that of its beginning.

    Example:
        >>> mix = ManifestMix([[0, 1, 2, 3, 4, 5], [6, 7]], [1.0, 1.0], seed=0)
        >>> mix.sizes, sorted(mix.draw(0)[4:].tolist())
        ([4, 4], [6, 6, 7, 7])
    """

    def __init__(self, members: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> None:
        self._members = [np.asarray(one, dtype=np.int64) for one in members]
        self.seed = seed
        total = sum(map(len, members))
        exact = [total * weight / sum(weights) for weight in weights]
        self.sizes = [int(one) for one in exact]
        # What rounding left over goes to those that lost most.
        left = total - sum(self.sizes)
        for i in sorted(range(len(exact)), key=lambda i: self.sizes[i] - exact[i])[:left]:
            self.sizes[i] += 1

    def __len__(self) -> int:
        return sum(self.sizes)

    def draw(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch `[N]`, manifest by manifest.

        Args:
            epoch: counted from 0.
        """
        return np.concatenate([self._part(i, epoch) for i in range(len(self.sizes))])

    def _part(self, manifest: int, epoch: int) -> np.ndarray:
        members, size = self._members[manifest], self.sizes[manifest]
        begin = epoch * size
        first, last = begin // len(members), max(begin, begin + size - 1) // len(members)
        orders = [
            np.random.default_rng([self.seed, manifest, turn]).permutation(members)
            for turn in range(first, last + 1)
        ]
        offset = begin - first * len(members)
        return np.concatenate(orders)[offset : offset + size]


class MixSampler(DistributedSampler):
    """Single utterances of a mix, for one rank. Lightning leaves a `DistributedSampler` as it is.

    Args:
        mix: what is drawn.
        rank: of this process.
        ranks: their number.
        shuffle: whether the order is random.
    """

    def __init__(self, mix: ManifestMix, rank: int, ranks: int, shuffle: bool) -> None:
        super().__init__(mix, num_replicas=ranks, rank=rank, shuffle=shuffle)  # type: ignore[arg-type]
        self.mix = mix

    def __iter__(self) -> Iterator[int]:
        self.seed = self.mix.seed
        drawn = self.mix.draw(self.epoch)
        # The order is that of `DistributedSampler`: shuffled, padded from the front, and shared by the ranks.
        return (int(drawn[place]) for place in super().__iter__())


class MixSortedSampler(SemiSortBatchSampler):
    """NeMo's batches of utterances of similar length (`use_semi_sorted_batching`), of a mix.

    Args:
        mix: what is drawn.
        like: NeMo's sampler of the whole data set, whose settings are taken over.
    """

    def __init__(self, mix: ManifestMix, like: SemiSortBatchSampler) -> None:
        self.__dict__.update(vars(like))
        self.mix, self._durations = mix, like.durations

    def _make_batches(self) -> list[np.ndarray]:
        drawn = self.mix.draw(self.epoch)
        self.durations = self._durations[drawn]
        return [drawn[batch] for batch in super()._make_batches()]


def manifest_shares(
    loader: Any, train_ds: Mapping[str, Any], weights: Sequence[float] | None
) -> list[ManifestShare]:
    """Returns what an epoch draws from each manifest; nothing for tars, Lhotse and concatenated data sets.

    Args:
        loader: NeMo's dataloader of the training set.
        train_ds: section of the model's config.
        weights: `tutor.manifest_weights`.
    """
    datasets = manifest_datasets(loader)
    if len(datasets) != 1 or isinstance(loader.dataset, IterableDataset):
        return []
    manifests = manifests_of(train_ds, MANIFESTS)
    entries = datasets[0].manifest_processor.collection
    members = _members(entries, manifests)
    sizes = [len(one) for one in members]
    if weights is not None:
        sizes = ManifestMix(members, weights, 0).sizes
    return [
        ManifestShare(manifest, len(found), sum(entries[i].duration or 0.0 for i in found) / 3600, drawn)
        for manifest, found, drawn in zip(manifests, members, sizes, strict=True)
    ]


def mixed_loader(
    loader: Any, train_ds: Mapping[str, Any], weights: Sequence[float], trainer: Any
) -> tuple[Any, ManifestMix]:
    """Returns a dataloader that reads NeMo's data set with the given share of each manifest, and its mix.

    Args:
        loader: NeMo's dataloader of the training set, or one of this function.
        train_ds: section of the model's config.
        weights: `tutor.manifest_weights`.
        trainer: Lightning's.

    Raises:
        TutorError: the number of weights is not that of the manifests, a manifest has no utterance, or the
            data set is not one of plain manifests.
    """
    if isinstance(loader.sampler, MixSampler | MixSortedSampler):  # a second training of the same model
        return loader, loader.sampler.mix
    manifests = manifests_of(train_ds, MANIFESTS)
    if isinstance(loader.dataset, IterableDataset) or len(manifest_datasets(loader)) != 1:
        raise TutorError(
            f"{KEY} is for plain manifests; leave it out, and weigh what Lhotse reads in "
            "model.train_ds.input_cfg."
        )
    if len(weights) != len(manifests):
        raise TutorError(
            f"{KEY} has {len(weights)} weights, and {MANIFESTS} {len(manifests)} manifests; give one each."
        )
    members = _members(manifest_datasets(loader)[0].manifest_processor.collection, manifests)
    for manifest, found in zip(manifests, members, strict=True):
        if not found:
            raise TutorError(
                f"{KEY}: the training keeps no utterance of {manifest}; leave it and its weight out."
            )
    # As Lightning's `DistributedSampler`: without a seed all ranks have 0.
    mix = ManifestMix(members, weights, int(os.environ.get("PL_GLOBAL_SEED", 0)))
    shuffle = bool(train_ds.get("shuffle", True))
    sampler: Any = (
        MixSortedSampler(mix, loader.sampler)
        if isinstance(loader.sampler, SemiSortBatchSampler)
        else MixSampler(mix, trainer.global_rank, trainer.world_size, shuffle)
    )
    mixed = DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )
    return mixed, mix


def _members(entries: Any, manifests: Sequence[str]) -> list[list[int]]:
    """Sorts the indices of a data set's entries by the manifest that they come from.

    NeMo numbers the rows of all manifests together (`id`), and leaves out rows by their duration.
    """
    if len(manifests) == 1:
        return [list(range(len(entries)))]
    ends = np.cumsum([_rows(manifest) for manifest in manifests])
    members: list[list[int]] = [[] for _ in manifests]
    for i, entry in enumerate(entries):
        members[int(np.searchsorted(ends, entry.id, side="right"))].append(i)
    return members


def _rows(manifest: str) -> int:
    """Counts the rows of a manifest as NeMo does."""
    from nemo.utils.data_utils import DataStoreObject

    from nemo_tutornet.utils.files import expand_user

    with open(expand_user(DataStoreObject(manifest).get()), encoding="utf-8") as file:
        return sum(1 for line in file if line.strip())
