# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The `nemo-tutornet` command: it parses, and calls the modules. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, Optional

import typer

from nemo_tutornet.errors import exit_on_user_error

app = typer.Typer(
    name="nemo-tutornet",
    help="Distil a large NeMo CTC recogniser into a small stock one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Keeps the commands as subcommands."""


@app.command()
@exit_on_user_error
def export(
    source: Path = typer.Argument(..., metavar="RUN.ckpt|RUN.nemo", help="What training wrote, finished or interrupted."),
    destination: Path = typer.Argument(..., metavar="STUDENT.nemo", help="The stock .nemo to write."),
) -> None:
    """Write a stock student: NeMo's class and keys, no trace of the teacher."""
    from nemo_tutornet.export import export_student

    done = export_student(source, destination)
    typer.echo(f"{done.path}: {done.target}, {done.parameters:,} parameters, {done.labels} labels.")


@app.command()
@exit_on_user_error
def evaluate(
    models: List[Path] = typer.Argument(..., metavar="A.nemo [B.nemo ...]", help="Models to compare."),
    manifest: Path = typer.Option(..., help="NeMo manifest with transcripts."),
    batch_size: int = typer.Option(16, min=1, help="Utterances transcribed together."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Print WER and CER with their intervals, size and speed of each model."""
    from nemo_tutornet.evaluate import evaluate as run
    from nemo_tutornet.report import evaluation_table

    results = run(models, manifest, batch_size, progress=lambda name: typer.echo(f"transcribing with {name} ...", err=True))
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        evaluation_table(results)


@app.command()
@exit_on_user_error
def demo(
    corpus: str = typer.Option(
        "embedded", help="'embedded' (speech synthesised on the spot), or a folder with train.jsonl, valid.jsonl and test.jsonl."
    ),
    output: Path = typer.Option(Path("demo-output"), help="Where runs, students and the report go."),
    epochs: Optional[int] = typer.Option(None, min=4, help="Epochs of each student [default: 10]."),
    teacher_epochs: Optional[int] = typer.Option(None, min=1, help="Epochs of the teacher [default: 25]."),
    seed: int = typer.Option(1, help="Seed of every run."),
) -> None:
    """Train a teacher, an undistilled student and a distilled one, export it, check it and compare the three."""
    from nemo_tutornet.demo import run_demo

    run_demo(corpus, output, epochs, teacher_epochs, seed)
