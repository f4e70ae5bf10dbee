# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The configs in conf/, as Hydra gives them to the example script."""

import math
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

import nemo_tutornet.config  # noqa: F401 - it registers the group `front_end` with Hydra

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
CONFIGS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
STUDENTS = [name for name in CONFIGS if OmegaConf.load(CONF / f"{name}.yaml").model.get("tutor") is not None]
SUBWORD = [
    name for name in CONFIGS if OmegaConf.load(CONF / f"{name}.yaml").model.get("tokenizer") is not None
]

# Subword students of frames that are too long for characters, so they have no character config beside them.
SUBWORD_ONLY = [name for name in SUBWORD if "fastconformer" in name]


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


def flat(node, path=()):
    """The leaves of a config by their path."""
    if not isinstance(node, (dict, list)) or not node:
        return {".".join(path): node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {leaf: value for key, below in items for leaf, value in flat(below, (*path, str(key))).items()}


def overrides_of(section, path):
    """Hydra's words for each key of a section and of the sections in it; a list, or a mapping of slots that
    are no keys, is one value.
    """
    for key, value in section.items():
        if key == "prompt":
            yield f"{path}.{key}={yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()}"
        elif isinstance(value, dict):
            yield from overrides_of(value, f"{path}.{key}")
        else:
            text = yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]
            yield f"{path}.{key}={text}"
