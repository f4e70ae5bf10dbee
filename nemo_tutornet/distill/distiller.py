# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training-time state of the distillation: teachers, losses, schedule, and the stage that a run is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from nemo.utils import logging
from torch import Tensor

from nemo_tutornet.config import StageConfig, TeacherConfig, TutorConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.data.train_settings import changes_sound, check_augmentation
from nemo_tutornet.data.views import views_of
from nemo_tutornet.distill.consistency import is_consistent, two_views
from nemo_tutornet.distill.finite import BatchNames
from nemo_tutornet.distill.losses import LossContext, RKDLoss
from nemo_tutornet.distill.matching import ModelMatch, match_models
from nemo_tutornet.distill.objective import Objective, describe_weights
from nemo_tutornet.distill.projections import Projection
from nemo_tutornet.distill.pseudo_labels import PseudoLabels
from nemo_tutornet.distill.student_capture import StudentCapture
from nemo_tutornet.distill.warm_start import DecoderWarmStart
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule, Stage, progress
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.cached_audio import check_reading
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.side_stream import SideStream
from nemo_tutornet.teachers.targets import TargetRequest, Teacher, TeacherTargets

# Added to the seed of a training for its training-only modules, which would otherwise begin with the same
# numbers as the student's first layers.
_SEED = 20080671


class Distiller:
    """A student's teachers, losses and schedule. It is no module, so the student registers nothing of it.

    Args:
        student: a NeMo CTC model; it is run on silence and left as it was.
        config: the checked `tutor:` section; its teachers are loaded.

    Attributes:
        config: as given.
        teacher: the frozen teacher, live or cached.
        others: the other teachers, whose posteriors are averaged with its own for SKD.
        match: the student matched with its teacher.
        objective: the losses.
        schedule: the stages.
        pseudo_labels: turns hypotheses into the student's labels, and counts what it drops.
        stage: index of the stage last entered; None before the first step.
        decoder_trained: a stage has trained the student's decoder, which is no longer composed then.

    Raises:
        TutorError: a teacher cannot be loaded, or cannot be matched with the student.
    """

    def __init__(self, student: Any, config: TutorConfig) -> None:
        self.config = config
        self.side_stream = SideStream()
        # Restoring a model draws random numbers; training-only modules begin alike with a live and a cached
        # teacher.
        with torch.random.fork_rng(devices=[]):
            self.teacher = self._load(config.teacher, config.rkd.hint_layer, "model.tutor.teacher")
            if config.rkd.pairs and config.uses("rkd"):
                self.teacher.add_hint_layers([pair.hint_layer for pair in config.rkd.pairs])
            self.match = match_models(student, self.teacher, config)
            self.others, other_matches = self._load_others(student)
        self.schedule = Schedule.from_config(config.stages)
        self.pseudo_labels = PseudoLabels.for_student(config.pseudo_labels, student)
        self._reduction = str(student.cfg.get("ctc_reduction", "mean_batch"))
        outputs = len(student.decoder.vocabulary) + 1
        context = LossContext(config, self.match, other_matches, outputs, self._reduction, self.pseudo_labels)
        with torch.random.fork_rng(devices=[]):
            # With DDP, Lightning sets the seed anew before this, and without it does not.
            torch.manual_seed((torch.initial_seed() + _SEED) % 2**63)
            self.objective = Objective(context)
        warm_start = config.rkd.warm_start_decoder
        self.warm_start = DecoderWarmStart(self.match, self.teacher, self.projection, warm_start)
        self.stage: int | None = None
        self.decoder_trained = False
        self.attach_train_data(student)

    @property
    def projection(self) -> Projection:
        """f, the learned map from the guided layer to the hint layer."""
        projection = self.objective.modules["projection"]
        assert isinstance(projection, Projection)
        return projection

    @property
    def projections(self) -> list[Projection]:
        """The projections of all pairs of layers, `projection` first."""
        return [module for module in self.objective.modules.values() if isinstance(module, Projection)]

    def attach_train_data(self, student: Any) -> None:
        """Connects the cached targets to the training set, so that each row of a batch can be looked up.

        Raises:
            TutorError: a cached teacher cannot serve the stages or the training set.
        """
        self._resolver: UtteranceResolver | None = None
        request = self.objective.request(self.schedule.stages)
        teachers = (self.teacher, *self.others)
        self._reads_cache = any(teacher.from_cache for teacher in teachers)
        train_ds = student.cfg.get("train_ds") or {}
        if self._reads_cache:
            check_augmentation(train_ds)
            self._is_augmented, self._views = changes_sound(train_ds), views_of(train_ds)
            for teacher in teachers:
                if isinstance(teacher, CachedTeacher):
                    check_reading(teacher.reader, train_ds, student._train_dl)
            self.teacher.check(request, None)  # before the training set's dataloader is changed
            self._resolver = UtteranceResolver(student._train_dl, self._views)
        elif student._train_dl is not None and not train_ds.get("use_lhotse"):
            # For messages only; Lhotse's workers would send every cut along with its audio.
            with suppress(TutorError):
                self._resolver = UtteranceResolver(student._train_dl)
        of_others = TargetRequest(posteriors=True, small_posteriors=request.small_posteriors)
        for teacher in teachers:
            teacher.check(request if teacher is self.teacher else of_others, self._resolver)

    # --- One step

    def enter_stage(self, trainer: Any, batch_idx: int, decoder: Any) -> Stage:
        """Returns the stage of a batch, and composes the student's decoder where an untrained one is handed
        on.

        Args:
            trainer: Lightning's.
            batch_idx: of the batch in this epoch.
            decoder: the student's.
        """
        begun = batch_idx - batch_idx % trainer.accumulate_grad_batches
        # A stream has no length: Lightning gives infinity.
        part = begun / trainer.num_training_batches if begun else 0.0
        epochs, steps = trainer.current_epoch, trainer.global_step
        share = progress(epochs + part, steps, trainer.max_epochs, trainer.max_steps) or 0.0
        index = self.schedule.index(epochs, steps, share)
        # A run that is made longer has its boundaries later, if they are shares; it stays in the stage that
        # it had reached.
        index = max(index, self.stage or 0)
        stage = self.schedule.stages[index]
        if index != self.stage:
            number = f"{index + 1} of {len(self.schedule.stages)}"
            weights = dict(stage.weights)
            if is_consistent(self.config.consistency, stage):
                weights["consistency"] = self.config.consistency.weight
            logging.info(f"Stage {stage.name!r} ({number}): {describe_weights(weights)}.")
            if self._decoder_can_be_composed:
                self.warm_start.apply(decoder)
            self.stage = index
        self.decoder_trained |= self.objective.trains_decoder(stage)
        self.objective.note_step(stage, steps)
        return stage

    def teacher_targets(self, stage: Stage, batch: TrainingBatch) -> TeacherTargets | None:
        """Returns what a stage reads of the teachers for a batch of the training set; None where it reads
        nothing.

        On a GPU the targets are still being computed: `losses` waits for them.
        """
        request = self.objective.request([stage])
        if not request:
            return None
        if self._reads_cache:
            assert self._resolver is not None
            utterances = self._resolver(batch)
            batch = replace(batch, utterances=utterances, views=self._views, is_augmented=self._is_augmented)
        targets = self.teacher.targets(batch, request)
        if not stage.uses("skd"):
            return targets
        posteriors = TargetRequest(posteriors=True)
        return replace(targets, others=tuple(teacher.targets(batch, posteriors) for teacher in self.others))

    @contextmanager
    def capture(
        self, student: Any, batch: TrainingBatch, stage: Stage | None = None
    ) -> Iterator[StudentCapture]:
        """Yields a capture, inside which the student runs once on the capture's batch.

        Args:
            student: the student.
            batch: a batch of the training set.
            stage: the stage; in one with consistency, the student sees two views of each row.
        """
        with ExitStack() as stack:
            views = 2 if stage is not None and is_consistent(self.config.consistency, stage) else 1
            if views > 1:
                batch = stack.enter_context(two_views(student, self.config.consistency, batch))
            heads = self.objective.heads
            yield stack.enter_context(
                StudentCapture(student, self.match, heads, self._reduction, batch, views)
            )

    def losses(
        self, stage: Stage, student: StudentCapture, targets: TeacherTargets | None, ctc: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes the losses of a stage, inside the context of `capture`.

        Args:
            stage: the stage.
            student: captured on the batch.
            targets: what `teacher_targets` returned for it.
            ctc: NeMo's CTC loss, in a stage that uses it.

        Returns:
            The weighted sum as `loss`, and each loss, not weighted, under its own name.
        """
        if targets is not None:
            self.side_stream.wait(targets)
            targets = targets.for_two_views() if student.views > 1 else targets
        return self.objective(stage, student.outputs(ctc), targets)

    @property
    def names(self) -> BatchNames:
        """Names the utterances of a batch, for messages."""
        return BatchNames(self._resolver, self.teacher.sample_rate)

    @property
    def decoder_is_untrained(self) -> bool:
        """Whether the run is in a stage that leaves the decoder to be composed."""
        if not self._decoder_can_be_composed:
            return False
        return not self.objective.trains_decoder(self.schedule.stages[self.stage or 0])

    @property
    def decoder_is_random(self) -> bool:
        """Whether no stage has trained the decoder, and it cannot be composed: the student writes noise."""
        if self.stage is None or self.decoder_trained:
            return False
        return not (self._decoder_can_be_composed and self.warm_start.is_possible)

    @property
    def _decoder_can_be_composed(self) -> bool:
        """Whether RKD has trained the projection, and no stage has trained the decoder."""
        if self.stage is None or self.decoder_trained:
            return False
        return any(stage.uses("rkd") for stage in self.schedule.stages[: self.stage + 1])

    # --- A run that is resumed

    def state(self) -> dict[str, Any]:
        """Returns what resuming needs, for the `.ckpt`: the training-only parameters, on the CPU, and the
        stage.
        """
        parameters = {
            name: {key: value.detach().cpu() for key, value in module.named_parameters()}
            for name, module in self.objective.modules.items()
        }
        name = None if self.stage is None else self.schedule.stages[self.stage].name
        return {
            **parameters,
            "stage": name,
            "decoder_trained": self.decoder_trained,
            "decoder_is_random": self.decoder_is_random,
            "consistent_since": self.objective.consistent_since,
            "teachers": self._teacher_files,
        }

    @property
    def _teacher_files(self) -> list[str | None]:
        return [teacher.sha256 for teacher in (self.teacher, *self.others)]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a state, and warns where the teachers are others than those that the run had.

        Args:
            state: of a run with the same layers; its stages may have been others.

        Raises:
            TutorError: a module is missing or has another shape, or the stage that the run was in is gone.
        """
        for name, module in self.objective.modules.items():
            saved = state.get(name, {})
            for key, parameter in module.named_parameters():
                if key not in saved or saved[key].shape != parameter.shape:
                    found = f"has {key} of shape {list(saved[key].shape)}" if key in saved else "is not there"
                    raise TutorError(
                        f"the checkpoint's {name} {found}, but the layers of model.tutor want "
                        f"{list(parameter.shape)}; resume with the teacher and layers that the run began "
                        "with, or begin a new run."
                    )
                with torch.no_grad():
                    parameter.copy_(saved[key])
        before, now = state.get("teachers", self._teacher_files), self._teacher_files
        if before != now and None not in [*before, *now]:
            logging.warning(
                f"model.tutor has other teachers than this run had until now (sha256 then: {_short(before)}; "
                f"now: {_short(now)}). The run continues with the new ones; for a student of them alone "
                "begin a new run."
            )
        self._keep_reduction(state)
        self.stage = self.schedule.resumed(state["stage"])
        # The stages do not say this: the one that trained the decoder may have been left out since.
        self.decoder_trained = state["decoder_trained"]
        # Without this key, the warm-up began with the training.
        self.objective.consistent_since = state.get("consistent_since", 0)

    @property
    def rkd_reduction(self) -> str:
        """How RKD is reduced; a `.ckpt` holds it, because a resumed run keeps it."""
        return self._rkd.reduction

    @property
    def _rkd(self) -> RKDLoss:
        loss = self.objective.losses["rkd"]
        assert isinstance(loss, RKDLoss)
        return loss

    def _keep_reduction(self, state: Mapping[str, Any]) -> None:
        """Goes on with the reduction of RKD that a run began with, where the config does not say one.

        A run of an earlier version had the mean over frames, and the weights in its config are for that.
        Weights that are the defaults are those of this version.
        """
        default = TutorConfig().stages
        if self.config.rkd.reduction is None and self.config.stages != default and self.config.uses("rkd"):
            self._rkd.reduction = state.get("rkd_reduction", "frame_mean")
            if self._rkd.reduction == "frame_mean":
                logging.info("RKD is the mean over frames (rkd.reduction), as this run began.")

    # --- Teachers

    def _load(self, config: TeacherConfig, hint_layer: str | None, key: str) -> Teacher:
        if config.cache:
            return CachedTeacher(config, hint_layer, key)
        return LiveTeacher.from_config(config, hint_layer, key, self.side_stream)

    def _load_others(self, student: Any) -> tuple[list[Teacher], tuple[ModelMatch, ...]]:
        """Loads the other teachers, and matches each with the student as for a training with SKD alone."""
        skd_alone = replace(self.config, stages=[StageConfig(name="skd", weights={"skd": 1.0})])
        teachers: list[Teacher] = []
        matches: list[ModelMatch] = []
        for i, config in enumerate(self.config.other_teachers):
            teacher = self._load(config, None, f"model.tutor.other_teachers[{i}]")
            try:
                matches.append(match_models(student, teacher, skd_alone))
                teacher.check(TargetRequest(posteriors=True), None)
            except TutorError as error:
                source = config.model_path or config.cache
                raise TutorError(f"model.tutor.other_teachers[{i}] ({source}): {error}") from None
            teachers.append(teacher)
        return teachers, tuple(matches)


def _short(files: Sequence[str | None]) -> str:
    return ", ".join(str(sha256)[:12] for sha256 in files)
