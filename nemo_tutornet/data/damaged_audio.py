# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio files that cannot be decoded: named, and in a training replaced as long as they are few.

The header of a truncated file is whole, so the checks of a manifest accept it. NeMo's data set then fails in
the middle of an epoch, with an error that does not name the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch

from nemo_tutornet.data.clean_audio import decoded
from nemo_tutornet.data.damage import Damaged, Reader, allow_damaged
from nemo_tutornet.data.damaged_lhotse import decode_lhotse, guard_lhotse
from nemo_tutornet.data.damaged_tars import decode_tars, guard_tars
from nemo_tutornet.data.dataloader import manifest_datasets
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.progress import PartReport, no_report


class GuardedSamples:
    """Reads the samples of NeMo's data set of files, in place of its method `_process_sample`.

    A sample whose audio cannot be decoded is replaced by the next one, so that batches keep their size and
    every row its transcript and id. All workers share the list of damaged samples.

    Args:
        dataset: NeMo's data set of files.
        section: the section of the config that it comes from, for messages.
        most: share of the samples that may be damaged; 0 for none.
    """

    def __init__(self, dataset: Any, section: str, most: float) -> None:
        self.dataset, self.section, self.most = dataset, section, most
        self.damaged = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __call__(self, index: int) -> Any:
        """Returns the sample of an index, or of the next one whose audio can be decoded.

        Raises:
            TutorError: more samples are damaged than may be.
        """
        for place in chain(range(index, len(self.dataset)), range(index)):
            if self.damaged[place]:
                continue
            try:
                # The class's method, because this object stands in its place in the instance.
                return type(self.dataset)._process_sample(self.dataset, place)
            except Damaged as error:
                self._note(place, error)
        raise TutorError(f"no audio file of {self.section} can be decoded; fix the files.")

    def _note(self, place: int, error: Damaged) -> None:
        self.damaged[place] = True
        audio = self.dataset.manifest_processor.collection[place].audio_file
        count, total = int(self.damaged.sum()), len(self.dataset)
        fix = "fix the file or remove its line from the manifest"
        then = "the next utterance takes its place"
        allow_damaged(self.section, audio, error, count, total, self.most, fix, then)


def guard_audio(loader: Any, section: str, most: float, data: Mapping[str, Any] | None = None) -> None:
    """Makes a dataloader name audio that it cannot decode, and replace it or leave it out while it is little.

    It also refuses audio with several channels in tars and with Lhotse, of which NeMo makes batches that no
    model can read. (`check_manifests` does so for files.)

    Args:
        loader: a dataloader of NeMo.
        section: the section of the config that it comes from, for messages.
        most: share of the utterances that may be damaged.
        data: that section, where Lhotse reads and some may be damaged: its utterances are counted.

    Raises:
        TutorError: a tar is cut off.
    """
    guard_lhotse(loader, section, most, data)
    for dataset in manifest_datasets(loader):
        if not hasattr(dataset, "_process_sample"):
            guard_tars(dataset, section, most)
        elif not isinstance(dataset.featurizer, Reader):
            dataset.featurizer = Reader(dataset.featurizer)
            dataset._process_sample = GuardedSamples(dataset, section, most)


def decode_all(
    loader: Any, section: str, report: PartReport = no_report, data: Mapping[str, Any] | None = None
) -> list[str]:
    """Decodes every utterance of a dataloader once.

    Args:
        loader: a dataloader of NeMo.
        section: the section of the config that it comes from, for messages.
        report: shows how many utterances are decoded.
        data: that section, of which Lhotse reads where it has `use_lhotse`.

    Returns:
        A sentence for each utterance that cannot be decoded.
    """
    if data is not None and data.get("use_lhotse"):
        return list(decode_lhotse(data, section, report))
    return [
        sentence for dataset in manifest_datasets(loader) for sentence in _decoded(dataset, section, report)
    ]


def _decoded(dataset: Any, section: str, report: PartReport) -> Iterator[str]:
    def decode(entry: Any) -> str | None:
        reason = decoded(dataset, entry)
        if not isinstance(reason, str):
            return None
        return f"{section}: {entry.audio_file} cannot be decoded ({reason}); fix the file or remove its line."

    if not hasattr(dataset, "_process_sample"):
        yield from decode_tars(dataset, section, report)
        return
    entries = list(dataset.manifest_processor.collection)
    with ThreadPoolExecutor() as pool:
        for done, sentence in enumerate(pool.map(decode, entries)):
            report(f"decoding {section}", done, len(entries))
            if sentence is not None:
                yield sentence
