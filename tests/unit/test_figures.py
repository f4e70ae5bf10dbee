# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Every error rate, change and p of the README and the pages of results comes from committed lines.

A page says where its figures come from, by comments:

- `<!-- table: LINES OPTIONS -->`, up to `<!-- end of the table -->`: the table is `table.py`'s
  (`python benchmarks/results/pages.py` writes it).
- `<!-- figures: LINES [LINES] -->`, up to the next such comment or `<!-- end of the figures -->`: each figure
  can be computed from these lines.
- `<!-- figures: [LINES]; without lines: COUNT -->`, likewise: so many cannot, because the lines of older
  trainings are lost. None can be added to them, because their number is also here.

A figure outside of them is an error. The README's are those of docs/results/index.md.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [
    ROOT / "docs" / "adapter.md",
    ROOT / "docs" / "guides" / "cascades.md",
    ROOT / "docs" / "guides" / "little-data.md",
    ROOT / "docs" / "guides" / "untranscribed.md",
    *sorted(RESULTS.rglob("*.md")),
]
MARKER = re.compile(r"<!-- (table|figures|end of the (?:table|figures)):? ?(.*?) ?-->")
# Figures whose lines are lost, by page. These numbers may only become smaller.
LOST = {
    "docs/guides/little-data.md": 5,
    "docs/guides/untranscribed.md": 6,
    "docs/results/index.md": 16,
    "docs/results/log/choices.md": 263,
    "docs/results/log/earlier.md": 22,
    "docs/results/log/main.md": 240,
    "docs/results/log/rkd-then-ctc.md": 143,
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """`figures.py` and `pages.py` of benchmarks/results."""
    names = ("runs", "recipes", "curves", "lines", "table", "figures", "pages")
    sys.path.insert(0, str(ROOT / "benchmarks" / "results"))
    modules = {name: importlib.import_module(name) for name in names}
    yield modules["figures"], modules["pages"]
    sys.path.remove(str(ROOT / "benchmarks" / "results"))
    for name in names:
        sys.modules.pop(name)


def parts(page: str) -> Iterator[tuple[str, str, str]]:
    """The kind of each comment, what it says, and the text up to the next one; first that before any."""
    kind, said, begin = "", "", 0
    for found in MARKER.finditer(page):
        yield kind, said, page[begin : found.start()]
        kind, said, begin = found[1], found[2], found.end()
    yield kind, said, page[begin:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_figure_has_its_lines(page: Path, scripts: tuple[ModuleType, ModuleType]) -> None:
    figures, pages = scripts
    text, lost = page.read_text(encoding="utf-8"), 0
    assert pages.rewritten(text) == text, "run python benchmarks/results/pages.py"
    for kind, said, part in parts(text):
        found = figures.figures_of(part)
        if kind == "figures":
            files, _, count = said.partition("; without lines: ")
            known = figures.figures_in([ROOT / file for file in files.split()])
            unknown = [figure for figure in found if figure not in known]
            assert len(unknown) == int(count or 0), f"not in {files or 'any lines'}: {unknown}"
            lost += len(unknown)
        elif kind != "table":
            assert found == [], "no comment says where these figures come from"
    assert lost == LOST.get(page.relative_to(ROOT).as_posix(), 0)


def test_the_readme_has_the_figures_of_the_results(scripts: tuple[ModuleType, ModuleType]) -> None:
    figures, _ = scripts
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What to expect")[2]
    found = figures.figures_of(section.partition("\n## ")[0])
    known = set(figures.figures_of((RESULTS / "index.md").read_text(encoding="utf-8")))
    known |= {f"{float(figure):.1f}" for figure in known if re.fullmatch(r"\d+\.\d\d", figure)}
    assert len(found) > 15 and [figure for figure in found if figure not in known] == []


def test_what_a_figure_is(scripts: tuple[ModuleType, ModuleType]) -> None:
    figures, _ = scripts
    text = "1.05 M, 0.64 hours, **-17 %**, -66 / -58 %, 12.16 ± 0.85, 33.9 % (p 0.04), `lr=0.05`, 8.06 | 60 %"
    assert figures.figures_of(text) == ["-17", "-66", "-58", "12.16 ± 0.85", "33.9", "p 0.04", "8.06"]
    adapter = figures.figures_in([ROOT / "benchmarks/results/lines/an4-adapter.jsonl"])
    assert {"10.28", "10.58 ± 0.95", "-14", "p 0.05", "1.10", "1.35"} <= adapter and "9.99" not in adapter
