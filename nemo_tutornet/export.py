# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student that leaves: a fresh instance of NeMo's own class with NeMo's keys, and nothing of the tutor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping

from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.checkpoints import (
    STOCK_BPE,
    ctc_class,
    load_lightning_checkpoint,
    quiet_nemo,
    read_nemo_config,
    stock_config,
    untouched_app_state,
    written_whole,
)
from nemo_tutornet.errors import TutorError
from nemo_tutornet.teacher import restore_ctc


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the `.nemo` file.
        target: its class.
        parameters: number of them.
        labels: labels without the blank.
    """

    path: Path
    target: str
    parameters: int
    labels: int


def export_student(source: Path, destination: Path) -> Exported:
    """Writes a stock `.nemo` from a checkpoint of a student, finished or interrupted.

    The source is only read. The state is loaded strictly into a fresh instance of NeMo's own class, so a key too many or
    too few is an error and not a surprise on the customer's side.

    Args:
        source: a `.ckpt` that training wrote, or a `.nemo`.
        destination: the `.nemo` to write; an older file there is replaced when the new one is complete.

    Raises:
        TutorError: unreadable source, not a CTC recogniser, or a state that does not fit NeMo's class.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".nemo":
        raise TutorError(f"{destination} must end in .nemo; that is what NeMo and Riva expect.")
    if destination.is_dir():
        raise TutorError(f"{destination} is a folder; give the name of a file to write.")
    model = _from_ckpt(source) if source.suffix == ".ckpt" else _from_nemo(source)
    model.cfg = stock_config(model.cfg)
    try:
        with quiet_nemo(), written_whole(destination.expanduser().resolve()) as temporary:
            model.save_to(str(temporary))
    except OSError as error:
        raise TutorError(f"{destination} cannot be written ({error.strerror or error}); nothing was changed there.") from None
    return Exported(
        path=destination,
        target=str(model.cfg.target),
        parameters=sum(p.numel() for p in model.parameters()),
        labels=len(model.decoder.vocabulary),
    )


def _from_nemo(source: Path) -> Any:
    config = read_nemo_config(source)
    ctc_class(config, source, "a student")
    return restore_ctc(source)


def _from_ckpt(source: Path) -> Any:
    checkpoint = load_lightning_checkpoint(source)
    hyper_parameters = checkpoint["hyper_parameters"]
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, (Mapping, DictConfig)) else None
    if config is None:
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its hyper_parameters have no cfg.")
    config = OmegaConf.create(OmegaConf.to_container(OmegaConf.create(config), resolve=True))
    if not isinstance(config, DictConfig):
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its cfg is not a mapping.")
    target = ctc_class(config, source, "a student")
    return _fresh(config, target, checkpoint["state_dict"], source)


def _fresh(config: DictConfig, target: str, state: Dict[str, Any], source: Path) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE

    config.target = target
    model_class = EncDecCTCModelBPE if target == STOCK_BPE else EncDecCTCModel
    data = {name: config.pop(name) for name in ("train_ds", "validation_ds", "test_ds") if name in config}
    try:
        with untouched_app_state(), quiet_nemo():
            model = model_class(cfg=config)
        model.load_state_dict(state)
    except Exception as error:  # a missing tokenizer, a key too many, whatever the config makes NeMo raise
        detail = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise TutorError(f"{source} does not fit NeMo's {model_class.__name__}: {detail}") from error
    # The dataset sections were only taken out so that NeMo does not open the data here.
    OmegaConf.set_struct(model.cfg, False)
    for name, section in data.items():
        model.cfg[name] = section
    return model.eval()
