# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher's adapter: CTC on the frozen encoder's output, with the best epoch on validation."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_tutornet.commands.adapter_batches import EncodedBatch, TrainingSet
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.frame_weighting import frame_mask
from nemo_tutornet.functional.greedy import greedy_labels
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.utils.files import atomic_write

# Share of the steps in which the learning rate rises, and the share of its peak to which it falls.
_WARM_UP, _LAST = 0.05, 0.01
_WEIGHT_DECAY = 1e-2
_GRADIENT_NORM = 1.0
_EPOCHS, _MOST_EPOCHS, _LEAST_STEPS = 40, 400, 3000


@dataclass(frozen=True)
class Settings:
    """How a head is trained; a resumed training must have the same.

    Attributes:
        epochs: passes over the training set.
        learning_rate: highest learning rate of AdamW; it warms up and then follows a cosine.
        batch_size: utterances in a batch.
        dropout: probability of dropping a value of the encoder's output.
        seed: seed of the initialisation and of the dropout.
        about: everything else that the result depends on: teacher, labels, sizes, data.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    dropout: float
    seed: int
    about: str


@dataclass(frozen=True)
class EpochResult:
    """What an epoch of the training ended with.

    Attributes:
        epoch: its number, from 1.
        loss: mean CTC loss of its utterances.
        wer: word error rate on the validation set, as a fraction.
        best_epoch: the epoch with the lowest one until now.
        best_wer: that error rate.
        epochs: number of epochs of the training.
    """

    epoch: int
    loss: float
    wer: float
    best_epoch: int
    best_wer: float
    epochs: int


def epochs_for(batches: int) -> int:
    """Returns the number of epochs of a training for which none is given (ours).

    60 utterances are 320 steps in 40 epochs, in which a head learns nothing. So a small set has more epochs,
    until there are 3,000 steps.

    Args:
        batches: of an epoch; 0 where every utterance was filtered out.

    Example:
        >>> [epochs_for(batches) for batches in (1000, 107, 27, 8, 0)]
        [40, 40, 112, 375, 400]
    """
    return min(_MOST_EPOCHS, max(_EPOCHS, math.ceil(_LEAST_STEPS / max(1, batches))))


def train_head(
    head: AdapterHead,
    training: TrainingSet,
    validate: Callable[[AdapterHead], float],
    settings: Settings,
    state_file: Path,
    report: Callable[[EpochResult], None],
    device: torch.device,
) -> EpochResult:
    """Trains a head, and leaves it with the weights of its best epoch.

    After each epoch the state is written, and the same call continues from it with the very numbers of an
    uninterrupted training on a CPU.

    Args:
        head: freshly initialised.
        training: the utterances.
        validate: computes the word error rate of a head on the validation set.
        settings: see the class.
        state_file: where the state of an interrupted training is kept. A file of other settings is replaced.
        report: is called after each epoch.
        device: where the head is trained.

    Returns:
        The last epoch's progress.

    Raises:
        TutorError: a loss or a gradient is NaN or infinite; the head is left as it was before that step.
    """
    head.to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in head.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        weight_decay=_WEIGHT_DECAY,
        betas=(0.9, 0.98),
    )
    total = settings.epochs * training.batches_in_epoch()
    state = _read_state(state_file, settings)
    best = {name: value.clone() for name, value in head.state_dict().items()}
    progress = EpochResult(0, math.nan, math.nan, 0, math.inf, settings.epochs)
    if state is not None:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        best, progress = state["best"], EpochResult(**{**asdict(progress), **state["progress"]})
    step = progress.epoch * training.batches_in_epoch()
    for epoch in range(progress.epoch + 1, settings.epochs + 1):
        # Each epoch has a seed of its own, so a resumed training draws the same dropout.
        torch.manual_seed(settings.seed * 100_003 + epoch)
        head.train()
        losses: list[float] = []
        for batch in training.batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, total)
            step += 1
            counted = batch.label_lengths > 0
            if not counted.any():
                continue
            loss = _ctc(head, batch, counted, device)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(head.parameters(), _GRADIENT_NORM)
            if not (torch.isfinite(loss).all() and torch.isfinite(norm)):
                raise TutorError(
                    f"epoch {epoch}, step {step}: the adapter's loss or gradient is not finite; lower "
                    "--learning-rate, or set model.tutor.teacher.precision=fp32 if it is not. The same "
                    "command continues after the last epoch that was finished."
                )
            optimizer.step()
            losses += loss.detach().tolist()
        head.eval()
        wer = validate(head)
        mean = sum(losses) / max(1, len(losses))
        is_best = wer < progress.best_wer
        if is_best:
            best = {name: value.detach().clone() for name, value in head.state_dict().items()}
        best_epoch = epoch if is_best else progress.best_epoch
        best_wer = wer if is_best else progress.best_wer
        progress = EpochResult(epoch, mean, wer, best_epoch, best_wer, settings.epochs)
        _write_state(state_file, settings, head, optimizer, best, progress)
        report(progress)
    head.load_state_dict(best)
    head.eval()
    return progress


def schedule(step: int, total: int) -> float:
    """Returns the share of the highest learning rate at a step: a linear warm-up, then a cosine.

    Args:
        step: number of the step, from 0.
        total: number of steps of the whole training.

    Example:
        >>> [round(schedule(step, 100), 3) for step in (0, 4, 52, 99)]
        [0.2, 1.0, 0.505, 0.01]
    """
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    passed = (step - warm) / max(1, total - 1 - warm)
    return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


@torch.no_grad()
def word_error_rate(
    head: AdapterHead,
    batches: Iterable[EncodedBatch],
    references: Sequence[str],
    decode: Callable[[list[int]], str],
    device: torch.device,
) -> float:
    """Computes the word error rate of a head's greedy decoding, as a fraction.

    Args:
        head: in eval mode.
        batches: the utterances, in the order of the references.
        references: their transcripts.
        decode: writes labels as text.
        device: where the head is.
    """
    texts: list[str] = []
    for batch in batches:
        log_probs = head(batch.encoded.to(device), batch.lengths.to(device)).cpu()
        texts += [decode(labels) for labels in greedy_labels(log_probs, batch.lengths * head.upsampling)]
    return sum_errors([count_errors(*pair) for pair in zip(references, texts, strict=True)]).rate


def _ctc(head: AdapterHead, batch: EncodedBatch, counted: Tensor, device: torch.device) -> Tensor:
    """Returns the CTC loss of each utterance that has labels."""
    # A teacher in bf16 encodes in bf16 (`--live`).
    encoded, lengths = batch.encoded[counted].to(device, torch.float32), batch.lengths[counted].to(device)
    log_probs = head(encoded, lengths)
    frames = lengths * head.upsampling
    # `ctc_loss` reads frames behind an utterance's length on some devices; their values must be finite only.
    log_probs = log_probs.masked_fill(~frame_mask(frames, log_probs.shape[1])[..., None], 0.0)
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        batch.labels[counted].to(device),
        frames,
        batch.label_lengths[counted].to(device),
        blank=log_probs.shape[2] - 1,
        reduction="none",
        zero_infinity=True,
    )


def _write_state(
    path: Path,
    settings: Settings,
    head: AdapterHead,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: EpochResult,
) -> None:
    with atomic_write(path) as temporary:
        torch.save(
            {
                "settings": asdict(settings),
                "head": head.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "progress": asdict(progress),
            },
            temporary,
        )


def _read_state(path: Path, settings: Settings) -> dict[str, Any] | None:
    """Returns the state of an interrupted training with these settings; None where there is none."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state if state["settings"] == asdict(settings) else None
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        return None  # damaged or foreign: the training begins again and replaces it
