# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Re-estimation of batch norm statistics, which belong to the weights that were averaged and not to the mean.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance, in_store, read_manifest
from nemo_tutornet.data.manifest_checks import manifests_of
from nemo_tutornet.errors import TutorError, reason_of
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.utils.progress import PartReport, no_report

_MOST_SECONDS = 600.0  # of audio, spread over the manifest
_BATCH = 16
_BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns the batch norms of a model that have running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def training_manifests(config: Any) -> list[Path]:
    """Returns the manifests of a run's training set.

    Args:
        config: the model's config, of a checkpoint.

    Returns:
        The files.

    Raises:
        TutorError: the config names none, or one that is not here, or tars, or Lhotse's data; the message
            asks for `--statistics`.
    """
    section = config.get("train_ds") if isinstance(config, (Mapping, DictConfig)) else None
    section = section if isinstance(section, (Mapping, DictConfig)) else {}
    remedy = "give a manifest of such audio with --statistics TRAIN.jsonl; transcripts are not needed"
    if section.get("is_tarred") or section.get("use_lhotse"):
        kind = "tars" if section.get("is_tarred") else "what Lhotse reads"
        raise TutorError(
            f"batch norm statistics must be estimated for averaged weights, and the run's training set is "
            f"{kind}; {remedy}."
        )
    try:
        named = manifests_of(section, "train_ds.manifest_filepath")
    except Exception:  # a config in a pickle may have any content
        named = []
    missing = next((path for path in named if in_store(path) or not Path(path).is_file()), None)
    if not named or missing is not None:
        what = "names no training manifest" if not named else f"was trained on {missing}, which is not here"
        raise TutorError(
            f"batch norm statistics must be estimated for averaged weights, and the run {what}; {remedy}."
        )
    return [Path(path) for path in named]


def estimate_statistics(
    model: Any, manifests: Sequence[Path], report: PartReport = no_report
) -> tuple[int, float]:
    """Estimates the statistics of each batch norm anew on audio, in place.

    As in training (`torch.optim.swa_utils.update_bn`), batches are random, and SpecAugment and dropout are
    on, because the weights were trained with statistics of such audio. At most ten minutes of audio are read,
    spread over the manifests. The same audio gives the same statistics.

    Args:
        model: a NeMo CTC model on the CPU, in eval mode.
        manifests: NeMo manifests; transcripts are not needed.
        report: shows how far it is.

    Returns:
        Number of utterances and seconds of audio.

    Raises:
        TutorError: a manifest or its audio cannot be read, or gives statistics that are not finite.
    """
    rows = [row for manifest in manifests for row in read_manifest(manifest)]
    rows = _spread(rows, _MOST_SECONDS)
    random.Random(0).shuffle(rows)
    batches = [rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)]
    if len(batches) > 1 and len(batches[-1]) < _BATCH // 2:
        batches[-2:] = [batches[-2] + batches[-1]]
    norms = batch_norms(model)
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    network = _Network(model)

    def shown() -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(batches):
            report("estimating batch norm statistics", number, len(batches))
            yield _read(batch, int(model.preprocessor._sample_rate))

    with torch.no_grad(), suppress_nemo_logs(), _same_random_numbers(model):
        try:
            torch.optim.swa_utils.update_bn(shown(), network)
        except (RuntimeError, ValueError) as error:  # e.g. a single value per channel
            if isinstance(error, TutorError):
                raise
            raise TutorError(
                f"batch norm statistics cannot be estimated on {manifests[0]} ({reason_of(error)}); give "
                "longer "
                "or more audio with --statistics."
            ) from None
    for counter, count in zip(counters, counts, strict=True):
        counter.copy_(count)
    model.eval()
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        if not (norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            raise TutorError(
                f"the audio of {manifests[0]} gives batch norm statistics that are NaN or infinite; give "
                "other "
                "audio with --statistics."
            )
    return len(rows), sum(row.duration for row in rows)


class _Network(nn.Module):
    """A model that takes its inputs as one argument, as `update_bn` gives them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch)[0]


@contextmanager
def _same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Makes SpecAugment, dither and dropout draw the same numbers every time, and leaves the states as they
    were.
    """
    own = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, random.Random)
    ]
    generators = [random._inst, *own]
    states = [generator.getstate() for generator in generators]
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        for i, generator in enumerate(generators):
            generator.seed(i)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            for generator, state in zip(generators, states, strict=True):
                generator.setstate(state)


def _spread(rows: Sequence[Utterance], most: float) -> list[Utterance]:
    """Returns utterances of about so many seconds together, evenly spread over the rows."""
    total = sum(row.duration for row in rows)
    if total <= most:
        return list(rows)
    count = max(1, round(len(rows) * most / total))
    return [rows[i * len(rows) // count] for i in range(count)]


def _read(rows: Sequence[Utterance], sample_rate: int) -> dict[str, Tensor]:
    samples = [torch.from_numpy(read_samples(row, sample_rate)) for row in rows]
    signal = nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return {"input_signal": signal, "input_signal_length": torch.tensor([len(one) for one in samples])}
