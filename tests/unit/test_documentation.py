# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The documentation builds without a warning and without the network; what is generated in it, and the
messages that it explains, are those of the code.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nemo_tutornet

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder


def test_nothing_of_a_page_comes_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    loaded = r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
    found = {link for page in pages for link in re.findall(loaded, page.read_text(encoding="utf-8"))}
    assert not found


def test_the_api_reference_has_every_public_name(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").rglob("*.html"))
    shown = {name.rpartition(".")[2] for name in re.findall(r'id="(nemo_tutornet[\w.]+)"', text)}
    assert set(nemo_tutornet.__all__) - {"__version__"} <= shown
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    assert all(f"[`{name}`]" in index for name in nemo_tutornet.__all__ if name != "__version__")


def test_links_out_of_the_documentation_are_words_on_the_site(site: Path) -> None:
    page = (site / "architecture" / "index.html").read_text(encoding="utf-8")
    assert "distill/distiller.py" in page and "nemo_tutornet/distill/distiller.py" not in page


def test_the_pictures_for_a_phone_are_there(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'<source media="\(max-width: [\d.]+em\)" srcset="([^"]+)"', page)
    assert len(named) == 2 and all((site / name).is_file() for name in named)


def test_a_line_does_not_end_inside_an_option(site: Path) -> None:
    page = (site / "start" / "index.html").read_text(encoding="utf-8")
    assert '<code class="short">--json</code>' in page and "code.short" in (DOCS / "site.css").read_text()


def test_what_a_function_returns_is_one_item_of_the_api(site: Path) -> None:
    page = (site / "api" / "export" / "index.html").read_text(encoding="utf-8")
    words = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "per .nemo file and precision. Real-time factors are comparable within one runtime only." in words


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The script that writes the configuration's tables."""
    spec = importlib.util.spec_from_file_location("configuration_table", DOCS / "configuration_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configurations_tables_are_those_of_the_class(table: ModuleType) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert table.rewritten(page) == page, "run python docs/configuration_table.py"


def test_the_configurations_tables_have_every_key(table: ModuleType) -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]*) \|", "\n".join(table.tables()), flags=re.M))
    assert rows["skd.divergence"] == "`l2`" and rows["rkd.pairs[].hint_layer"] == "required"
    assert rows["teacher.model_path"] == "`null`" and rows["init.layers"] == "`null`"
    assert rows["stages"].startswith("`[{name: rkd, weights: {rkd: 0.37}, share: 0.25}, ")
    assert {"other_teachers", "pool_frames", "stages[].share", "pseudo_labels.max_wer"} <= rows.keys()


def literals(node: ast.AST) -> str | None:
    """The text of a string in the source, `…` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\w+\}", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [literals(part) or "…" for part in node.values]
        return "".join(parts)
    return None


def test_the_messages_that_troubleshooting_explains_are_the_codes() -> None:
    """`…` on the page stands for any words."""
    said = [
        text
        for path in (ROOT / "nemo_tutornet").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (text := literals(node))
    ]
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    hydra = page.index("## Hydra"), page.index("## Data")
    ours = page[: hydra[0]] + page[hydra[1] :]
    messages = re.findall(r"^```text\n(.*?)\n```$", ours, flags=re.M | re.S)
    assert len(messages) >= 10
    unknown = [
        message
        for message in messages
        if not any(
            re.fullmatch(".*?".join(map(re.escape, message.split("…"))), text, flags=re.S) for text in said
        )
    ]
    assert not unknown
