# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's CTC models with a teacher: a mixin, and a thin class for each of NeMo's two CTC models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes.common import PretrainedModelInfo
from nemo.utils import logging
from nemo.utils.model_utils import convert_model_config_to_dict_config
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from nemo_tutornet.config import TutorConfig, check_student
from nemo_tutornet.data.damage import MOST_DAMAGED
from nemo_tutornet.data.damaged_audio import guard_audio
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.mixing import ManifestMix, mixed_loader
from nemo_tutornet.distill.consistency import CTC_ALONE, ViewsWithoutTeacher
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.early_stopping import wait_for_decoder
from nemo_tutornet.distill.ema import use_resumable_ema
from nemo_tutornet.distill.finite_guard import FiniteGuard
from nemo_tutornet.distill.init_student import check_other_weights, init_student
from nemo_tutornet.distill.mixup import mix_batch
from nemo_tutornet.distill.monitoring import DistillationMonitor
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.distill.projections import Head
from nemo_tutornet.distill.resumable_model import ResumableMixin
from nemo_tutornet.distill.run_files import RunFiles
from nemo_tutornet.distill.setup_log import log_setup
from nemo_tutornet.distill.stopping import TrainingStop
from nemo_tutornet.distill.student_capture import run_without_decoder
from nemo_tutornet.distill.student_files import StudentFilesMixin
from nemo_tutornet.distill.training_report import TrainingReport
from nemo_tutornet.distill.transcripts import check_transcripts, data_sets
from nemo_tutornet.distill.unused_parameters import UnusedParameters
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule, Stage
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR
from nemo_tutornet.teachers.tokenizer import resolve_teacher_tokenizer


def model_class_for(model_cfg: Any) -> type[TutorCTCModel] | type[TutorCTCModelBPE]:
    """Returns the subword class for a student's config with a tokenizer, else the character class."""
    return TutorCTCModelBPE if model_cfg.get("tokenizer") else TutorCTCModel


class TutorMixin(StudentFilesMixin, ResumableMixin):
    """A teacher and the TutorNet losses for a NeMo CTC model (Yoon et al., arXiv 2008.00671).

    Add a `tutor:` section to the student's config, and train the student like any NeMo model::

        model:
          # ... a stock NeMo student ...
          tutor:
            teacher:
              model_path: teacher.nemo     # or the name of a pretrained NeMo model
            stages:                        # a stage without a length runs to the end; these are the default
              - {name: rkd, share: 0.25, weights: {rkd: 0.37}}
              - {name: ctc, weights: {ctc: 1.0, rkd: 1.85}}
              # the paper's second stage: {name: skd, weights: {ctc: 1.0, skd: 0.25}}

    `nemo_tutornet.config` documents all keys.

    Without the section the model behaves like NeMo's. The teacher is loaded only when training starts. To
    restore, validate, transcribe with or export a student, the teacher's file is not needed. Every `.nemo`
    file holds the stock student: NeMo's class, NeMo's keys and no `tutor:` section.

    The mixin overrides these hooks of NeMo:

    - `training_step`, `add_auxiliary_losses` and `add_interctc_losses` compute the losses.
    - `setup` checks the transcripts, guards against damaged audio, loads the teacher, and initialises a new
        student from it (`tutor.init`).
    - `maybe_init_from_pretrained_checkpoint` refuses weights that `tutor.init` would overwrite.
    - `add_interctc_losses` applies InterCTC to CTC alone.
    - `on_save_checkpoint` and `on_load_checkpoint` store and restore the training-only modules and the stage.
    - `on_before_optimizer_step` keeps unused parameters unchanged.
    - `configure_callbacks` adds what a training shows and logs, and how it stops
      (`distill.training_report`, `distill.monitoring`, `distill.stopping`).

    `StudentFilesMixin` reads and writes the files, and composes the decoder while it is untrained.
    `ResumableMixin` makes a resumed training equal to one that was not interrupted.
    """

    _stock_target: str

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        cfg = convert_model_config_to_dict_config(cfg)
        check_numbers(cfg, "the model's config")
        config = read_tutor_section(cfg)
        # The target is NeMo's own class, so that NeMo restores the file without this package and without an
        # entry in NeMo's allow-list.
        with open_dict(cfg):
            cfg.target = self._stock_target
        # A model that is restored has weights, which `tutor.init` must not overwrite.
        restored = self._is_model_being_restored()
        if not restored:
            check_student(cfg)
        if trainer is not None and trainer.overfit_batches and cfg.get("train_ds"):
            with open_dict(cfg):  # Lightning would take single utterances from the sampler of sorted batches
                cfg.train_ds.use_semi_sorted_batching = False
        super().__init__(cfg=cfg, trainer=trainer)
        alone = config is not None and config.without_teacher  # consistency of two views beside CTC
        self._views = ViewsWithoutTeacher(self, config.consistency) if alone and config is not None else None
        self._tutor_config: TutorConfig | None = None if alone else config
        self._limits = config  # also without a teacher
        self._copies_teacher = config is not None and config.init.source is not None and not restored
        self._distiller: Distiller | None = None
        self._distiller_state: dict[str, Any] | None = None  # from a checkpoint, until a distiller exists
        self._mix: ManifestMix | None = None  # of `tutor.manifest_weights`
        self._losses: Callable[..., dict[str, Tensor]] | None = None  # losses of the current step
        self._terms: dict[str, Tensor] = {}
        self._unused_parameters = UnusedParameters()
        self._guard = FiniteGuard()
        self.training_only = nn.ModuleList()  # not in `state_dict()`

    @property
    def distiller(self) -> Distiller | None:
        """Teachers, losses and stages; None before training starts or without a `tutor:` section."""
        return self._distiller

    # --- Setup

    def setup(self, stage: str | None = None) -> None:
        """Runs NeMo's setup; before training, loads the teacher and registers the training-only modules.

        The optimizer is built afterwards, so it includes the parameters of these modules. A new `Trainer`
        that begins at its first step starts a new training, which begins with the first stage. Only the first
        training of a student whose weights are a checkpoint's (`load_from_checkpoint`) begins in the stage of
        the checkpoint, with its projection.

        Args:
            stage: Lightning's stage. The teacher is loaded only for `fit`.
        """
        super().setup(stage)
        if stage != "fit":
            return
        for warning in check_transcripts(self):
            logging.warning(warning)
        weights = self._limits.manifest_weights if self._limits is not None else None
        if weights is not None and not self.trainer.overfit_batches:
            mixed, self._mix = mixed_loader(self._train_dl, self.cfg.train_ds, weights, self.trainer)
            self._train_dl: Any = mixed
        share = MOST_DAMAGED if self._limits is None else self._limits.max_damaged_share
        for section, loader in data_sets(self):
            # Without one of its utterances, a validation set would be another one.
            is_train = loader is self._train_dl
            data = self.cfg.train_ds if is_train else None
            guard_audio(loader, section, share if is_train else 0.0, data)
        if self._tutor_config is None:
            for warning in [] if self._views is None else self._views.check():
                logging.warning(warning)
            self._guard.attach(self)
            return
        begins = not (self.trainer.current_epoch or self.trainer.global_step)
        if self._distiller is not None and not (begins and self._distiller.stage is not None):
            self._distiller.attach_train_data(self)  # the training set may have changed
        else:
            # Restoring a model draws random numbers. Isolate them, so that the student is trained on the same
            # data with and without a teacher.
            with torch.random.fork_rng(devices=[]):
                self._setup_distillation(self._tutor_config)
        self._guard.attach(self)

    def _setup_distillation(self, config: TutorConfig) -> None:
        Schedule.from_config(config.stages).check(self.trainer.max_epochs, self.trainer.max_steps)
        for warning in config.unused() + config.reduction_warning():
            logging.warning(warning)
        distiller = Distiller(self, config)
        # Heads come first, because a `.ckpt` holds the optimizer's state of the parameters in this order.
        modules = sorted(
            distiller.objective.modules.values(), key=lambda module: not isinstance(module, Head)
        )
        self.training_only = nn.ModuleList(modules).to(next(self.parameters()).device)
        self._distiller, self._unused_parameters = distiller, UnusedParameters()
        if self._distiller_state is not None:
            distiller.restore(self._distiller_state)
            self._distiller_state = None  # valid for one training only
        if self._copies_teacher and not self.trainer.ckpt_path:
            init_student(self, distiller).log()
        wait_for_decoder(self.trainer)
        self._copies_teacher = False  # a second training goes on from the weights of the first
        log_setup(self, config, distiller.match)

    def maybe_init_from_pretrained_checkpoint(self, cfg: DictConfig, map_location: str = "cpu") -> None:
        """Runs NeMo's method, which loads weights into a new model.

        Args:
            cfg: the whole config of the training script.
            map_location: see NeMo's method.

        Raises:
            TutorError: `tutor.init` would overwrite these weights.
        """
        check_other_weights(cfg, self._tutor_config)
        super().maybe_init_from_pretrained_checkpoint(cfg, map_location)

    def configure_callbacks(self) -> list[Callback]:
        """Adds what guards, stops, shows and logs a training, where the trainer does not have it yet."""
        callbacks: list[Callback] = list(super().configure_callbacks())
        if self.trainer.state.fn == TrainerFn.FITTING:
            use_resumable_ema(self.trainer)
            ours: list[type[Callback]] = [RunFiles, TrainingStop]
            if self._tutor_config is not None:
                ours += [TrainingReport, DistillationMonitor]
            present = {type(callback) for callback in self.trainer.callbacks}
            callbacks += [callback() for callback in ours if callback not in present]
            if self._guard not in self.trainer.callbacks:
                callbacks.append(self._guard)
        return callbacks

    # --- One step

    def training_step(self, batch: Any, batch_nb: int) -> dict[str, Any]:
        """Runs NeMo's training step with the losses of the stage.

        NeMo computes the CTC loss, and only in stages that use it.

        Args:
            batch: a batch of the training set.
            batch_nb: index of the batch in the epoch.

        Returns:
            The output of NeMo's training step: the loss, and the values to log.
        """
        distiller = self._distiller
        if distiller is None:
            if not isinstance(batch, (tuple, list)):  # NVIDIA DALI's
                self._guard.agree(self, None, self.device)
                return super().training_step(batch, batch_nb)
            batch = TrainingBatch.from_nemo(batch)
            if self._views is not None:
                with self._views.capture(batch) as views:
                    losses = partial(self._views.terms, views)
                    output = self.step_of_stage(views, batch_nb, CTC_ALONE, losses)
                return self._guard.checked(self, output, self._take_terms(), batch, None)
            output = super().training_step(batch.for_nemo(), batch_nb)
            return self._guard.checked(self, output, {"loss": output["loss"].detach()}, batch, None)
        batch = TrainingBatch.from_nemo(batch)
        stage = distiller.enter_stage(self.trainer, batch_nb, self.decoder)
        batch = mix_batch(distiller.config.mixup, stage, batch)
        targets = distiller.teacher_targets(stage, batch)  # still being computed on a GPU
        with distiller.capture(self, batch, stage) as student:
            losses = partial(distiller.losses, stage, student, targets)
            output = self.step_of_stage(student.batch, batch_nb, stage, losses)
        diagnostics = distiller.objective.diagnostics(stage)
        output["log"].update({f"train_{name}": value for name, value in diagnostics.items()})
        output["log"].update(tutor_stage=float(distiller.stage or 0))
        find_unused = not distiller.objective.trains_decoder(stage)
        output["loss"] = self._unused_parameters.touch(
            output["loss"], self.parameters(), stage.name, find_unused
        )
        return self._guard.checked(self, output, self._take_terms(), batch, targets)

    def _take_terms(self) -> dict[str, Tensor]:
        """Returns the losses of the step, and keeps neither them nor their graph."""
        terms, self._terms = self._terms, {}
        return {name: value.detach() for name, value in terms.items()}

    def step_of_stage(
        self, batch: TrainingBatch, batch_nb: int, stage: Stage, losses: Callable[..., dict[str, Tensor]]
    ) -> dict[str, Any]:
        """Runs the student, and returns the loss and log in the format of NeMo's training step."""
        if stage.uses("ctc"):
            self._losses, self._ctc_weight = losses, stage.weights["ctc"]
            try:
                output = super().training_step(batch.for_nemo(), batch_nb)
            finally:
                self._losses = None
            terms = self._terms
        else:
            if self._distiller is not None and not self._distiller.objective.trains_decoder(stage):
                run_without_decoder(self, batch)
            else:
                self.forward(input_signal=batch.signal, input_signal_length=batch.signal_lengths)
            self._terms = terms = losses()
            global_step = torch.tensor(self.trainer.global_step, dtype=torch.float32)
            log = {"learning_rate": self._optimizer.param_groups[0]["lr"], "global_step": global_step}
            output = {"loss": terms["loss"], "log": {"train_loss": terms["loss"], **log}}
        output["log"].update({f"train_{name}": terms[name].detach() for name in terms if name != "loss"})
        return output

    def add_auxiliary_losses(self, loss: Tensor, reset_registry: bool = False) -> Tensor:
        """Replaces the CTC loss by the weighted sum of the stage's losses.

        NeMo's training step calls this method after it computes CTC and before it logs.

        Args:
            loss: the CTC loss, scalar.
            reset_registry: see NeMo's method.

        Returns:
            The weighted sum, scalar; outside a training step with a teacher, the result of NeMo's method.
        """
        loss = super().add_auxiliary_losses(loss, reset_registry)
        if self._losses is None:
            return loss
        self._terms = self._losses(ctc=loss)
        return self._terms["loss"]

    def add_interctc_losses(self, loss_value: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
        """Applies NeMo's InterCTC (`model.interctc`) to the stage's CTC loss alone.

        NeMo's method multiplies the whole loss by what the intermediate layers' weights leave of 1, so that
        RKD and SKD would weigh less than the stage says.
        """
        if self._losses is None or not self.is_interctc_enabled():
            return super().add_interctc_losses(loss_value, *args, **kwargs)
        ctc = self._terms["ctc"]
        # NeMo's method changes its argument in place, so it gets a copy.
        mixed, log = super().add_interctc_losses(ctc.clone(), *args, **kwargs)
        return loss_value + self._ctc_weight * (mixed - ctc), log

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Removes the zero gradients that only DDP needs, so that unused parameters do not change."""
        super().on_before_optimizer_step(optimizer)
        distiller = self._distiller
        if distiller is not None and distiller.stage is not None:
            stage = distiller.schedule.stages[distiller.stage]
            self._unused_parameters.drop_gradients(stage.name, distiller.objective.unused_modules(stage))

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the training-only parameters and the stage to the `.ckpt`, next to the student's state."""
        super().on_save_checkpoint(checkpoint)
        if self._distiller is not None:
            checkpoint["tutor"] = self._distiller.state()
            checkpoint["rkd_reduction"] = self._distiller.rkd_reduction
        if self._mix is not None:
            checkpoint["manifest_seed"] = self._mix.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state that `on_save_checkpoint` added, as soon as a distiller exists.

        Args:
            checkpoint: the content of the `.ckpt`.

        Raises:
            TutorError: a training that began with a teacher is resumed without one, or vice versa.
        """
        super().on_load_checkpoint(checkpoint)
        if self._mix is not None:
            self._mix.seed = checkpoint.get("manifest_seed", self._mix.seed)
        self._distiller_state = checkpoint.get("tutor")
        # A checkpoint of an earlier version has none.
        if self._distiller_state is not None and "rkd_reduction" in checkpoint:
            self._distiller_state = {**self._distiller_state, "rkd_reduction": checkpoint["rkd_reduction"]}
        resuming = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if resuming and (self._distiller is None) != (self._distiller_state is None):
            was, now = "with a teacher", "none"
            if self._distiller_state is None:
                was, now = "without a teacher", "one"
            raise TutorError(
                f"the run in this folder began {was}, and model.tutor has {now} now; give this run another "
                "exp_manager.name (to begin from the other's weights, add +init_from_nemo_model=RUN.nemo)."
            )
        if self._distiller is not None and self._distiller_state is not None:
            self._distiller.restore(self._distiller_state)
            self._distiller_state = None


class TutorCTCModel(TutorMixin, EncDecCTCModel):
    """NeMo's character CTC model with a teacher (see `TutorMixin`)."""

    _stock_target = STOCK_CHAR

    @classmethod
    def list_available_models(cls) -> PretrainedModelInfo | None:
        """Returns the list of NeMo's class."""
        return EncDecCTCModel.list_available_models()


class TutorCTCModelBPE(TutorMixin, EncDecCTCModelBPE):
    """NeMo's subword CTC model with a teacher (see `TutorMixin`)."""

    _stock_target = STOCK_BPE

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        cfg = convert_model_config_to_dict_config(cfg)
        resolve_teacher_tokenizer(cfg)
        super().__init__(cfg=cfg, trainer=trainer)

    @classmethod
    def list_available_models(cls) -> PretrainedModelInfo | None:
        """Returns the list of NeMo's class."""
        return EncDecCTCModelBPE.list_available_models()
