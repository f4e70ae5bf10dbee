# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the documentation from committed lines.

    python benchmarks/results/pages.py

A comment in a page names a file of lines and further options of `table.py`; what stands between it and the
next `<!-- end of the table -->` is made anew:

    <!-- table: benchmarks/results/lines/an4-untranscribed.jsonl --seeds 2 -->
"""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import table
import typer

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end of the table -->)", flags=re.DOTALL)
NOT_YET = "*These trainings have no lines yet.*"


def tabulate(options: str) -> str:
    """The table of a file of lines, as Markdown.

    Args:
        options: the file, below the repository, and options of `table.py`.
    """
    file, *others = shlex.split(options)
    if not (ROOT / file).is_file():
        return NOT_YET
    app = typer.Typer()
    app.command()(table.main)
    printed = io.StringIO()
    with redirect_stdout(printed):
        app([str(ROOT / file), *others], standalone_mode=False)
    return printed.getvalue().strip()


def rewritten(page: str) -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{tabulate(found[2])}\n\n{found[4]}", page)


def main() -> None:
    """Rewrites every page of the documentation that has such a table."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := rewritten(page)) != page:
            path.write_text(new, encoding="utf-8")
            typer.echo(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
