# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of modules that need no NeMo: each runs, and each function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from types import ModuleType

import pytest

# The module, and how many docstrings in it have an example.
MODULES = {
    "data.dataloader": 3,
    "data.manifest": 3,
    "data.pseudo_manifest": 1,
    "data.utterances": 3,
    "evaluation.error_rates": 3,
    "evaluation.onnx_model": 1,
    "functional.alignment": 7,
    "functional.fft_depthwise": 2,
    "functional.losses": 16,
    "functional.schedule": 2,
    "utils.files": 1,
    "utils.yaml_aliases": 1,
}


def load(name: str) -> ModuleType:
    return importlib.import_module(f"nemo_tutornet.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    docstrings = [
        test for test in doctest.DocTestFinder(exclude_empty=True).find(load(name)) if test.examples
    ]
    for docstring in docstrings:
        runner.run(docstring, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries >= len(docstrings) == MODULES[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("functional.")])
def test_every_public_function_of_the_mathematics_has_an_example(name: str) -> None:
    module = load(name)
    functions = {
        key
        for key, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not key.startswith("_")
    }
    without = [key for key in functions if ">>>" not in (inspect.getdoc(getattr(module, key)) or "")]
    assert functions and not without
