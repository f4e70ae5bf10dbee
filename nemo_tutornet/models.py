# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's CTC models with a teacher: one mixin, two thin classes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes.common import PretrainedModelInfo
from nemo.utils import logging
from nemo.utils.get_rank import is_global_rank_zero
from nemo.utils.model_utils import convert_model_config_to_dict_config
from nemo.utils.msc_utils import is_multistorageclient_url
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from nemo_tutornet.config import TutorConfig, parse_tutor
from nemo_tutornet.data.dataloader import drop_sample_ids
from nemo_tutornet.distill.distiller import Distiller, Step
from nemo_tutornet.distill.projections import Projection
from nemo_tutornet.distill.unused_parameters import parameters_with_grad
from nemo_tutornet.distill.warm_start import compose_decoder
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.schedule import Schedule, Stage, progress
from nemo_tutornet.nemo_io.restore import pointwise_decoder
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR, stock_config
from nemo_tutornet.teachers.tokenizer import resolve_teacher_tokenizer
from nemo_tutornet.utils.files import atomic_write

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel as _Host  # what the mixin is mixed into
else:
    _Host = object


class TutorMixin(_Host):
    """Adds a teacher and the TutorNet losses to a NeMo CTC model (Yoon et al., arXiv 2008.00671).

    Add a section to the student's ordinary config, and train it as any NeMo model::

        model:
          # ... a stock NeMo student ...
          tutor:
            teacher:
              model_path: teacher.nemo     # or the name of a pretrained NeMo model
            stages:                        # a stage without a length runs to the end; these are the default
              - {name: rkd, share: 0.25, weights: {rkd: 1.0}}
              - {name: ctc, weights: {ctc: 1.0, rkd: 5.0}}      # the paper's: {name: skd, weights: {ctc: 1.0,
                  skd: 0.25}}

    All keys are in `nemo_tutornet.config`.

    Without the section the model behaves as NeMo's. The teacher is loaded when training starts and never
    otherwise: restoring, validating, transcribing and exporting a student do not need its file. Every `.nemo`
    holds the stock student: NeMo's class, NeMo's keys, no `tutor:` section.

    What is overridden of NeMo: `training_step` and `add_auxiliary_losses` (the losses), `setup` (the
    teacher), the two checkpoint hooks (the projection, the heads, the stage), `to_config_file` and `save_to`
    (what leaves), `on_validation_epoch_start` and `on_train_epoch_end` (the decoder, composed while it is
    idle), and `on_before_optimizer_step` (what is idle stays as it is).
    """

    _stock_target: str

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        cfg = convert_model_config_to_dict_config(cfg)
        config = parse_tutor(cfg)
        # NeMo's own class, so that NeMo restores the file without this package and without widening its
        # allow-list.
        with open_dict(cfg):
            cfg.target = self._stock_target
        super().__init__(cfg=cfg, trainer=trainer)
        self._tutor_config: TutorConfig | None = config
        self._tutor: Distiller | None = None
        self._tutor_state: dict[str, Any] | None = None
        self._step: Step | None = None
        self._unused_parameters: dict[str, list[nn.Parameter]] = {}  # by stage
        self.tutor_projection: Projection | None = None
        self.tutor_heads = nn.ModuleList()

    @property
    def tutor(self) -> Distiller | None:
        """The teacher and what belongs to it; None before training starts or without a `tutor:` section."""
        return self._tutor

    # --- The teacher comes in

    def setup(self, stage: str | None = None) -> None:
        """NeMo's setup; before training also the teacher and the projection, so that the optimizer sees its
        parameters.

        Another `Trainer` that begins at its first step is another training, with stages from the first on.
        """
        super().setup(stage)
        if stage != "fit" or self._tutor_config is None:
            return
        begins = not (self.trainer.current_epoch or self.trainer.global_step)
        if self._tutor is not None and not (begins and self._tutor.stage is not None):
            self._tutor.attach_train_data(self)  # the training set may be another now
        else:
            # Restoring a model draws random numbers; the student must see the same data with and without a
            # teacher.
            with torch.random.fork_rng(devices=[]):
                self._setup_distillation(self._tutor_config)

    def _setup_distillation(self, config: TutorConfig) -> None:
        for told in config.unused() + Schedule.from_config(config.stages).check(
            self.trainer.max_epochs, self.trainer.max_steps
        ):
            logging.warning(told)
        tutor = Distiller(self, config)
        pairing, device = tutor.pairing, next(self.parameters()).device
        self.tutor_projection = tutor.projection.to(device)
        self.tutor_heads = nn.ModuleList(tutor.heads).to(device)
        self._tutor, self._unused_parameters = tutor, {}
        if self._tutor_state is not None:
            tutor.restore(self._tutor_state)
            self._tutor_state = None  # it is of one training
        logging.info(
            f"Teacher {config.teacher.cache or config.teacher.model_path}: hint layer {pairing.hint.path!r} "
            f"({pairing.hint.width} wide, {pairing.hint.frame_ms:g} ms), guided layer "
            f"{pairing.guided.path!r} "
            f"({pairing.guided.width} wide, {pairing.guided.frame_ms:g} ms), frame weighting "
            f"{pairing.frame_weighting!r}."
        )
        for one in config.other_teachers:
            logging.info(
                f"Teacher {one.cache or one.model_path}: its posteriors count {one.weight:g} to "
                f"{config.teacher.weight:g}."
            )
        for layer in pairing.heads:
            logging.info(f"Inter-KD: a head at {layer.path!r} ({layer.width} wide, {layer.frame_ms:g} ms).")
        if config.rkd.warm_start_decoder and config.uses("rkd") and pairing.no_warm_start:
            logging.warning(f"The decoder is not warm-started after RKD: {pairing.no_warm_start}")

    # --- One step

    def training_step(self, batch: Any, batch_nb: int) -> dict[str, Any]:
        """NeMo's training step, with the stage's losses. CTC is computed by NeMo, and only in stages that use
        it.
        """
        tutor = self._tutor
        if tutor is None:
            return super().training_step(batch, batch_nb)
        stage = self._enter_stage(tutor, batch_nb)
        targets = tutor.targets(stage, batch)
        batch = drop_sample_ids(batch)
        with tutor.watch(self, batch) as watch:
            step = tutor.step(stage, targets, watch)
            if stage.uses("ctc"):
                output = self._step_with_ctc(step, batch, batch_nb)
            else:
                self.forward(input_signal=batch[0], input_signal_length=batch[1])
                loss = step.total()
                rate = self._optimizer.param_groups[0]["lr"]
                global_step = torch.tensor(self.trainer.global_step, dtype=torch.float32)
                output = {
                    "loss": loss,
                    "log": {"train_loss": loss, "learning_rate": rate, "global_step": global_step},
                }
        output["log"].update(step.logs, tutor_stage=float(tutor.stage or 0))
        return self._touch_unused_parameters(output, stage)

    def _step_with_ctc(self, step: Step, batch: Any, batch_nb: int) -> dict[str, Any]:
        self._step = step
        try:
            return super().training_step(batch, batch_nb)
        finally:
            self._step = None

    def add_auxiliary_losses(self, loss: Tensor, reset_registry: bool = False) -> Tensor:
        """NeMo's hook inside its training step, between CTC and the logs: here CTC becomes the stage's
        weighted sum.
        """
        loss = super().add_auxiliary_losses(loss, reset_registry)
        return loss if self._step is None else self._step.total(ctc=loss)

    def _touch_unused_parameters(self, output: dict[str, Any], stage: Stage) -> dict[str, Any]:
        # DDP waits for a gradient of every parameter; a stage leaves some out (the decoder in RKD, the
        # projection after it).
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            trained = [p for p in self.parameters() if p.requires_grad]
            if stage.decoder_is_idle and stage.name not in self._unused_parameters:
                reached = parameters_with_grad(output["loss"])
                self._unused_parameters[stage.name] = [p for p in trained if p not in reached]
            output["loss"] = output["loss"] + 0.0 * sum(p.sum() for p in trained)
        return output

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drops the zero gradients that only DDP wanted, so that an idle part neither moves nor decays."""
        super().on_before_optimizer_step(optimizer)
        if self._tutor is None or self._tutor.stage is None:
            return
        stage = self._tutor.schedule.stages[self._tutor.stage]
        idle = [parameter for module in self._tutor.idle(stage) for parameter in module.parameters()]
        # While the decoder is idle, also what lies behind a guided layer in the middle of the encoder.
        for parameter in [*idle, *self._unused_parameters.get(stage.name, [])]:
            parameter.grad = None

    # --- Stages and the decoder's warm start

    def _progress(self, batch_nb: int) -> float | None:
        """How much of the training is behind the optimizer step that a batch of this epoch belongs to."""
        trainer = self.trainer
        begun = batch_nb - batch_nb % trainer.accumulate_grad_batches
        part = (
            begun / trainer.num_training_batches if begun else 0.0
        )  # streams do not tell how many: infinitely
        return progress(
            trainer.current_epoch + part, trainer.global_step, trainer.max_epochs, trainer.max_steps
        )

    def _enter_stage(self, tutor: Distiller, batch_nb: int) -> Stage:
        share = self._progress(batch_nb) or 0.0
        index = tutor.schedule.index(self.trainer.current_epoch, self.trainer.global_step, share)
        # A run that is made longer has its boundaries later, if they are shares; it stays in the stage that
        # it had reached.
        index = max(index, tutor.stage or 0)
        stage = tutor.schedule.stages[index]
        if index != tutor.stage:
            weights = ", ".join(f"{loss} {weight:g}" for loss, weight in stage.weights.items())
            logging.info(f"Stage {stage.name!r} ({index + 1} of {len(tutor.schedule.stages)}): {weights}.")
            if tutor.stage is not None and index > tutor.stage and not tutor.decoder_trained:
                self._warm_start_decoder(tutor)
            tutor.stage = index
        tutor.decoder_trained |= not stage.decoder_is_idle
        return stage

    def _warm_start_decoder(self, tutor: Distiller) -> None:
        assert self._tutor_config is not None and self.tutor_projection is not None
        if not self._tutor_config.rkd.warm_start_decoder or tutor.pairing.no_warm_start:
            return
        mine = pointwise_decoder(self.decoder)
        theirs = pointwise_decoder(tutor.teacher.head)
        assert mine is not None and theirs is not None and mine.bias is not None
        weight, bias = compose_decoder(theirs, self.tutor_projection, tutor.pairing.label_order)
        with torch.no_grad():
            mine.weight.copy_(weight)
            mine.bias.copy_(bias)

    def _decoder_is_untrained(self) -> bool:
        # Not once the training is over: weights may be put in then that the projection does not belong to.
        tutor, trainer = self._tutor, self._trainer
        if tutor is None or tutor.stage is None or trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return False
        idle = tutor.schedule.stages[tutor.stage].decoder_is_idle and not tutor.decoder_trained
        return idle and trainer.state.stage is not None

    def _refresh_idle_decoder(self) -> None:
        """While RKD runs alone, keeps the decoder composed, so that validation and every checkpoint show a
        usable student.
        """
        if self._decoder_is_untrained():
            assert self._tutor is not None
            self._warm_start_decoder(self._tutor)

    def on_validation_epoch_start(self) -> None:
        """Composes the decoder while it is idle; nothing of the teacher runs."""
        super().on_validation_epoch_start()
        self._refresh_idle_decoder()

    def on_train_epoch_end(self) -> None:
        """Composes the decoder while it is idle, for runs without validation; tells what became of the
        hypotheses.
        """
        super().on_train_epoch_end()
        self._refresh_idle_decoder()
        if self._tutor is not None and self._tutor.pseudo_labels.counts:
            tell = logging.info if self._tutor.pseudo_labels.counts["kept"] else logging.warning
            tell(f"Epoch {self.current_epoch}, {self._tutor.pseudo_labels.report()}")

    # --- What a checkpoint carries, and what leaves

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts what trains but does not leave, and the stage, into the `.ckpt`, beside the state of the
        student.
        """
        super().on_save_checkpoint(checkpoint)
        # On every rank. The state in `checkpoint` was taken before, but it shares its memory with the
        # parameters.
        self._refresh_idle_decoder()
        if self._tutor is not None:
            checkpoint["tutor"] = self._tutor.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back; when the teacher is not there yet, as soon as it is.

        Raises:
            TutorError: a training that began with a teacher is resumed without one, or the other way round.
        """
        super().on_load_checkpoint(checkpoint)
        self._tutor_state = checkpoint.get("tutor")
        resuming = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if resuming and (self._tutor is None) != (self._tutor_state is None):
            was, now = (
                ("without a teacher", "one") if self._tutor_state is None else ("with a teacher", "none")
            )
            raise TutorError(
                f"the run in this folder began {was}, and model.tutor has {now} now; give this run another "
                "exp_manager.name "
                f"(to begin from the other's weights, add +init_from_nemo_model=RUN.nemo)."
            )
        if self._tutor is not None and self._tutor_state is not None:
            self._tutor.restore(self._tutor_state)
            self._tutor_state = None

    def to_config_file(self, path2yaml_file: str) -> None:
        """Writes the stock student's config: NeMo calls this for every `.nemo`, whoever writes it."""
        OmegaConf.save(stock_config(self._cfg), path2yaml_file, resolve=True)

    def save_to(self, save_path: str | Path) -> None:
        """NeMo's `save_to`, through a temporary name, so that an interrupt leaves the old file and no half of
        a new one.

        The file has the decoder composed while it is idle; the model itself stays as it is.
        """
        packed = self._save_restore_connector.pack_nemo_file
        kept = deepcopy(self.decoder.state_dict()) if self._decoder_is_untrained() else None
        self._refresh_idle_decoder()
        try:
            if is_multistorageclient_url(save_path) or not packed or not is_global_rank_zero():
                super().save_to(save_path)
                return
            with atomic_write(Path(save_path).expanduser().resolve()) as temporary:
                super().save_to(str(temporary))
        finally:
            if kept is not None:
                self.decoder.load_state_dict(kept)


class TutorCTCModel(TutorMixin, EncDecCTCModel):
    """NeMo's character CTC model with a teacher (`TutorMixin`)."""

    _stock_target = STOCK_CHAR

    @classmethod
    def list_available_models(cls) -> PretrainedModelInfo | None:
        """NeMo's list."""
        return EncDecCTCModel.list_available_models()


class TutorCTCModelBPE(TutorMixin, EncDecCTCModelBPE):
    """NeMo's subword CTC model with a teacher (`TutorMixin`)."""

    _stock_target = STOCK_BPE

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        cfg = convert_model_config_to_dict_config(cfg)
        resolve_teacher_tokenizer(cfg)
        super().__init__(cfg=cfg, trainer=trainer)

    @classmethod
    def list_available_models(cls) -> PretrainedModelInfo | None:
        """NeMo's list."""
        return EncDecCTCModelBPE.list_available_models()
