# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio files that cannot be decoded: named, and in a training replaced as long as they are few.

The header of a truncated file is whole, so the checks of a manifest accept it. NeMo's data set then fails in
the middle of an epoch, with an error that does not name the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch

from nemo_tutornet.data.clean_audio import decoded
from nemo_tutornet.data.dataloader import manifest_datasets
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.progress import PartReport, no_report

# A training goes on as long as at most this share of its utterances is damaged.
MOST_DAMAGED = 0.01


class _Damaged(Exception):
    """An audio file that cannot be decoded."""


class _Reader:
    """NeMo's reader of audio, whose errors are of one class.

    Args:
        reader: NeMo's `WaveformFeaturizer`.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def process(self, *args: Any, **kwargs: Any) -> Any:
        """Reads an audio file as NeMo does; takes and returns the same.

        Raises:
            _Damaged: the file cannot be decoded.
        """
        try:
            return self.reader.process(*args, **kwargs)
        except Exception as error:  # NeMo tries several libraries, and their errors have no common base class
            raise _Damaged(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


class _OneChannelTars:
    """NeMo's reader of audio in tars, which refuses audio with several channels.

    Args:
        reader: NeMo's `WaveformFeaturizer`. In tars it knows no `channel_selector`.
        section: the section of the config, for messages.
    """

    def __init__(self, reader: Any, section: str) -> None:
        self.reader, self.section = reader, section

    def process(self, *args: Any, **kwargs: Any) -> Any:
        """Reads audio as NeMo does; takes and returns the same.

        Raises:
            TutorError: the audio has several channels.
        """
        samples = self.reader.process(*args, **kwargs)
        if samples.dim() > 1:
            raise TutorError(
                f"{self.section}: audio of {len(samples)} samples in a tar has {samples.shape[1]} channels, "
                "but an ASR model reads one, and NeMo cannot choose one in tars; convert it to mono and "
                "write the tars again."
            )
        return samples


class _OneChannelCuts:
    """NeMo's reader of Lhotse cuts, which refuses cuts with several channels.

    Args:
        reader: Lhotse's `AudioSamples`.
        section: the section of the config, for messages.
    """

    def __init__(self, reader: Any, section: str) -> None:
        self.reader, self.section = reader, section

    def __call__(self, cuts: Any) -> Any:
        """Reads the audio of cuts as Lhotse does; takes and returns the same.

        Raises:
            TutorError: a cut has several channels.
        """
        for cut in cuts:
            if cut.num_channels > 1:
                named = [source.source for source in cut.recording.sources if isinstance(source.source, str)]
                raise TutorError(
                    f"{self.section}: {(named or [cut.id])[0]} has {cut.num_channels} channels, but an ASR "
                    "model reads one; "
                    f"convert it to mono, or set {self.section}.channel_selector to a channel's number."
                )
        return self.reader(cuts)


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
            except _Damaged as error:
                self._note(place, error)
        raise TutorError(f"no audio file of {self.section} can be decoded; fix the files.")

    def _note(self, place: int, error: _Damaged) -> None:
        from nemo.utils import logging

        self.damaged[place] = True
        audio = self.dataset.manifest_processor.collection[place].audio_file
        count, total = int(self.damaged.sum()), len(self.dataset)
        if count > self.most * total:
            limit = f", and at most {100 * self.most:g} % of {total} utterances may be" if self.most else ""
            raise TutorError(
                f"{self.section}: {audio} cannot be decoded ({error}){limit}; fix the file or remove its "
                "line "
                "from the manifest (`nemo-tutornet check --decode` finds all such files)."
            ) from None
        logging.warning(
            f"{self.section}: {audio} cannot be decoded ({error}) and is left out; the next utterance takes "
            f"its place (damaged so far: {count} of {total})."
        )


def guard_audio(loader: Any, section: str, most: float) -> None:
    """Makes a dataloader name audio files that it cannot decode, and replace them while they are few.

    Data sets of files are guarded. In tars and with Lhotse such an error is NeMo's; but audio with several
    channels, of which NeMo makes batches that no model can read, is refused there, too. (`check_manifests`
    does so for files.)

    Args:
        loader: a dataloader of NeMo.
        section: the section of the config that it comes from, for messages.
        most: share of the utterances that may be damaged.
    """
    lhotse = getattr(loader.dataset, "dataset", loader.dataset)  # with tars it is wrapped in another
    if hasattr(lhotse, "load_audio") and not isinstance(lhotse.load_audio, _OneChannelCuts):
        lhotse.load_audio = _OneChannelCuts(lhotse.load_audio, section)
    for dataset in manifest_datasets(loader):
        if isinstance(dataset.featurizer, (_Reader, _OneChannelTars)):
            continue
        if not hasattr(dataset, "_process_sample"):
            dataset.featurizer = _OneChannelTars(dataset.featurizer, section)
            continue
        dataset.featurizer = _Reader(dataset.featurizer)
        dataset._process_sample = GuardedSamples(dataset, section, most)


def decode_all(loader: Any, section: str, report: PartReport = no_report) -> list[str]:
    """Decodes every audio file of a dataloader once.

    Args:
        loader: a dataloader of NeMo.
        section: the section of the config that it comes from, for messages.
        report: shows how many utterances are decoded.

    Returns:
        A sentence for each file that cannot be decoded.
    """
    return [
        sentence for dataset in manifest_datasets(loader) for sentence in _decoded(dataset, section, report)
    ]


def _decoded(dataset: Any, section: str, report: PartReport) -> Iterator[str]:
    def decode(entry: Any) -> str | None:
        reason = decoded(dataset, entry)
        if not isinstance(reason, str):
            return None
        return f"{section}: {entry.audio_file} cannot be decoded ({reason}); fix the file or remove its line."

    if not hasattr(dataset, "_process_sample"):  # tars
        return
    entries = list(dataset.manifest_processor.collection)
    with ThreadPoolExecutor() as pool:
        for done, sentence in enumerate(pool.map(decode, entries)):
            report(f"decoding {section}", done, len(entries))
            if sentence is not None:
                yield sentence
