# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of a text, and those that a file of lines gives: error rates, intervals, changes and p.

A test holds the documentation to them (`tests/unit/test_figures.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from runs import groups_of, read_lines
from table import mean, relative_change

# `10.58 ± 0.95`, `10.58`, `12.5 %`, `-17 %`, `-66 / -58 %`, `p 0.05`; not `1.05 M`, `0.64 hours`, `40.5 MB`.
FIGURE = re.compile(
    r"(?<![\w.:/-])(?:"
    r"\d+\.\d\d ± \d+\.\d\d"
    r"|p (?:< )?\d\.\d\d"
    r"|[-+]\d+(?:\.\d+)?(?= %| / [-+]?\d+(?:\.\d+)? %)"
    r"|\d+\.\d\d?(?= ?%| / \d+\.\d\d? ?%)"
    r"|\d+\.\d\d(?![\d.]|\s?(?:M\b|MB|GB|hours?\b|h\b|s\b|ms\b))"
    r")"
)


def figures_of(text: str) -> list[str]:
    """The figures of a text, in order; those in code and in comments do not count."""
    plain = re.sub(r"<!--.*?-->|^```.*?^```|`[^`\n]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)
    return [found.group() for found in FIGURE.finditer(plain.replace("**", ""))]


def _rounded(value: float) -> Iterator[str]:
    """A rate as pages have it: in percent, with two decimals or one."""
    yield f"{100 * value:.2f}"
    yield f"{100 * value:.1f}"


def figures_in(files: Sequence[Path]) -> set[str]:
    """What can be said of the lines in files.

    That is each run's error rate and the mean of each group over its seeds, on validation (after each epoch,
    too) and on test; the
    change from any group to any other, with its p; an adapter's rate, its teacher's, and their ratio.

    Args:
        files: of lines that are committed.
    """
    return set(_figures(files))


def _figures(files: Sequence[Path]) -> Iterator[str]:
    sets: dict[str, list[list[float]]] = {"valid": [], "test": []}
    for file in files:
        for lines in groups_of(read_lines(file)).values():
            for split, found in sets.items():
                values = [line[split]["wer"] for line in lines if line.get(split)]
                if values:
                    found.append(values)
                    yield from _rounded(float(np.mean(values)))
                    yield mean([100 * value for value in values])
                    for value in values:
                        yield from _rounded(value)
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            for wer in line.get("valid_by_epoch", []):
                yield from _rounded(wer / 100)
            rates = [line.get(name) for name in ("teacher_wer", "adapter_wer")]
            rates += [(line.get("adapter") or {}).get(name) for name in ("teacher_wer", "wer")]
            rates += [line["test"]["wer"]] if line.get("kind") == "teacher" else []
            rates += [line["wer"]] if line.get("kind") in ("public model", "published") else []
            for rate in rates:
                yield from _rounded(rate) if rate is not None else ()
            for before, after in (rates[:2], rates[2:4]):
                if before and after is not None:
                    yield f"{after / before:.2f}"
    for found in sets.values():
        for one, other in permutations(found, 2):
            change, _, p = relative_change(one, other).rstrip(")").partition(" % (")
            yield change.removesuffix(" %")
            if p:
                yield p
                yield "p < 0.01" if p == "p 0.00" else p
