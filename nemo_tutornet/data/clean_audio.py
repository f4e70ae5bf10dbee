# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The audio of a data set of files as it is before augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.data.dataloader import manifest_datasets, utterance_of
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.errors import first_line


def clean_samples(loader: Any, most: int) -> Iterator[tuple[Utterance, Tensor]]:
    """Decodes audio files of a dataloader, without its augmentation. Damaged files are left out.

    Args:
        loader: a dataloader of NeMo. Nothing is read from tars, or where Lhotse reads.
        most: number of utterances to read at most, spread over each manifest.

    Yields:
        The utterance and its waveform `[N]`.
    """
    for dataset in manifest_datasets(loader):
        if not hasattr(dataset, "_process_sample"):  # tars
            continue
        entries = dataset.manifest_processor.collection
        step = max(1, -(-len(entries) // most))
        for i in range(0, len(entries), step):
            samples = decoded(dataset, entries[i])
            if isinstance(samples, Tensor):
                yield utterance_of(entries[i]), samples


def decoded(dataset: Any, entry: Any) -> Tensor | str:
    """Decodes the audio of a manifest's entry as NeMo's data set does.

    Args:
        dataset: NeMo's data set of files.
        entry: the entry.

    Returns:
        The waveform `[N]`; or why it cannot be decoded.
    """
    from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

    featurizer = getattr(dataset.featurizer, "reader", dataset.featurizer)
    try:
        segment = AudioSegment.from_file(
            entry.audio_file,
            target_sr=featurizer.sample_rate,
            int_values=featurizer.int_values,
            offset=entry.offset or 0,
            duration=entry.duration,
            trim=dataset.trim,
            channel_selector=dataset.channel_selector,
        )
    except Exception as error:  # NeMo tries several libraries, and their errors have no common base class
        return first_line(error)
    return torch.tensor(segment.samples, dtype=torch.float)
