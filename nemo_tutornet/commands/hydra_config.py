# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and composes the config of the training script."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_tutornet.config import check_renamed_overrides, check_seed  # also registers `tutor_defaults`
from nemo_tutornet.errors import LONGEST_INPUT, TutorError, shorten

_CONFIG_PATH, _CONFIG_NAME = "../conf", "quartznet_5x5"  # the training script's defaults


def find_config(config_path: str, config_name: str) -> Path:
    """Finds the YAML that the training script would read.

    The training script is the one in `examples` of the working directory if it exists, else this project's.

    Args:
        config_path: folder. A relative path is relative to the training script's folder, as in Hydra.
        config_name: name of a YAML in that folder, with or without `.yaml`.

    Returns:
        The YAML's path.

    Raises:
        TutorError: the folder or the YAML does not exist. If the folder is in the working directory, the
            message has the path that the script would find.
    """
    script = Path("examples", "speech_to_text_ctc_tutornet.py")
    beside = (script.parent if script.is_file() else project_folder("examples")).resolve()
    folder = Path(os.path.abspath(beside / config_path))
    if not os.path.isdir(folder):  # `os.path` allows a name of any length
        where = (
            ""
            if os.path.isabs(config_path)
            else f": the path starts at the training script's folder {beside}"
        )
        instead = "give a folder that exists"
        if os.path.isdir(config_path):
            instead = f"give --config-path={shlex.quote(os.path.abspath(config_path))}"
        raise TutorError(f"--config-path {shorten(config_path)} is no folder{where}; {instead}.")
    name = config_name.removesuffix(".yaml")
    yaml = folder / f"{name}.yaml"
    if not os.path.isfile(yaml):
        there = shorten(
            ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none", LONGEST_INPUT
        )
        missing = folder / f"{shorten(name)}.yaml"
        raise TutorError(
            f"--config-name {shorten(config_name, 50)}: there is no {missing}; the configs there: {there}."
        )
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
    from hydra.errors import HydraException

    check_renamed_overrides(overrides)
    check_quotes(overrides)
    try:
        config = _compose(yaml, overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        text = str(error).strip() or str(error.__cause__ or "").strip() or type(error).__name__
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines[1:] and lines[1].endswith(":"):  # the options of a group follow
            lines = list(takewhile(lambda line: not line.startswith("Config search path"), lines))
        else:
            lines = lines[:2]
        raise TutorError(f"{yaml}: {shorten(' '.join(lines), LONGEST_INPUT).rstrip('.')}.") from None
    if not isinstance(config.get("model"), DictConfig):
        raise TutorError(f"{yaml} has no section `model`; name a training script's config.")
    check_seed(config)
    return config


def _compose(yaml: Path, overrides: Sequence[str]) -> Any:
    """Composes a config; raises Hydra's errors, and a `TutorError` where Hydra would end in a traceback."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(version_base=None, config_dir=str(yaml.parent)):
            return compose(config_name=yaml.stem, overrides=list(overrides))
    except HydraException:  # some are an `OSError`, too
        raise
    except RecursionError:
        raise TutorError(
            f"{yaml}: sections are nested too deep, there or in an override; use fewer."
        ) from None
    except OSError as error:  # Hydra looks for a file with the name of a key
        raise TutorError(
            f"{yaml}: an override has a key that is no key ({error.strerror}); fix it."
        ) from None
    except ValueError as error:
        if "int_max_str_digits" not in str(error):
            raise
        raise TutorError(
            f"{yaml}: a number there or in an override has thousands of digits; fix it."
        ) from None


def check_command_line(arguments: Sequence[str], script: Path) -> None:
    """Refuses command lines of the training script for which Hydra's own message would not help.

    Args:
        arguments: the script's arguments.
        script: path of the script, to whose folder `--config-path` is relative.

    Raises:
        TutorError: the key of an override was renamed, or the config or an override is nested too deep or has
            numbers of thousands of digits. Every other mistake is left to Hydra.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    check_renamed_overrides(arguments)
    check_quotes([word for word in arguments if not word.startswith("-")])
    parsed, _ = get_args_parser().parse_known_args(list(arguments))
    name = (parsed.config_name or _CONFIG_NAME).removesuffix(".yaml")
    yaml = script.parent / (parsed.config_path or _CONFIG_PATH) / f"{name}.yaml"
    with suppress(HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, AssertionError):
        _compose(Path(os.path.abspath(yaml)), parsed.overrides)


def check_quotes(overrides: Sequence[str]) -> None:
    """Refuses an override whose value Hydra cannot parse, e.g. a path with brackets or letters with accents.

    Args:
        overrides: Hydra's overrides.

    Raises:
        TutorError: there is one; the message has it with the quotes that Hydra and a shell need.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not re.fullmatch(r"(\+\+|\+|~)?[A-Za-z_][\w./@:-]*", key):
            continue  # no override; Hydra says so
        try:
            parser.parse_override(override)
        except (ValueError, RecursionError):
            continue  # a number of thousands of digits, or too deep a section; `_compose` refuses them
        except HydraException:
            if value[:1] in ("[", "{"):  # a list or a section that lacks a bracket, a comma or a quote
                continue
            quoted = shlex.quote(f"{key}={hydra_value(Path(value))}")
            raise TutorError(
                f"Hydra cannot read the value of {shorten(key)}, {shorten(value)}; quote it for Hydra and "
                f"for the shell: {quoted}."
            ) from None


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
