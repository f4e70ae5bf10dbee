# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and composes the config of the training script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_tutornet.config import check_renamed_overrides  # this also registers `tutor_defaults`
from nemo_tutornet.errors import TutorError


def find_config(config_path: str, config_name: str) -> Path:
    """Finds the YAML that the training script would read.

    The training script is the one in `examples` of the working directory if it exists, else this project's.

    Args:
        config_path: folder. A relative path is relative to the training script's folder, as in Hydra. If
            there is no such folder, the path is relative to the working directory.
        config_name: name of a YAML in that folder, with or without `.yaml`.

    Returns:
        The YAML's path.

    Raises:
        TutorError: the folder or the YAML does not exist.
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
    """Composes the config that the training script would get.

    Args:
        yaml: path from `find_config`.
        overrides: Hydra's overrides, as on the script's command line.

    Returns:
        The config, with a section `model`.

    Raises:
        TutorError: Hydra rejects an override, the key of an override was renamed, or the file is not a YAML
            with a section `model`.
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
    """Quotes a path for use as the value of an override.

    Hydra would parse brackets, commas, `=` and quotes in an unquoted value.

    Args:
        path: the path.

    Returns:
        The path in single quotes.
    """
    # Hydra reads a backslash literally, except before a quote.
    text = re.sub(r"\\+(?='|\Z)", lambda found: 2 * found[0], str(path))
    return "'" + text.replace("'", "\\'") + "'"


def project_folder(name: str) -> Path:
    """Finds one of the project's folders: inside an installed package, beside the package in a checkout.

    Args:
        name: `conf` or `examples`.

    Returns:
        The folder's path.
    """
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name
