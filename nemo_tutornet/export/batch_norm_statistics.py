# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Re-estimation of batch norm statistics, which belong to the weights that were averaged and not to the mean.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Row, Rules, Utterance, in_store, open_rows, unopened_rows
from nemo_tutornet.data.manifest_checks import manifests_of
from nemo_tutornet.errors import TutorError, reason_of
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.utils.files import expand_user
from nemo_tutornet.utils.progress import PartReport, no_report

_MOST_SECONDS = 600.0  # of audio, in batches drawn from the whole manifest
_BATCH = 16  # where the run does not say it
_LARGEST_BATCH = 32  # larger ones have about the same share of padding, and want memory
_MOST_NOISE = 100.0  # in relation to the range of durations; far beyond it, batches are random
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
    section = _training_section(config)
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
    missing = next((path for path in named if in_store(path) or not os.path.isfile(expand_user(path))), None)
    if not named or missing is not None:
        what = "names no training manifest" if not named else f"was trained on {missing}, which is not here"
        raise TutorError(
            f"batch norm statistics must be estimated for averaged weights, and the run {what}; {remedy}."
        )
    return [expand_user(path) for path in named]


def estimate_statistics(
    model: Any, manifests: Sequence[Path], report: PartReport = no_report
) -> tuple[int, float]:
    """Estimates the statistics of each batch norm anew on audio, in place.

    The weights were trained with statistics of their training's batches, so the batches are alike
    (`torch.optim.swa_utils.update_bn`): as long, sorted by length or random as the run's, at the speeds of
    its speed perturbation, with SpecAugment and dropout. Each batch counts alike, however many frames it has,
    as in training. NeMo's convolutions mask the padding of their inputs and its batch norms do not, so the
    share of padding in a batch is part of the statistics. At most ten minutes of audio are used, and no other
    audio is opened. The same audio gives the same statistics.

    Args:
        model: a NeMo CTC model on the CPU, in eval mode; `train_ds` of its config says how the run drew its
            batches.
        manifests: NeMo manifests; transcripts are not needed. Of audio with several channels, the run's
            `channel_selector` is read.
        report: shows how far it is.

    Returns:
        Number of utterances and seconds of audio.

    Raises:
        TutorError: a manifest or its audio cannot be read, or gives statistics that are not finite.
    """
    section = _training_section(model.cfg)
    norms = batch_norms(model)
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    network, sample_rate = _Network(model), int(model.preprocessor._sample_rate)

    def shown(batches: Sequence[Sequence[Utterance]]) -> Iterator[dict[str, Tensor]]:
        augmentor = _speed_perturbation(section)
        for number, batch in enumerate(batches):
            report("estimating batch norm statistics", number, len(batches))
            yield _read(batch, sample_rate, augmentor)

    with torch.no_grad(), suppress_nemo_logs(), _same_random_numbers(model):
        batches = drawn_utterances(manifests, section)
        try:
            torch.optim.swa_utils.update_bn(shown(batches), network)
        except (RuntimeError, ValueError) as error:  # e.g. a single value per channel
            if isinstance(error, TutorError):
                raise
            raise TutorError(
                f"batch norm statistics cannot be estimated on {manifests[0]} ({reason_of(error)}); give "
                "longer or more audio with --statistics."
            ) from None
    for counter, count in zip(counters, counts, strict=True):
        counter.copy_(count)
    model.eval()
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        if not (norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            raise TutorError(
                f"the audio of {manifests[0]} gives batch norm statistics that are NaN or infinite; give "
                "other audio with --statistics."
            )
    return sum(map(len, batches)), sum(row.duration for batch in batches for row in batch)


def drawn_utterances(manifests: Sequence[Path], section: Mapping[str, Any]) -> list[list[Utterance]]:
    """Draws batches as a run draws them, of at most ten minutes together, and opens their audio.

    Args:
        manifests: NeMo manifests. A row that declares no duration is opened, too.
        section: the run's `train_ds`.

    Returns:
        At least one batch.

    Raises:
        TutorError: a manifest cannot be read, or a row of these batches is invalid.
    """
    rules = Rules(channel=_channel(section), mono_as_it_is=True)
    rows = [row for manifest in manifests for row in unopened_rows(manifest)]
    drawn: list[list[Utterance]] = []
    seconds = 0.0
    for batch in training_batches([_seconds(row, rules) for row in rows], section):
        opened = open_rows([rows[i] for i in batch], rules)
        seconds += sum(row.duration for row in opened)
        if drawn and seconds > _MOST_SECONDS:
            break
        drawn.append(opened)
    return drawn


def training_batches(durations: Sequence[float], section: Mapping[str, Any]) -> list[list[int]]:
    """Draws batches as a run draws them in an epoch.

    Args:
        durations: seconds of each row.
        section: the run's `train_ds`; without one, batches of 16 at random.

    Returns:
        The numbers of each batch's rows, at least one batch. Rows that the run leaves out for their length
        are left out.
    """
    shortest, longest = _number(section, "min_duration", 0.0), _number(section, "max_duration", math.inf)
    rows = range(len(durations))
    kept = [i for i in rows if shortest <= durations[i] <= longest] or list(rows)
    size = int(min(_number(section, "batch_size", _BATCH), _LARGEST_BATCH)) or _BATCH
    if section.get("use_semi_sorted_batching"):
        from nemo.collections.asr.parts.utils.asr_batching import SemiSortBatchSampler

        noise = min(_number(section, "randomization_factor", 0.1), _MOST_NOISE)  # 0.1 is NeMo's default
        lengths = [durations[i] for i in kept]
        order = list(SemiSortBatchSampler(0, 1, lengths, size, randomization_factor=noise))
    else:
        shuffled = random.sample(range(len(kept)), len(kept))
        order = [shuffled[i : i + size] for i in range(0, len(kept), size)]
        if len(order) > 1 and len(order[-1]) < size // 2:
            order[-2:] = [order[-2] + order[-1]]
    return [[kept[i] for i in batch] for batch in order]


def _seconds(row: Row, rules: Rules) -> float:
    """Returns the seconds that a row declares, or those of its audio."""
    declared = row.declared_duration()
    return sum(found.duration for found in open_rows([row], rules)) if declared is None else declared


def _channel(section: Mapping[str, Any]) -> int | str | None:
    """Returns the channel that a run reads; None where it has chosen none, and read files with one."""
    value = section.get("channel_selector")
    return value if value == "average" or (type(value) is int and value >= 0) else None


def _training_section(config: Any) -> Mapping[str, Any]:
    section = config.get("train_ds") if isinstance(config, (Mapping, DictConfig)) else None
    return section if isinstance(section, (Mapping, DictConfig)) else {}


def _number(section: Mapping[str, Any], key: str, default: float) -> float:
    """Returns a number of a config, which may come from a pickle and have any content."""
    value = section.get(key)
    return value if isinstance(value, (int, float)) and value >= 0 else default


def _speed_perturbation(section: Mapping[str, Any]) -> Any:
    """Returns NeMo's augmentor with the speed perturbation of a run, which changes lengths.

    Noise and rooms are left out, because their files may be elsewhere. They change no length.

    Raises:
        TutorError: NeMo refuses the settings.
    """
    from nemo.collections.asr.parts.preprocessing.perturb import AudioAugmentor, process_augmentations

    augmentor = section.get("augmentor")
    settings = augmentor.get("speed") if isinstance(augmentor, (Mapping, DictConfig)) else None
    if settings is None:
        return AudioAugmentor()
    try:
        return process_augmentations(OmegaConf.create({"speed": settings}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TutorError(
            f"train_ds.augmentor.speed of the run is refused by NeMo ({reason_of(error)}), so batch norm "
            "statistics cannot be estimated; average checkpoints of a run that trains."
        ) from None


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


def _read(rows: Sequence[Utterance], sample_rate: int, augmentor: Any) -> dict[str, Tensor]:
    samples = []
    for row in rows:
        segment = SimpleNamespace(_samples=read_samples(row, sample_rate))
        augmentor.perturb(segment)
        samples.append(torch.from_numpy(segment._samples).float())
    signal = nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return {"input_signal": signal, "input_signal_length": torch.tensor([len(one) for one in samples])}
