# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables for people."""

from __future__ import annotations

import sys
from typing import Optional, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_tutornet.evaluate import Evaluation, no_faster
from nemo_tutornet.summary import Verification


def evaluation_table(
    results: Sequence[Evaluation], names: Optional[Sequence[str]] = None, console: Optional[Console] = None
) -> None:
    """Prints one row a model and runtime, and says in plain words where a smaller model is no faster than a larger one.

    Args:
        results: what `evaluate` found.
        names: first column; the models' files where None.
        console: where to print; standard output where None.
    """
    table = Table(title=_title(results), caption="RTF: seconds of computing per second of audio", box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    table.add_column("runtime", no_wrap=True)
    for column in ("WER %", "95 % interval", "sub/del/ins", "CER %", "params", "MB", "RTF"):
        table.add_column(column, justify="right", no_wrap=True)
    for i, result in enumerate(results):
        table.add_row(
            names[i] if names else result.model,
            result.runtime,
            f"{100 * result.wer:.2f}",
            f"{100 * result.wer_low:.2f} - {100 * result.wer_high:.2f}",
            f"{result.substitutions}/{result.deletions}/{result.insertions}",
            f"{100 * result.cer:.2f}",
            f"{result.parameters / 1e6:.2f} M",
            f"{result.megabytes:.1f}",
            f"{result.real_time_factor:.4f}",
        )
    console = console or _console()
    console.print(table)
    for sentence in no_faster(results):
        console.print(escape(sentence))


def verification_table(verification: Verification, console: Optional[Console] = None) -> None:
    """Prints one row a check.

    Args:
        verification: of a student.
        console: where to print; standard output where None.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    for check in verification.checks:
        table.add_row("ok" if check.passed else "WRONG", escape(check.name), escape(check.found))
    (console or _console()).print(table)


def _console() -> Console:
    # A pipe has no width; 80 columns would fold the names of files.
    return Console(width=None if sys.stdout.isatty() else 140)


def _title(results: Sequence[Evaluation]) -> str:
    first = results[0]
    return f"{first.utterances} utterances, {first.hours:.2f} h, {first.reference_words} words"
