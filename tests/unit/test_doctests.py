# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings: every one runs, and every public function of the mathematics has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import nemo_tutornet

ROOT = Path(nemo_tutornet.__file__).parent
EXAMPLE = re.compile(r"^\s*>>> ", flags=re.M)
# Examples in the source of each module that has any.
EXAMPLES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): count
    for path in sorted(ROOT.rglob("*.py"))
    if (count := len(EXAMPLE.findall(path.read_text(encoding="utf-8"))))
}
MATHEMATICS = [
    f"nemo_tutornet.functional.{name}" for name in ("alignment", "fft_depthwise", "losses", "schedule")
]


def public_functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_module_runs(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for docstring in doctest.DocTestFinder().find(importlib.import_module(name)):
        runner.run(docstring, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries == EXAMPLES[name]


@pytest.mark.parametrize("name", MATHEMATICS)
def test_every_public_function_of_the_mathematics_has_an_example(name: str) -> None:
    module = importlib.import_module(name)
    functions = public_functions(module)
    without = [key for key in functions if not EXAMPLE.search(getattr(module, key).__doc__ or "")]
    assert functions and not without
