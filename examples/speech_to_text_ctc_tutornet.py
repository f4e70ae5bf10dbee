# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
r"""
# Distil a NeMo CTC teacher into a stock QuartzNet, Jasper, Citrinet, Conformer or FastConformer student

    python examples/speech_to_text_ctc_tutornet.py \
        --config-path=../conf --config-name=quartznet_5x5 \
        model.train_ds.manifest_filepath=train.jsonl \
        model.validation_ds.manifest_filepath=valid.jsonl \
        model.tutor.teacher.model_path=teacher.nemo \
        trainer.max_epochs=100 exp_manager.exp_dir=runs

The config is a stock NeMo config with a `tutor:` section (see `nemo_tutornet.TutorMixin`).

# Train the plain model: an undistilled baseline, or a teacher

    ... model.tutor=null                                     # the same student without a teacher
    ... --config-name=conformer_ctc_small                    # a config without the section

# On a CPU

    ... ++fourier_depthwise=true                              # a QuartzNet trains 1.2 to 2.5 times as fast,
    equal up to rounding

# Interrupted

Run the same command again: `exp_manager` resumes in the middle of the stage it was in.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from nemo.utils.trainer_utils import resolve_trainer_cfg
from omegaconf import OmegaConf

from nemo_tutornet.commands.hydra_config import check_command_line
from nemo_tutornet.config import check_student, check_teacher_files, check_trainer
from nemo_tutornet.data.manifest_checks import check_manifests
from nemo_tutornet.distill.objective import read_tutor_section
from nemo_tutornet.distill.run_files import repair_run_folder
from nemo_tutornet.distill.run_lock import lock_run_folder
from nemo_tutornet.distill.training_report import TrainingReport
from nemo_tutornet.errors import exit_on_user_error, refusing
from nemo_tutornet.functional.fft_depthwise import fourier_depthwise
from nemo_tutornet.models import model_class_for
from nemo_tutornet.nemo_io.lightning_ckpt import (
    check_lightning_checkpoint,
    initial_checkpoints,
    resumed_checkpoints,
)
from nemo_tutornet.utils.signals import stop_on_signals


@hydra_runner(config_path="../conf", config_name="quartznet_5x5")
@exit_on_user_error
def main(cfg):
    with stop_on_signals("nothing was trained; the same command begins anew."):
        check(cfg)
        lock = lock_run_folder(cfg.get("exp_manager", None))  # until the training ends
        trainer, model = prepare(cfg)
    trainer.fit(model)

    if has_test_set(cfg.model) and model.prepare_test(trainer):
        trainer.test(model)
    del lock


def check(cfg):
    """Checks a config and its manifests."""
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    # Mistakes show before anything is built: the config at once, the manifests in less than a
    # millisecond a row.
    check_teacher_files(read_tutor_section(cfg.model))
    check_student(cfg.model)
    check_trainer(cfg)
    logging.info("Checking the manifests")
    for warning in check_manifests(cfg.model):
        logging.warning(warning)


def prepare(cfg):
    """Returns the trainer and the student of a config."""
    if cfg.get("seed") is not None:
        pl.seed_everything(cfg.seed, workers=True)

    with refusing("the trainer"):
        trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    trainer.callbacks.append(TrainingReport())  # shows the progress, and a table at the end
    for warning in repair_run_folder(cfg.get("exp_manager", None)):
        logging.warning(warning)
    with refusing("exp_manager"):
        exp_manager(trainer, cfg.get("exp_manager", None))
    # Lightning unpickles the checkpoint that it resumes from, and a pickle can run anything.
    for path in (*initial_checkpoints(cfg), *resumed_checkpoints(trainer)):
        check_lightning_checkpoint(path)
    with refusing("the model"):
        model = model_class_for(cfg.model)(cfg=cfg.model, trainer=trainer)

    # Initialize the weights of the model from another model, if provided via config
    model.maybe_init_from_pretrained_checkpoint(cfg)
    if cfg.get("fourier_depthwise"):
        logging.info(
            "Depthwise convolutions that a CPU trains through the Fourier transform: "
            f"{fourier_depthwise(model)}"
        )
    return trainer, model


def has_test_set(model_cfg):
    """Whether `test_ds` names data; Lhotse needs no manifest."""
    test_ds = model_cfg.get("test_ds") or {}
    sources = ("manifest_filepath", "input_cfg", "shar_path", "cuts_path")
    return any(test_ds.get(key) is not None for key in sources)


if __name__ == "__main__":
    exit_on_user_error(check_command_line)(sys.argv[1:], Path(__file__))
    main()
