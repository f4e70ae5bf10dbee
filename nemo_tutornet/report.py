# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables for people."""

from __future__ import annotations

import sys
from typing import Optional, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from nemo_tutornet.evaluate import Evaluation


def evaluation_table(
    results: Sequence[Evaluation], names: Optional[Sequence[str]] = None, console: Optional[Console] = None
) -> None:
    """Prints one row a model.

    Args:
        results: what `evaluate` found.
        names: first column; the models' files where None.
        console: where to print; standard output where None.
    """
    table = Table(title=_title(results), caption="RTF: seconds of computing per second of audio", box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for column in ("WER %", "95 % interval", "sub/del/ins", "CER %", "params", "MB", "RTF"):
        table.add_column(column, justify="right", no_wrap=True)
    for i, result in enumerate(results):
        table.add_row(
            names[i] if names else result.model,
            f"{100 * result.wer:.2f}",
            f"{100 * result.wer_low:.2f} - {100 * result.wer_high:.2f}",
            f"{result.substitutions}/{result.deletions}/{result.insertions}",
            f"{100 * result.cer:.2f}",
            f"{result.parameters / 1e6:.2f} M",
            f"{result.megabytes:.1f}",
            f"{result.real_time_factor:.4f}",
        )
    # A pipe has no width; 80 columns would fold the names of files.
    (console or Console(width=None if sys.stdout.isatty() else 140)).print(table)


def _title(results: Sequence[Evaluation]) -> str:
    first = results[0]
    return f"{first.utterances} utterances, {first.hours:.2f} h, {first.reference_words} words"
