# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a student in training has of its teachers, and one step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from nemo.utils import logging
from torch import Tensor

from nemo_tutornet.config import StageConfig, TeacherConfig, TutorConfig
from nemo_tutornet.data.dataloader import UtteranceResolver, check_augmentation
from nemo_tutornet.distill.matching import ModelMatch, match_models
from nemo_tutornet.distill.objective import Objective, needs
from nemo_tutornet.distill.projections import Head, Projection, TrainingOnlyConv1d
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.distill.student_capture import StudentCapture, StudentOutputs
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule, Stage
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.live import Teacher
from nemo_tutornet.teachers.side_stream import SideStream
from nemo_tutornet.teachers.targets import TeacherTargets


class Distiller:
    """A student's teachers, schedule and objective: a plain object, so that nothing of it is registered in
    the student.

    Args:
        student: a NeMo CTC model; it is run on silence and left as it was.
        config: the checked `tutor:` section; its teachers are loaded.

    Attributes:
        teacher: the frozen teacher, or what its cache says in its place.
        others: further ones, whose posteriors are averaged with its own.
        beside: runs the live ones; on a GPU the losses wait for them there.
        pairing: what is matched with what.
        projection: f.
        heads: of layers inside the student.
        schedule: the stages.
        objective: the losses.
        pseudo_labels: what becomes of the teacher's hypotheses.
        stage: index of the stage last entered; None before the first step.
        decoder_trained: a stage has trained the student's decoder, which is no longer composed then.

    Raises:
        TutorError: a teacher cannot be loaded, or does not go together with the student.
    """

    def __init__(self, student: Any, config: TutorConfig) -> None:
        # Restoring a model draws random numbers; f and the heads begin alike whether the teacher is restored
        # or cached.
        with torch.random.fork_rng(devices=[]):
            self.teacher = _teacher(config.teacher, config.rkd.hint_layer, "model.tutor.teacher")
            self.pairing = match_models(student, self.teacher, config)
            self.others, others = _others(student, config)
        self.beside = SideStream()
        self.projection = Projection(self.pairing.guided.width, self.pairing.hint.width)
        labels = len(student.decoder.vocabulary) + 1
        self.heads = [Head(layer.width, labels) for layer in self.pairing.heads]
        reduction = student.cfg.get("ctc_reduction", "mean_batch")
        self.objective = Objective(config, self.pairing, others, self.projection, self.heads, reduction)
        self.schedule = Schedule.from_config(config.stages)
        self.pseudo_labels = PseudoLabels.for_student(config.pseudo_labels, student)
        self.attach_train_data(student)
        self.stage: int | None = None
        self.decoder_trained = False
        self._reduction = reduction

    def attach_train_data(self, student: Any) -> None:
        """Takes note of the student's training set: where targets are cached, which of them belongs to a row
        of a batch.
        """
        self._rows = self._setup_cached_targets(student)

    @property
    def modules(self) -> dict[str, TrainingOnlyConv1d]:
        """What trains with the student and does not leave with it, by the names that a `.ckpt` has for it."""
        heads = {
            f"head {layer.path}": head for layer, head in zip(self.pairing.heads, self.heads, strict=True)
        }
        return {"projection": self.projection, **heads}

    def idle(self, stage: Stage) -> list[torch.nn.Module]:
        """Which of them no loss of a stage reaches."""
        return [*([] if stage.uses("rkd") else [self.projection]), *([] if stage.uses("skd") else self.heads)]

    def state(self) -> dict[str, Any]:
        """What resuming needs, for the `.ckpt`: the modules' parameters, on the CPU, and how far the stages
        are.
        """
        parameters = {
            name: {parameter: value.detach().cpu() for parameter, value in module.named_parameters()}
            for name, module in self.modules.items()
        }
        name = None if self.stage is None else self.schedule.stages[self.stage].name
        return {**parameters, "stage": name, "decoder_trained": self.decoder_trained, "teachers": self._files}

    @property
    def _files(self) -> list[str | None]:
        """sha256 of each teacher's file, live or cached."""
        return [one.sha256 for one in (self.teacher, *self.others)]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes it back; tells if the teachers are others than those that the run had until now.

        Args:
            state: of a run with the same layers; its stages may have been others.

        Raises:
            TutorError: a module is not there or has another shape, or the stage that the run was in is gone.
        """
        for name, module in self.modules.items():
            saved = state.get(name, {})
            for key, parameter in module.named_parameters():
                if key not in saved or saved[key].shape != parameter.shape:
                    found = f"has {key} of shape {list(saved[key].shape)}" if key in saved else "is not there"
                    raise TutorError(
                        f"the checkpoint's {name} {found}, but the layers of model.tutor want "
                        f"{list(parameter.shape)}; "
                        f"resume with the teacher and layers that the run began with, or begin a new run."
                    )
                with torch.no_grad():
                    parameter.copy_(saved[key])
        before = state.get("teachers", self._files)
        if before != self._files and None not in [*before, *self._files]:
            logging.warning(
                "model.tutor has other teachers than this run had until now (sha256 then: "
                f"{_listed(before)}; now: "
                f"{_listed(self._files)}). It goes on with those of now; for a student of them alone begin a "
                "new run."
            )
        self.stage = self.schedule.resumed(state["stage"])
        # Not told by the stages: the one that trained the decoder may have been left out since.
        self.decoder_trained = state["decoder_trained"]

    def _setup_cached_targets(self, student: Any) -> UtteranceResolver | None:
        """Where targets are cached: checks that they are there, and how a batch's rows are told apart."""
        cached = [one for one in (self.teacher, *self.others) if isinstance(one, CachedTeacher)]
        if not cached:
            return None
        check_augmentation(student.cfg.get("train_ds") or {})
        wanted = needs(self.schedule.stages, self.pairing)
        if isinstance(self.teacher, CachedTeacher):
            self.teacher.check_holds(**wanted)
        rows = UtteranceResolver(student._train_dl)
        if (
            not rows.is_iterable
        ):  # tars may hold less than their manifest; an utterance that is missing is named when it is read
            for one in cached:
                one.check_utterances(rows.manifest_utterances)
        return rows

    def targets(self, stage: Stage, batch: Sequence[Any]) -> TeacherTargets | None:
        """What the stage reads of the teachers for a batch of the training set; None where it reads nothing.

        On a GPU it is still being computed: `beside.join` comes before the first read, as in `Step.total`.
        """
        wanted = needs([stage], self.pairing)
        if not any(wanted.values()):
            return None
        given = self._ask(self.teacher, batch, **wanted)
        if not stage.uses("skd"):
            return given
        return replace(
            given, others=tuple(self._ask(one, batch, hidden=False, posteriors=True) for one in self.others)
        )

    def _ask(self, teacher: Teacher | CachedTeacher, batch: Sequence[Any], **wanted: bool) -> TeacherTargets:
        if isinstance(teacher, Teacher):
            return self.beside(teacher, batch[0], batch[1], **wanted)
        assert self._rows is not None
        return teacher(self._rows(batch), batch[1], **wanted)

    def watch(self, student: Any, batch: Sequence[Tensor]) -> StudentCapture:
        """A context in which the student runs once on a batch; what the losses read of it is kept."""
        return StudentCapture(student, self.pairing, self._reduction, batch)

    def step(self, stage: Stage, targets: TeacherTargets | None, watch: StudentCapture) -> Step:
        """One training step of a student that is being watched."""
        return Step(self, stage, targets, watch)


def _teacher(config: TeacherConfig, hint_layer: str | None, key: str) -> Teacher | CachedTeacher:
    return (
        CachedTeacher(config, hint_layer, key)
        if config.cache
        else Teacher.from_config(config, hint_layer, key)
    )


def _listed(files: Sequence[str | None]) -> str:
    return ", ".join(str(one)[:12] for one in files)


def _others(student: Any, config: TutorConfig) -> tuple[list[Teacher | CachedTeacher], list[ModelMatch]]:
    """The other teachers, each matched with the student as for a run with nothing but SKD."""
    alone = replace(config, stages=[StageConfig(name="skd", weights={"skd": 1.0})])
    teachers, pairings = [], []
    for i, one in enumerate(config.other_teachers):
        teacher = _teacher(one, None, f"model.tutor.other_teachers[{i}]")
        try:
            pairings.append(match_models(student, teacher, alone))
            if isinstance(teacher, CachedTeacher):
                teacher.check_holds(hidden=False, posteriors=True, hypotheses=False)
        except TutorError as error:
            raise TutorError(
                f"model.tutor.other_teachers[{i}] ({one.model_path or one.cache}): {error}"
            ) from None
        teachers.append(teacher)
    return teachers, pairings


class Step:
    """One training step: named terms, and the weighted sum of them. Without targets CTC is the only term.

    Args:
        tutor: whose step it is.
        stage: the stage that the step belongs to.
        targets: what the teachers gave; None where nobody asked.
        watch: of the student, which runs before `total` is asked for.

    Attributes:
        logs: the terms, not weighted, by the names that they are logged under.
    """

    def __init__(
        self, tutor: Distiller, stage: Stage, targets: TeacherTargets | None, watch: StudentCapture
    ) -> None:
        self._tutor, self._stage, self._targets, self._watch = tutor, stage, targets, watch
        self.logs: dict[str, Tensor] = {}

    def total(self, ctc: Tensor | None = None) -> Tensor:
        """The weighted sum; `ctc` is NeMo's, in a stage that uses it."""
        objective, stage = self._tutor.objective, self._stage
        terms: dict[str, Tensor] = {}
        if self._targets is not None:
            self._tutor.beside.join(self._targets)
            outputs = self._watch.outputs()
            terms = objective.terms(stage, outputs, self._targets, self._watch.ctc)
            if stage.uses("pseudo"):
                terms["pseudo"] = self._pseudo(outputs, self._targets)
        if ctc is not None:
            terms["ctc"] = ctc
        self.logs = {f"train_{name}": term.detach() for name, term in terms.items()}
        weights = objective.weights(stage)
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def _pseudo(self, outputs: StudentOutputs, given: TeacherTargets) -> Tensor:
        """CTC against the teacher's hypotheses."""
        assert given.hypotheses is not None
        labels, lengths = self._tutor.pseudo_labels.targets(
            given.hypotheses, outputs.transcripts, outputs.target_lengths, outputs.lengths
        )
        return self._watch.ctc(outputs.log_probs, outputs.lengths, labels, lengths)
