# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What an adapter is trained for: the teacher, the student's labels and frames, and the validation set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nemo_tutornet.commands.adapter_batches import StoredUtterances
from nemo_tutornet.commands.adapter_data import (
    device_of,
    encoding_config,
    examples_of,
    stored_encodings,
    teacher_word_error_rate,
)
from nemo_tutornet.commands.adapter_rounds import Example
from nemo_tutornet.commands.adapter_training import word_error_rate
from nemo_tutornet.commands.cache_targets import dataloader_student, print_note
from nemo_tutornet.config import TutorConfig
from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.distill.transcripts import check_transcripts
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.layers import measure_encoder
from nemo_tutornet.nemo_io.restore import labels_of
from nemo_tutornet.teachers.adapter import AdapterInfo, upsampling_for
from nemo_tutornet.teachers.adapter_head import KERNEL, SECOND_KERNEL, AdapterHead
from nemo_tutornet.teachers.live import LiveTeacher

# Of the encoder's output: with less the head learns a small corpus by heart.
DROPOUT = 0.8
# The adapter is as wide as the teacher's encoder, but not wider than this.
MOST_WIDTH = 256


@dataclass(frozen=True)
class AdapterTask:
    """An adapter that is to be trained.

    Attributes:
        cfg: the training's config.
        work: folder for the encoder's output and for the state of an interrupted training.
        batch_size: utterances in a batch; None is the training's.
        student: has the dataloader of the training set, in order.
        teacher: has the encoder, and no adapter.
        pseudo: writes labels as text, and the teacher's text in the student's labels.
        labels: the student's labels, without the blank.
        upsampling: adapter frames for each teacher frame.
        width: of the adapter.
        validation: the utterances of the validation set that have a transcript, with its labels.
        stored: their encoder output.
        references: their transcripts.
        teacher_wer: the teacher's own word error rate on them, as a fraction.
        device: where the head is trained.
    """

    cfg: Any
    work: Path
    batch_size: int | None
    student: Any
    teacher: LiveTeacher
    pseudo: PseudoLabels
    labels: tuple[str, ...]
    upsampling: int
    width: int
    validation: Sequence[Example]
    stored: StoredUtterances
    references: Sequence[str]
    teacher_wer: float
    device: torch.device

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.cfg.get("seed") or 0)

    @property
    def size(self) -> int:
        """Utterances in a batch."""
        return self.batch_size or int(self.cfg.model.train_ds.get("batch_size") or 16)

    @property
    def encoder_width(self) -> int:
        """Width of the teacher's encoder."""
        return self.teacher.encoder_layer.width

    def new_head(self) -> AdapterHead:
        """Returns a new head, which reads the posteriors of the teacher's CTC decoder where that is a single
        1x1 convolution.
        """
        torch.manual_seed(self.seed)
        decoder = self.teacher.ctc_projection()
        sizes = self.encoder_width, self.width, self.upsampling, len(self.labels) + 1
        if decoder is None:
            return AdapterHead(*sizes, dropout=DROPOUT)
        head = AdapterHead(*sizes, decoder.out_channels, DROPOUT)
        assert head.teacher_decoder is not None and head.teacher_decoder.bias is not None
        with torch.no_grad():
            head.teacher_decoder.weight.copy_(decoder.weight)
            head.teacher_decoder.bias.zero_()
            if decoder.bias is not None:
                head.teacher_decoder.bias.copy_(decoder.bias)
        return head

    def digest(self, head: AdapterHead, data: Sequence[Any], live: bool) -> str:
        """Returns a checksum of what a training's result depends on beside its settings.

        Other data make another training, which must not continue from this one's state.

        Args:
            head: a new one.
            data: what it is trained on.
            live: the encoder runs in every epoch.
        """
        sizes = self.encoder_width, self.width, self.upsampling, head.expand.in_channels
        facts = {
            "teacher": self.teacher.sha256,
            "labels": self.labels,
            "sizes": [*sizes, KERNEL, SECOND_KERNEL],
            "dropout": DROPOUT,
            "data": [str(one) for one in data],
            "validation": [str(one) for one in self.validation],
            "live": live,
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def word_error_rate(self, head: AdapterHead) -> float:
        """Returns the word error rate of a head on the validation set, as a fraction.

        Args:
            head: in eval mode.
        """
        return word_error_rate(head, self.stored.in_order(), self.references, self.pseudo.decode, self.device)

    def shuffled_loader(self) -> Any:
        """Returns NeMo's dataloader of the training set, shuffled, which refuses damaged audio."""
        with suppress_nemo_logs():
            config = encoding_config(self.cfg, hypotheses=True).model
            shuffled = dataloader_student(config, None, self.batch_size, shuffle=True)
        for warning in check_transcripts(shuffled):
            print_note(warning)
        guard_audio(shuffled._train_dl, "model.train_ds", 0.0)
        return shuffled._train_dl

    def info(self, head: AdapterHead, wer: float) -> AdapterInfo:
        """Describes a trained adapter.

        Args:
            head: its network.
            wer: its word error rate on the validation set, as a fraction.
        """
        return AdapterInfo(
            teacher_outputs=head.expand.in_channels - self.encoder_width,
            labels=self.labels,
            frame_ms=self.teacher.encoder_layer.frame_ms / self.upsampling,
            upsampling=self.upsampling,
            teacher_width=self.encoder_width,
            width=self.width,
            teacher_sha256=self.teacher.sha256,
            teacher_class=type(self.teacher.model).__name__,
            wer=wer,
            teacher_wer=self.teacher_wer,
            utterances=len(self.validation),
        )


def adapter_task(
    cfg: Any, config: TutorConfig, work: Path, width: int | None, batch_size: int | None
) -> AdapterTask:
    """Restores the teacher, runs its encoder over the validation set, and reads what the student needs.

    Args:
        cfg: complete config of the training script.
        config: its section of the tutor (`checked_config`).
        work: folder for the encoder's output.
        width: of the adapter; None is that of the teacher's encoder, at most `MOST_WIDTH`.
        batch_size: utterances in a batch; None is the training's.

    Returns:
        What the adapter is trained for.

    Raises:
        TutorError: the config has a mistake that would also stop the training, or no validation utterance
            has a transcript.
    """
    with suppress_nemo_logs():
        student = dataloader_student(encoding_config(cfg, hypotheses=False).model, None, batch_size)
        teacher = LiveTeacher.from_config(replace(config.teacher, adapter=None))
    pseudo = PseudoLabels.for_student(config.pseudo_labels, student)
    frame_ms = measure_encoder(student.eval()).frame_ms
    valid = stored_encodings(cfg, work, "valid", hypotheses=True, batch_size=batch_size)
    with suppress_nemo_logs():
        valid_cfg = encoding_config(cfg, hypotheses=True, part="valid").model
        transcribed = examples_of(dataloader_student(valid_cfg, None, batch_size), valid, None).transcribed
    spoken = [(utterance, ids) for utterance, ids in transcribed if pseudo.decode(ids).strip()]
    if not spoken:
        raise TutorError(
            "no utterance of model.validation_ds has a transcript in the student's labels, and the epoch is "
            "selected by word error rate; give a validation manifest with transcripts."
        )
    references = [pseudo.decode(ids) for _, ids in spoken]
    size = batch_size or int(cfg.model.train_ds.get("batch_size") or 16)
    return AdapterTask(
        cfg=cfg,
        work=work,
        batch_size=batch_size,
        student=student,
        teacher=teacher,
        pseudo=pseudo,
        labels=tuple(labels_of(student, student.decoder)),
        upsampling=upsampling_for(teacher.encoder_layer.frame_ms, frame_ms),
        width=width or min(teacher.encoder_layer.width, MOST_WIDTH),
        validation=spoken,
        stored=StoredUtterances(valid, spoken, size),
        references=references,
        teacher_wer=teacher_word_error_rate(valid, spoken, references, pseudo, size),
        device=device_of(cfg),
    )


def checked_config(cfg: Any) -> TutorConfig:
    """Reads the section of the tutor.

    Args:
        cfg: complete config of the training script.

    Raises:
        TutorError: there is no teacher's file, or no validation set.
    """
    config = read_tutor_section(cfg.model)
    if config is None:
        raise TutorError("model.tutor is not there, so there is no teacher to make an adapter of.")
    if not config.teacher.model_path:
        raise TutorError(
            "model.tutor.teacher.model_path is not set, and an adapter is trained on the teacher itself; "
            "give its .nemo file or the name of a pretrained NeMo model."
        )
    manifest = (cfg.model.get("validation_ds") or {}).get("manifest_filepath")
    if not manifest and not (cfg.model.get("validation_ds") or {}).get("use_lhotse"):
        raise TutorError(
            "model.validation_ds.manifest_filepath is not set, and the adapter's epoch is selected by its "
            "word error rate there; give a validation manifest with transcripts."
        )
    return config
