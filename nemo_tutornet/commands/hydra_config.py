# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The training script's config and paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_tutornet.config import check_renamed_overrides  # it also tells Hydra `tutor_defaults`
from nemo_tutornet.errors import TutorError


def find_config(config_path: str, config_name: str) -> Path:
    """The YAML that the training script would read.

    Args:
        config_path: folder; a relative one starts at the training script, as Hydra has it, and where there is
            none, here. The script is the one in `examples` of the working directory, where there is one, else
            this project's.
        config_name: a YAML in it.

    Raises:
        TutorError: no such folder or YAML.
    """
    script = Path("examples", "speech_to_text_ctc_tutornet.py")
    beside = script.parent if script.is_file() else project_folder("examples")
    folder = next(
        (folder.resolve() for folder in (beside / config_path, Path(config_path)) if folder.is_dir()), None
    )
    if folder is None:
        raise TutorError(
            f"--config-path {config_path} is no folder, neither beside the training script nor here."
        )
    yaml = folder / f"{config_name.removesuffix('.yaml')}.yaml"
    if not yaml.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise TutorError(f"--config-name {config_name}: there is no {yaml}; the configs there: {there}.")
    return yaml


def compose_config(yaml: Path, overrides: Sequence[str]) -> Any:
    """The config that the training script would get.

    Args:
        yaml: what `find_config` found.
        overrides: Hydra's, as on the script's command line.

    Raises:
        TutorError: an override that Hydra refuses or whose key has another name now, or a file that is no
            YAML of a model.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    check_renamed_overrides(overrides)
    try:
        with initialize_config_dir(version_base=None, config_dir=str(yaml.parent)):
            config = compose(config_name=yaml.stem, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TutorError(f"{yaml}: {' '.join(lines[:2]).rstrip('.')}.") from None
    if not isinstance(config.get("model"), DictConfig):
        raise TutorError(f"{yaml} has no section `model`; name a training script's config.")
    return config


def hydra_value(path: Path) -> str:
    """A path as an override's value: in quotes, because Hydra reads brackets, commas, `=` and quotes as
    grammar.
    """
    text = re.sub(
        r"\\+(?='|\Z)", lambda found: 2 * found[0], str(path)
    )  # a backslash is itself but before a quote
    return "'" + text.replace("'", "\\'") + "'"


def project_folder(name: str) -> Path:
    """`conf` or `examples`: inside the package when it was installed from a wheel, beside it in a
    checkout.
    """
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name
