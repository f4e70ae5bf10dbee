# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The Typer application, and what several of its commands share."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import typer

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


def composed(config_path: str, config_name: str, overrides: list[str]) -> Any:
    """The config that the training script would get; says which file it is from, for there may be several
    copies.
    """
    from nemo_tutornet.commands.hydra_config import compose_config, find_config

    yaml = find_config(config_path, config_name)
    typer.echo(f"config: {yaml}", err=True)
    return compose_config(yaml, overrides)


def pasted(key: str, path: Path) -> str:
    """The override that sets a key to a path, as it can be pasted into a shell."""
    from nemo_tutornet.commands.hydra_config import hydra_value

    plain = re.fullmatch(r"[\w./~ -]+", str(path))
    return shlex.quote(f"{key}={path if plain else hydra_value(path)}")


CHANNEL = typer.Option(
    None, metavar="N|average", help="Channel to read of audio with several, from 0, or their mean."
)


@app.callback()
def _root() -> None:
    """Keeps the commands as subcommands, and hides what no user of them needs: that NVIDIA's telemetry is
    off, and Lightning's lines on absent accelerators.
    """
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        # The package that was imported last writes these lines.
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
