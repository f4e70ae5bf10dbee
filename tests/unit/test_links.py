# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Links between the pages of this project lead to a file, and to a heading of it."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set:
    """The names that GitHub, and the documentation site, give to a page's headings, and the API's names."""
    text = without_code(page)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    named = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return named | set(re.findall(r"^::: ([\w.]+)$", text, flags=re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    broken = []
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        chooses_palette = target.suffix == ".svg" and anchor in ("only-light", "only-dark")
        if not target.exists() or (anchor and not chooses_palette and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_pages_and_headings_are_found() -> None:
    assert {"README.md", "configuration.md", "main.md"} <= {page.name for page in PAGES}
    assert "in-a-yaml-of-your-own" in anchors(ROOT / "docs" / "configuration.md")
    assert "nemo_tutornet.models.TutorMixin" in anchors(ROOT / "docs" / "api" / "training.md")


def leaves(entries: list) -> list[str]:
    """The pages of a navigation."""
    found = []
    for entry in entries:
        below = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += leaves(below) if isinstance(below, list) else [below]
    return found


def test_every_page_of_the_documentation_is_in_its_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = leaves(yaml.safe_load(text[text.index("\nnav:") :])["nav"])
    docs = ROOT / "docs"
    assert sorted(named) == sorted(page.relative_to(docs).as_posix() for page in docs.glob("**/*.md"))


def test_every_page_that_code_or_a_config_names_exists() -> None:
    files = [
        path
        for folder in ("nemo_tutornet", "conf", "examples", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".sh"}
    ]
    assert len(files) > 100
    missing = {
        name
        for path in files
        for name in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert not missing
