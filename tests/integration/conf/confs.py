# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The configs in conf/, as Hydra gives them to the example script."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
CONFIGS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
STUDENTS = [name for name in CONFIGS if OmegaConf.load(CONF / f"{name}.yaml").model.get("tutor") is not None]
SUBWORD = [
    name for name in CONFIGS if OmegaConf.load(CONF / f"{name}.yaml").model.get("tokenizer") is not None
]


def composed(name, *overrides):
    """A config as Hydra gives it to the example script."""
    path = CONF / f"{name}.yaml"
    with initialize_config_dir(config_dir=str(path.parent), version_base=None):
        return compose(path.stem, overrides=list(overrides))


def stock_model(name, *overrides):
    """NeMo's own class on a config, without data."""
    cfg = composed(name, *overrides).model
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    for key in ("train_ds", "validation_ds", "test_ds", "optim", "tutor"):
        plain.pop(key, None)
    return (EncDecCTCModelBPE if "tokenizer" in plain else EncDecCTCModel)(cfg=OmegaConf.create(plain))
