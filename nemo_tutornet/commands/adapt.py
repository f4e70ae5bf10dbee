# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet adapt`: trains an adapter, a CTC head with the student's labels on a teacher's frozen
encoder (`teachers.adapter`).

The encoder runs over the training and validation sets once. Its output is kept like cached targets, and the
head is trained on it.

Legend: `B` utterances, `T` frames of the teacher's encoder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nemo_tutornet.commands.adapter_data import (
    LiveUtterances,
    encoding_config,
    examples_of,
    fits_on_disk,
    lacks_transcripts,
    stored_encodings,
    teacher_word_error_rate,
)
from nemo_tutornet.commands.adapter_rounds import Examples, Rounds, Source, train_rounds, written_by
from nemo_tutornet.commands.adapter_training import (
    EpochResult,
    Settings,
    StoredUtterances,
    TrainingSet,
    train_head,
    word_error_rate,
)
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
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo, upsampling_for
from nemo_tutornet.teachers.adapter_head import KERNEL, SECOND_KERNEL, AdapterHead
from nemo_tutornet.teachers.live import LiveTeacher

EPOCHS = 40
LEARNING_RATE = 2e-3
# Of the encoder's output: with less the head learns a small corpus by heart.
DROPOUT = 0.8
# The adapter is as wide as the teacher's encoder, but not wider than this.
MOST_WIDTH = 256
# The trainings of an adapter (`adapter_rounds`), as their progress names them.
PARTS = {
    "": "adapter",
    "transcribed": "adapter, transcripts alone",
    "adapter": "adapter, with its own text for the others",
    "teacher": "adapter, with the teacher's text for the others",
}


@dataclass(frozen=True)
class AdaptResult:
    """Summary of a run of `nemo-tutornet adapt`.

    Attributes:
        path: the adapter's file.
        labels: number of the student's labels, without the blank.
        frame_ms: milliseconds from one frame of the adapter to the next.
        upsampling: adapter frames for each teacher frame.
        parameters: parameters of the head.
        wer: the adapter's word error rate on the validation set, as a fraction.
        teacher_wer: the teacher's own there, as a fraction.
        best_epoch: the epoch whose weights the file has.
        epochs: epochs that were trained.
        utterances: training utterances with a transcript or a usable hypothesis.
        pseudo_labelled: how many of these have a hypothesis in place of a transcript.
        hypotheses_of: whose hypotheses these are: `teacher`, or `adapter`, a first one that was trained on
            the transcripts alone. Empty where there are none.
        minutes: duration of the run.
        work: folder with the encoder's output and the state of the training, which can be deleted.
    """

    path: str
    labels: int
    frame_ms: float
    upsampling: int
    parameters: int
    wer: float
    teacher_wer: float
    best_epoch: int
    epochs: int
    utterances: int
    pseudo_labelled: int
    hypotheses_of: Source
    minutes: float
    work: str


def adapt_teacher(
    cfg: Any,
    output: Path,
    work: Path | None = None,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    width: int | None = None,
    batch_size: int | None = None,
    live: bool | None = None,
    report: Callable[[str, EpochResult], None] = lambda part, progress: None,
) -> AdaptResult:
    """Trains an adapter of the teacher of a training config for its student.

    Args:
        cfg: complete config of the training script.
        output: the safetensors file to write.
        work: folder for the encoder's output and for the state of an interrupted training; None is
            `output` with the ending `.work`. It may be shared by the adapters of one teacher.
        epochs: passes over the training set.
        learning_rate: highest learning rate.
        width: width of the adapter; None is that of the teacher's encoder, at most `MOST_WIDTH`.
        batch_size: utterances in a batch; None is `model.train_ds.batch_size`.
        live: run the encoder in every epoch instead of keeping its output. None does so where the output
            would take too much of the free disk.
        report: is called after each epoch with a name for that training: there are two where a part of the
            training set has no transcripts (`adapter_rounds`).

    Returns:
        A summary of the run.

    Raises:
        TutorError: the config has a mistake that would also stop the training, it has no teacher's file, or
            no validation utterance has a transcript.
    """
    start = time.monotonic()
    config = _checked(cfg)
    work = output.with_suffix(".work") if work is None else work
    seed = int(cfg.get("seed") or 0)
    with suppress_nemo_logs():
        loading = dataloader_student(encoding_config(cfg, hypotheses=False).model, None, batch_size)
        teacher = LiveTeacher.from_config(replace(config.teacher, adapter=None))
    pseudo = PseudoLabels.for_student(config.pseudo_labels, loading)
    frame_ms = measure_encoder(loading.eval()).frame_ms
    upsampling = upsampling_for(teacher.encoder_layer.frame_ms, frame_ms)
    labels = tuple(labels_of(loading, loading.decoder))
    device = _device(cfg)

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
    validation = StoredUtterances(valid, spoken, size)
    teacher_wer = teacher_word_error_rate(valid, spoken, references, pseudo, size)

    if live is None:
        live = not fits_on_disk(loading, teacher, work)
    found: Examples | None = None
    if live:
        with suppress_nemo_logs():
            shuffled = dataloader_student(
                encoding_config(cfg, hypotheses=True).model, None, batch_size, shuffle=True
            )
        for warning in check_transcripts(shuffled):
            print_note(warning)
        guard_audio(shuffled._train_dl, "model.train_ds", 0.0)
        lively = LiveUtterances(shuffled._train_dl, teacher, pseudo, device)
    else:
        needs_hypotheses = lacks_transcripts(loading._train_dl)
        reader = stored_encodings(cfg, work, "train", needs_hypotheses, batch_size)
        if needs_hypotheses and not reader.schema.hypotheses:
            raise TutorError(
                f"{reader.folder} was kept when every utterance had a transcript, so it lacks the teacher's "
                "hypotheses; delete that folder, or give another one with --work."
            )
        found = examples_of(loading, reader, pseudo)
        if not found.transcribed and not found.hypothesised:
            raise TutorError(
                "no utterance of model.train_ds has a transcript or a usable hypothesis in the student's "
                f"labels ({pseudo.report().rstrip('.')}), so the adapter would learn nothing."
            )
    encoder_width = teacher.encoder_layer.width
    width = width or min(encoder_width, MOST_WIDTH)

    def validate(head: AdapterHead) -> float:
        return word_error_rate(head, validation.in_order(), references, pseudo.decode, device)

    def trained(training: TrainingSet, data: Sequence[Any], part: str) -> tuple[AdapterHead, EpochResult]:
        torch.manual_seed(seed)
        head = _head_of(teacher, width, upsampling, len(labels) + 1)
        sizes = [encoder_width, width, upsampling, head.expand.in_channels, KERNEL, SECOND_KERNEL]
        # Other data make another training, which must not continue from this one's state.
        heads = {
            "teacher": teacher.sha256,
            "labels": labels,
            "sizes": sizes,
            "dropout": DROPOUT,
            "data": [str(one) for one in data],
            "validation": [str(one) for one in spoken],
            "live": live,
        }
        digest = hashlib.sha256(json.dumps(heads).encode())
        settings = Settings(epochs, learning_rate, size, DROPOUT, seed, digest.hexdigest())
        name = f"{output.stem}{part and '.'}{part}"
        shown = partial(report, PARTS[part])
        last = train_head(head, training, validate, settings, work / f"{name}.state.pt", shown, device)
        return head, last

    if found is None:
        head, last = trained(lively, [loading.cfg.train_ds.get("manifest_filepath")], "")
        best = Rounds(head, last, [], "", 0)
    else:
        best = train_rounds(
            found,
            teacher_wer,
            lambda examples, part: trained(StoredUtterances(reader, examples, size), examples, part),
            lambda head: written_by(head, reader, found.silent, size),
        )
    head, last = best.head, best.last
    info = AdapterInfo(
        teacher_outputs=head.expand.in_channels - encoder_width,
        labels=labels,
        frame_ms=teacher.encoder_layer.frame_ms / upsampling,
        upsampling=upsampling,
        teacher_width=encoder_width,
        width=width,
        teacher_sha256=teacher.sha256,
        teacher_class=type(teacher.model).__name__,
        wer=last.best_wer,
        teacher_wer=teacher_wer,
        utterances=len(spoken),
    )
    Adapter(head, info).save(output)
    return AdaptResult(
        path=str(output),
        labels=len(labels),
        frame_ms=info.frame_ms,
        upsampling=upsampling,
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        wer=info.wer,
        teacher_wer=teacher_wer,
        best_epoch=last.best_epoch,
        epochs=last.epoch,
        utterances=len(best.examples),
        pseudo_labelled=best.untranscribed,
        hypotheses_of=best.source,
        minutes=(time.monotonic() - start) / 60,
        work=str(work),
    )


def _head_of(teacher: LiveTeacher, width: int, upsampling: int, outputs: int) -> AdapterHead:
    """Returns a new head, which reads the posteriors of the teacher's CTC decoder where that is a single 1x1
    convolution.
    """
    decoder, encoder_width = teacher.ctc_projection(), teacher.encoder_layer.width
    if decoder is None:
        return AdapterHead(encoder_width, width, upsampling, outputs, dropout=DROPOUT)
    head = AdapterHead(encoder_width, width, upsampling, outputs, decoder.out_channels, DROPOUT)
    assert head.teacher_decoder is not None and head.teacher_decoder.bias is not None
    with torch.no_grad():
        head.teacher_decoder.weight.copy_(decoder.weight)
        head.teacher_decoder.bias.zero_()
        if decoder.bias is not None:
            head.teacher_decoder.bias.copy_(decoder.bias)
    return head


def _checked(cfg: Any) -> TutorConfig:
    config = read_tutor_section(cfg.model)
    if config is None:
        raise TutorError("model.tutor is not there, so there is no teacher to make an adapter of.")
    if not config.teacher.model_path:
        raise TutorError(
            "model.tutor.teacher.model_path is not set, and an adapter is trained on the teacher itself; "
            "give "
            "its .nemo file or the name of a pretrained NeMo model."
        )
    manifest = (cfg.model.get("validation_ds") or {}).get("manifest_filepath")
    if not manifest and not (cfg.model.get("validation_ds") or {}).get("use_lhotse"):
        raise TutorError(
            "model.validation_ds.manifest_filepath is not set, and the adapter's epoch is selected by its "
            "word error rate there; give a validation manifest with transcripts."
        )
    return config


def _device(cfg: Any) -> torch.device:
    wanted = str((cfg.get("trainer") or {}).get("accelerator", "auto"))
    return torch.device("cuda" if torch.cuda.is_available() and wanted in ("auto", "gpu", "cuda") else "cpu")
