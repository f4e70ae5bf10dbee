# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training of a teacher's encoder together with its adapter (`nemo-tutornet adapt --tune`).

An encoder that was trained with subwords has a subword's letters in one frame. Trained on with the student's
labels, it has them in frames of their own, and its student learns more (docs/results/subword-teachers.md).

Legend: `B` utterances, `T` frames of the teacher's encoder, `D` its width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.commands.adapter_rounds import Example
from nemo_tutornet.commands.adapter_setup import AdapterTask
from nemo_tutornet.commands.adapter_training import EncodedBatch, EpochResult, Settings, padded, train_head
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.archive_copy import copy_with_weights
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.utils.files import sha256_of, staging_directories

TUNE_EPOCHS = 25
TUNE_LEARNING_RATE = 3e-4
# Of the encoder's output. The encoder has dropout and SpecAugment of its own now.
TUNE_DROPOUT = 0.2


@dataclass(frozen=True)
class Tuning:
    """How the encoder is trained.

    Attributes:
        path: the `.nemo` file to write: the teacher with the trained encoder.
        epochs: passes over the training set.
        learning_rate: highest learning rate of encoder and head.
    """

    path: Path
    epochs: int = TUNE_EPOCHS
    learning_rate: float = TUNE_LEARNING_RATE


class TunedUtterances:
    """Utterances that an encoder, which is being trained, encodes in each epoch.

    Args:
        loader: NeMo's dataloader.
        teacher: has the encoder. Its precision is that of the encoder's forward pass.
        examples: utterances of the dataloader with their labels.
        device: where the encoder is.
        training: mask the features with the teacher's own SpecAugment, and use the transcripts of the
            utterances that are not among the examples. Otherwise these are left out.
    """

    def __init__(
        self,
        loader: Any,
        teacher: LiveTeacher,
        examples: Sequence[Example],
        device: torch.device,
        training: bool = False,
    ) -> None:
        self._loader, self._teacher, self._device = loader, teacher, device
        self._labels = {utterance.key: labels for utterance, labels in examples}
        self._resolver = UtteranceResolver(loader)
        masks = getattr(teacher.model, "spec_augmentation", None)
        self._masks, self._training = masks if training else None, training

    def batches_in_epoch(self) -> int:
        """Returns the number of batches of an epoch."""
        return len(self._loader)

    def batches(self, epoch: int) -> Iterator[EncodedBatch]:
        """Yields the batches of the dataloader, encoded with gradients where they are enabled."""
        for batch in map(TrainingBatch.from_nemo, self._loader):
            labels = self._labels_of(batch)
            # A batch without labels still counts as a step, so that a continued training has the same ones.
            rows = [i for i, row in enumerate(labels) if row] or [0]
            encoded, lengths = self._encode(batch.signal[rows], batch.signal_lengths[rows])
            yield EncodedBatch(encoded, lengths, *padded([labels[i] for i in rows]))

    def in_order(self) -> Iterator[EncodedBatch]:
        """Yields the batches of a dataloader that does not shuffle, without those that have no labels."""
        return (batch for batch in self.batches(0) if bool(batch.label_lengths.any()))

    def _labels_of(self, batch: TrainingBatch) -> list[list[int]]:
        """Returns the labels of each row; none for a row that is left out."""
        keys = [utterance.key for utterance in self._resolver(batch)]
        rows, lengths = batch.transcripts.tolist(), batch.transcript_lengths.tolist()
        own = [row[:length] if self._training else [] for row, length in zip(rows, lengths, strict=True)]
        return [self._labels.get(key, row) for key, row in zip(keys, own, strict=True)]

    def _encode(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the encoder's output `[B, D, T]` and valid frames `[B]`."""
        model, device = self._teacher.model, self._device
        signal, lengths = signal.to(device), lengths.to(device)
        signal = signal[:, : int(lengths.max())]
        half = self._teacher.precision_on(device) == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            features, frames = model.preprocessor(input_signal=signal, length=lengths)
            if self._masks is not None:
                features = self._masks(input_spec=features, length=frames)
            encoded, frames = model.encoder(audio_signal=features, length=frames)[:2]
        return encoded, frames


def tune_encoder(
    task: AdapterTask,
    head: AdapterHead,
    examples: Sequence[Example],
    tuning: Tuning,
    state_file: Path,
    report: Callable[[EpochResult], None],
) -> EpochResult:
    """Trains the teacher's encoder and a trained head together, and leaves both as in the best epoch.

    Args:
        task: has the teacher and the data.
        head: the adapter's head, trained on the frozen encoder.
        examples: what the head was trained on; the encoder learns from every other utterance with a
            transcript, too.
        tuning: the settings.
        state_file: where the state of an interrupted training is kept.
        report: is called after each epoch.

    Returns:
        The last epoch's progress, with the best one.
    """
    encoder = task.teacher.model.encoder.requires_grad_(True)
    loader, device = task.shuffled_loader(augmented=True), task.device
    task.teacher.model.to(device)
    training = TunedUtterances(loader, task.teacher, examples, device, training=True)
    validation = TunedUtterances(task.validation_loader(), task.teacher, task.validation, device)
    weights = hashlib.sha256()
    for value in head.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    about = task.digest(head, [*examples, task.cfg.model.train_ds], begins_as=weights.hexdigest())
    rate = tuning.learning_rate
    settings = Settings(tuning.epochs, rate, task.size, TUNE_DROPOUT, task.seed, about, rate)
    head.dropout.p = TUNE_DROPOUT

    def validate(head: AdapterHead) -> float:
        return task.word_error_rate(head, validation.in_order())

    last = train_head(head, training, validate, settings, state_file, report, device, encoder)
    encoder.requires_grad_(False)
    return last


def write_tuned(
    archive: NemoArchive,
    encoder: Mapping[str, Tensor],
    tuned: Path,
    head: AdapterHead,
    info: AdapterInfo,
    output: Path,
) -> AdapterInfo:
    """Writes the teacher with its trained encoder, and the adapter that belongs to it, both or none.

    Args:
        archive: the teacher's file.
        encoder: tensors of the trained encoder, by their names in it.
        tuned: the `.nemo` file to write. All but the encoder's weights is the teacher's.
        head: the adapter's network.
        info: what the adapter is, without the new teacher's checksum.
        output: the adapter's file to write.

    Returns:
        `info` with the new teacher's checksum.
    """
    with staging_directories(tuned.parent, output.parent) as stages:
        staged = stages[tuned.parent] / tuned.name
        changed = {f"encoder.{name}": value for name, value in encoder.items()}
        copy_with_weights(archive, changed, staged)
        info = replace(info, teacher_sha256=sha256_of(staged), tuned=True)
        Adapter(head, info).save(stages[output.parent] / output.name)
    return info


def check_tuning(cfg: Any, tuning: Tuning, teacher: Path) -> None:
    """Refuses a file of `--tune` that would overwrite the teacher or is not a `.nemo` file, and a training
    set that does not know its length, by which the learning rate falls.

    Args:
        cfg: the training's config.
        tuning: the settings.
        teacher: the teacher's file.

    Raises:
        TutorError: it is one of these.
    """
    if cfg.model.train_ds.get("use_lhotse"):
        raise TutorError(
            "--tune needs a training set that knows its length, and one that Lhotse reads does not; add "
            "model.train_ds.use_lhotse=false, or leave --tune out."
        )
    if tuning.path.suffix != ".nemo":
        raise TutorError(f"--tune {tuning.path} does not end in .nemo; give the .nemo file to write.")
    if os.path.realpath(tuning.path) == os.path.realpath(teacher):
        raise TutorError(
            f"--tune {tuning.path} is the teacher itself, which stays as it is; give another .nemo file."
        )
    if tuning.path.is_dir():
        raise TutorError(f"--tune {tuning.path} is a folder; give the .nemo file to write.")
