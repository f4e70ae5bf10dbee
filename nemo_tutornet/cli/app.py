# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The Typer application, and what several of its commands share."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from nemo_tutornet import __version__
from nemo_tutornet.errors import TutorError, shorten

app = typer.Typer(
    name="nemo-tutornet",
    help="Distil a large NeMo CTC recogniser into a small stock one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# How a command continues that a signal stopped.
NOTHING_WRITTEN = "nothing was written; the same command begins anew."
WRITTEN_WHOLE = "a file is written whole or not at all; the same command begins anew."


def composed(command: Callable[..., Any], config_path: str, config_name: str, overrides: list[str]) -> Any:
    """The config that the training script would get; says which file it is from, for there may be several
    copies.

    Args:
        command: the command that was called.
        config_path: folder of the YAML.
        config_name: name of the YAML.
        overrides: Hydra's overrides.

    Raises:
        TutorError: an override is an option that the command lacks, or there is no such config.
    """
    _check_options(command, overrides)
    from nemo_tutornet.commands.hydra_config import compose_config, find_config

    yaml = find_config(config_path, config_name)
    typer.echo(f"config: {yaml}", err=True)
    return compose_config(yaml, overrides)


def pasted(key: str, path: Path) -> str:
    """The override that sets a key to a path, as it can be pasted into a shell."""
    from nemo_tutornet.commands.hydra_config import hydra_value

    # What Hydra reads as it is; it would take the last for a value of its own.
    plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./-]*", str(path))
    is_word = str(path).lower() in ("null", "true", "false", "nan", "inf")
    return shlex.quote(f"{key}={path if plain and not is_word else hydra_value(path)}")


def _check_options(command: Callable[..., Any], overrides: Sequence[str]) -> None:
    """Refuses a word that begins with a dash: no override does, so it is an option that the command lacks.

    Raises:
        TutorError: there is one.
    """
    for word in overrides:
        if not word.startswith("-"):
            continue
        name, key = word.partition("=")[0], word.lstrip("-")
        parameters = inspect.signature(command).parameters.values()
        given = [one.default.param_decls for one in parameters if hasattr(one.default, "param_decls")]
        options = [option for names in given for option in names or () if option[:2] == "--"]
        options += [f"--{one.name.replace('_', '-')}" for one in parameters]
        near = difflib.get_close_matches(name, options, 1)
        remedy = f"the nearest one is {near[0]}" if near else "--help lists the options"
        if "." in name:
            remedy = f"an override has no dashes: {shorten(key)}"
        raise TutorError(f"there is no option {shorten(name)}; {remedy}.")


CHANNEL = typer.Option(
    None, metavar="N|average", help="Channel to read of audio with several, from 0, or their mean."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nemo-tutornet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Keeps the commands as subcommands, and hides what no user of them needs: that NVIDIA's telemetry is
    off, and Lightning's lines on absent accelerators.
    """
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        # The package that was imported last writes these lines.
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
