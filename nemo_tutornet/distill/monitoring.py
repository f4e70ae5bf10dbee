# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is logged of a distillation besides its losses: the stage's name, stages that are not reached, how
many hypotheses were used, the agreement with the teacher on validation, and a picture of the posteriors.

The student is not run for it: its posteriors are those of NeMo's own validation. The teacher runs once over a
few utterances, at the first validation.

Legend: `B` utterances, `S` frames of the student, `T` of the teacher, `V` labels with the blank last.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from nemo.utils import logging
from torch import Tensor

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.loggers import log_figure, log_text, takes_figures
from nemo_tutornet.distill.pictures import can_draw, posterior_figure
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.alignment import label_order
from nemo_tutornet.functional.greedy import greedy_path
from nemo_tutornet.functional.schedule import steps_per_epoch
from nemo_tutornet.nemo_io.layers import ENCODER, Capture
from nemo_tutornet.nemo_io.restore import labels_of
from nemo_tutornet.teachers.targets import TargetRequest


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's output for one validation utterance, on the student's frames and labels.

    Attributes:
        best: best label of each frame `[S]`.
        text: its greedy hypothesis.
        posteriors: `[S, V]`; None where they are not drawn.
    """

    best: Tensor
    text: str
    posteriors: Tensor | None


@dataclass(frozen=True)
class Agreement:
    """How far a student's greedy labels are those of its teacher.

    Attributes:
        frames: share of the frames, among those on which the teacher's best label is not the blank, on which
            the student has the same best label.
        wer: word error rate of the student's greedy hypotheses, with the teacher's as references. None where
            the teacher outputs no word.
    """

    frames: float
    wer: float | None


class DistillationMonitor(Callback):
    """Logs, on rank zero and only where the trainer has a logger:

    - `tutor_stage_name`, a text, when a stage begins;
    - `val_teacher_agreement` and `val_wer_to_teacher` (see `Agreement`) after each validation, on the first
      `tutor.log.agreement` utterances;
    - `posteriors`, a picture of the first validation utterance (`tutor.log.posteriors`).

    Without a logger it only warns of stages that the training never reaches, and reports after each epoch how
    many hypotheses were used.

    It changes neither random numbers nor the model.
    """

    def __init__(self) -> None:
        self._stage: int | None = None
        self._teacher: dict[int, tuple[object, list[TeacherOutput]]] = {}  # by the index of the batch
        self._stack: ExitStack | None = None
        self._captures: tuple[Capture, Capture] | None = None  # of the encoder and the decoder

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Decides what can be logged, and says what cannot."""
        self._release()
        self._stage, self._teacher = None, {}
        self._utterances = self._pictures = 0
        distiller = pl_module.distiller
        if distiller is None or not trainer.loggers or not trainer.is_global_zero:
            return
        config = distiller.config.log
        self._utterances = config.agreement
        reason = _no_agreement(pl_module, distiller)
        if self._utterances and reason:
            logging.info(f"No agreement with the teacher is logged on validation: {reason}")
            self._utterances = 0
        if config.posteriors and takes_figures(trainer.loggers):
            self._pictures = int(can_draw())
            if not self._pictures:
                logging.info(
                    "No pictures of posteriors are logged: they need matplotlib (pip install matplotlib)."
                )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warns of stages that the training will never reach; the number of batches is known here."""
        if pl_module.distiller is None:
            return
        steps = steps_per_epoch(trainer.num_training_batches, trainer.accumulate_grad_batches)
        for warning in pl_module.distiller.schedule.unreached(trainer.max_epochs, trainer.max_steps, steps):
            logging.warning(warning)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Warns of stages that have not begun, e.g. because the length of an epoch was unknown before."""
        distiller = pl_module.distiller
        if distiller is None or distiller.stage is None:
            return
        stages = distiller.schedule.stages
        later = ", ".join(repr(stage.name) for stage in stages[distiller.stage + 1 :])
        if later:
            logging.warning(
                f"The training ended in stage {stages[distiller.stage].name!r}; the stages after it never "
                f"began: {later}."
            )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the name of a stage that has begun."""
        distiller = pl_module.distiller
        if distiller is None or distiller.stage in (None, self._stage) or not trainer.is_global_zero:
            return
        self._stage = distiller.stage
        name = distiller.schedule.stages[distiller.stage].name
        log_text(trainer.loggers, "tutor_stage_name", name, trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the outcomes of the hypotheses of all ranks."""
        distiller = pl_module.distiller
        if distiller is None or not distiller.config.uses("pseudo"):
            return
        labels = distiller.pseudo_labels
        labels.gather()  # a rank without a hypothesis takes part
        if labels.counts:
            log = logging.info if labels.counts["kept"] else logging.warning
            log(f"Epoch {trainer.current_epoch}, {labels.report()}")

    # --- Validation

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forgets the utterances of the last validation."""
        self._log_probs: list[Tensor] = []
        self._outputs: list[TeacherOutput] = []

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Captures the student's output, until there are enough utterances."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and dataloader_idx == 0 and self._missing:
            self._stack = ExitStack()
            # With InterCTC, NeMo runs the decoder on intermediate layers afterwards.
            self._captures = (
                self._stack.enter_context(Capture(pl_module, ENCODER, first=True)),
                self._stack.enter_context(Capture(pl_module, "decoder", first=True)),
            )

    def _release(self) -> None:
        """Removes the hooks of the captures, and releases the outputs that they hold."""
        if self._stack is not None:
            self._stack.close()
        self._stack = self._captures = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Removes the hooks, because a training may be stopped between the two hooks of a batch."""
        self._release()

    @property
    def _missing(self) -> int:
        return max(self._utterances, self._pictures) - len(self._log_probs)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps the captured output, and asks the teacher about these utterances once."""
        if self._captures is None:
            return
        encoder, decoder = self._captures
        self._release()
        given = TrainingBatch.from_nemo(batch)
        rows = min(self._missing, len(given.signal_lengths))
        log_probs = decoder.output[:rows].float().cpu()
        frames = encoder.output[1][:rows].tolist()
        if self._utterances:
            # A set that is shuffled has other utterances each time.
            lengths = given.signal_lengths[:rows]
            key = lengths.tolist(), float(given.signal[:rows].double().sum())
            known, found = self._teacher.get(batch_idx, (None, []))
            if known != key:
                audio = given.signal[:rows, : int(lengths.max())], lengths
                found = self._ask(pl_module.distiller, *audio, log_probs.shape[1], frames)
                self._teacher[batch_idx] = key, found
            self._outputs += found
        self._log_probs += [row[:length] for row, length in zip(log_probs, frames, strict=True)]

    def _ask(
        self, distiller: Any, signal: Tensor, lengths: Tensor, frames: int, valid: list[int]
    ) -> list[TeacherOutput]:
        """Runs the teacher on utterances.

        Args:
            distiller: the student's.
            signal: `[B, N]` samples.
            lengths: `[B]`.
            frames: `S` of the student's output.
            valid: its valid frames, `B` numbers.
        """
        match, decode = distiller.match, distiller.pseudo_labels.decode
        # Lightning validates in inference mode, whose tensors a later training step could not use.
        with torch.inference_mode(False), torch.no_grad():
            targets = distiller.teacher.targets(
                TrainingBatch(signal.clone(), lengths.clone()), TargetRequest(posteriors=True)
            )
            distiller.side_stream.wait(targets)
            own = targets.log_probs.float()
            aligned = match.align_posteriors(own, targets.lengths, frames, match.student_encoder).cpu()
        if match.label_order is not None:
            own = own[..., torch.tensor(match.label_order, device=own.device)]
        texts = [
            decode(greedy_path(row[:length].cpu()))
            for row, length in zip(own, targets.lengths.tolist(), strict=True)
        ]
        drawn = bool(self._pictures) and not self._outputs
        return [
            TeacherOutput(row[:length].argmax(dim=1), text, row[:length].exp() if drawn and not i else None)
            for i, (row, length, text) in enumerate(zip(aligned, valid, texts, strict=True))
        ]

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the agreement and the picture."""
        if not self._log_probs:
            return
        distiller = pl_module.distiller
        if self._outputs:
            student = self._log_probs[: len(self._outputs)]
            found = agreement(student, self._outputs, distiller.pseudo_labels.decode)
            if found is not None:
                values = {"val_teacher_agreement": found.frames, "val_wer_to_teacher": found.wer}
                for name, value in values.items():
                    if value is not None:
                        pl_module.log(name, value, rank_zero_only=True)
        if self._pictures:
            posteriors = {"student": self._log_probs[0].exp()}
            if self._outputs and self._outputs[0].posteriors is not None:
                posteriors = {"teacher": self._outputs[0].posteriors, **posteriors}
            figure = posterior_figure(
                posteriors,
                labels_of(pl_module, pl_module.decoder),
                distiller.match.student_encoder.frame_ms,
                f"First validation utterance, step {trainer.global_step}",
            )
            log_figure(trainer.loggers, "posteriors", figure, trainer.global_step)


def agreement(student: list[Tensor], teacher: list[TeacherOutput], decode: Any) -> Agreement | None:
    """Compares a student's greedy labels with its teacher's.

    Args:
        student: log-probabilities `[S, V]` of each utterance.
        teacher: the teacher's output for each.
        decode: writes labels as text.

    Returns:
        The agreement; None where the teacher's best label is the blank on all frames.
    """
    from jiwer import wer

    same = counted = 0
    references: list[str] = []
    hypotheses: list[str] = []
    for log_probs, outputs in zip(student, teacher, strict=True):
        spoken = outputs.best != log_probs.shape[1] - 1
        same += int((log_probs.argmax(dim=1) == outputs.best)[spoken].sum())
        counted += int(spoken.sum())
        if outputs.text.strip():  # an error rate needs a word in the reference
            references.append(outputs.text)
            hypotheses.append(decode(greedy_path(log_probs)))
    if not counted:
        return None
    return Agreement(same / counted, wer(references, hypotheses) if references else None)


def _no_agreement(student: Any, distiller: Any) -> str | None:
    """Returns why a teacher cannot be compared with its student on validation; None if it can."""
    teacher = distiller.teacher
    if teacher.from_cache:
        return "the teacher is read from a cache, which holds the training set; it is not run."
    if not teacher.has_posteriors:
        return (
            "the teacher has no CTC head, and so no posteriors on frames (`nemo-tutornet adapt` makes one)."
        )
    try:
        label_order(labels_of(student, student.decoder), teacher.labels)
    except TutorError:
        return "the teacher has other labels than the student (`nemo-tutornet adapt` makes an adapter)."
    return None
