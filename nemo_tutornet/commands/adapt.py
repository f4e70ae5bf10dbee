# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet adapt`: trains an adapter, a CTC head with the student's labels on a teacher's frozen
encoder (`teachers.adapter`).

The encoder runs over the training and validation sets once. Its output is kept like cached targets, and the
head is trained on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tutornet.commands.adapter_batches import StoredUtterances, TrainingSet
from nemo_tutornet.commands.adapter_data import (
    LiveUtterances,
    examples_of,
    fits_on_disk,
    lacks_transcripts,
    manifest_digests,
    stored_encodings,
)
from nemo_tutornet.commands.adapter_rounds import Examples, Rounds, Source, train_rounds, written_by
from nemo_tutornet.commands.adapter_setup import DROPOUT, AdapterTask, adapter_task, checked_config
from nemo_tutornet.commands.adapter_training import EpochResult, Settings, epochs_for, train_head
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.teachers.adapter_head import AdapterHead

LEARNING_RATE = 2e-3
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
    epochs: int | None = None,
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
        epochs: passes over the training set; None is 40, and more for a small set (`epochs_for`).
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
    config = checked_config(cfg)
    work = output.with_suffix(".work") if work is None else work
    task = adapter_task(cfg, config, work, width, batch_size)
    if live is None:
        live = not fits_on_disk(task.student, task.teacher, task.work)

    def trained(training: TrainingSet, data: Sequence[Any], part: str) -> tuple[AdapterHead, EpochResult]:
        head = task.new_head()
        digest = task.digest(head, data, live=live)
        number = epochs or epochs_for(training.batches_in_epoch())
        settings = Settings(number, learning_rate, task.size, DROPOUT, task.seed, digest)
        state = task.work / f"{output.stem}{part and '.'}{part}.state.pt"
        shown = partial(report, PARTS[part])
        return head, train_head(head, training, task.word_error_rate, settings, state, shown, task.device)

    if live:
        lively = LiveUtterances(task.shuffled_loader(), task.teacher, task.pseudo, task.device)
        best = Rounds(*trained(lively, manifest_digests(task.student.cfg.train_ds), ""), [], "", 0)
    else:
        reader, found = _stored_examples(task)
        best = train_rounds(
            found,
            task.teacher_wer,
            lambda examples, part: trained(StoredUtterances(reader, examples, task.size), examples, part),
            lambda head: written_by(head, reader, found.silent, task.size),
        )
    info = task.info(best.head, best.last.best_wer)
    Adapter(best.head, info).save(output)
    return AdaptResult(
        path=str(output),
        labels=len(task.labels),
        frame_ms=info.frame_ms,
        upsampling=task.upsampling,
        parameters=sum(parameter.numel() for parameter in best.head.parameters()),
        wer=info.wer,
        teacher_wer=task.teacher_wer,
        best_epoch=best.last.best_epoch,
        epochs=best.last.epoch,
        utterances=len(best.examples),
        pseudo_labelled=best.untranscribed,
        hypotheses_of=best.source,
        minutes=(time.monotonic() - start) / 60,
        work=str(task.work),
    )


def _stored_examples(task: AdapterTask) -> tuple[CacheReader, Examples]:
    """Runs the encoder over the training set, and returns its output and the utterances with their labels."""
    needs_hypotheses = lacks_transcripts(task.student._train_dl)
    reader = stored_encodings(task.cfg, task.work, "train", needs_hypotheses, task.batch_size)
    found = examples_of(task.student, reader, task.pseudo)
    if not found.transcribed and not found.hypothesised:
        raise TutorError(
            "no utterance of model.train_ds has a transcript or a usable hypothesis in the student's "
            f"labels ({task.pseudo.report().rstrip('.')}), so the adapter would learn nothing."
        )
    return reader, found
