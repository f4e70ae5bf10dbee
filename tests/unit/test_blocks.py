# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command and code block of the README and the documentation is executed by a test, or says why not.

A block of ` ```text ` is output, not code. A block that no test runs has a comment before it:
`<!-- not run: the reason -->`. All others are counted here, beside the test that runs them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run:(.*?)-->\n)?```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

_PAGES = "integration/documents/test_pages.py::test_the_commands_of_a_page"
_SECTIONS = "integration/documents/test_pages.py::test_the_sections_of_a_page"
_README = "integration/documents/test_readme.py::"
EXECUTED: dict[str, dict[str, int]] = {
    "README.md": {
        f"{_README}test_a_teacher_of_characters": 4,
        f"{_README}test_a_teacher_of_subwords": 1,
        f"{_README}test_the_section_shown_is_the_section_there_is": 1,
    },
    "docs/adapter.md": {
        "integration/documents/test_adapter_page.py::test_from_a_subword_teacher_to_a_character_student": 4
    },
    "docs/architecture.md": {"integration/documents/test_architecture.py::test_the_example_adds_a_loss": 1},
    "docs/configuration.md": {"integration/documents/test_pages.py::test_the_lines_of_defaults": 1},
    "docs/deployment/index.md": {
        _PAGES: 2,
        "integration/documents/test_pages.py::test_the_export_in_python": 1,
    },
    "docs/deployment/model-card.md": {
        "integration/documents/test_pages.py::test_the_commands_of_the_model_card": 1
    },
    "docs/deployment/nemo.md": {"integration/export/test_nemo_scripts.py::test_the_page_as_it_is_written": 7},
    "docs/deployment/onnx-asr.md": {_PAGES: 1},
    "docs/deployment/onnx-runtime.md": {_PAGES: 4},
    "docs/deployment/phones.md": {_PAGES: 1},
    "docs/deployment/sherpa-onnx.md": {
        _PAGES: 1,
        "integration/export/test_streaming.py::test_the_commands_of_the_page": 1,
    },
    "docs/deployment/streaming.md": {
        _PAGES: 1,
        "integration/export/test_chunks.py::test_the_command_of_the_tables": 1,
    },
    "docs/evaluate.md": {_PAGES: 1},
    "docs/guides/augmentation-and-cache.md": {_PAGES: 2},
    "docs/guides/averaging.md": {_PAGES: 2},
    "docs/guides/cascades.md": {_PAGES: 1},
    "docs/guides/consistency.md": {_PAGES: 1},
    "docs/guides/init-and-pairs.md": {_SECTIONS: 1},
    "docs/guides/little-data.md": {_PAGES: 1},
    "docs/guides/multi-gpu.md": {
        "integration/documents/test_pages.py::test_the_recipe_for_nemo_run": 1,
        _PAGES: 1,
    },
    "docs/guides/stages.md": {_SECTIONS: 1},
    "docs/guides/untranscribed.md": {
        "integration/documents/test_readme.py::test_audio_without_transcripts": 1,
        "integration/documents/test_adapter_page.py::test_audio_without_transcripts": 1,
        _PAGES: 1,
    },
    "docs/report.md": {"integration/documents/test_report_page.py::test_the_commands_of_the_page": 1},
    "docs/start.md": {_PAGES: 4},
    "docs/your-checkpoint.md": {_PAGES: 3},
}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """The reason why a block is not run, its language, and its content."""
    return [
        (reason.strip(), language, content)
        for reason, language, content in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language != "text"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, flags=re.M)) == 2 * len(BLOCK.findall(text))
    unmarked = [content for reason, _, content in blocks(page) if not reason]
    executed = EXECUTED.get(page.relative_to(ROOT).as_posix(), {})
    assert len(unmarked) == sum(executed.values()), [content.splitlines()[0] for content in unmarked]


@pytest.mark.parametrize(
    "test", sorted({test for tests in EXECUTED.values() for test in tests if "::" in test})
)
def test_the_tests_that_run_blocks_are_there(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_pages_that_are_gone_are_not_counted() -> None:
    assert EXECUTED.keys() <= {page.relative_to(ROOT).as_posix() for page in PAGES}
