# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A check of the interpolations in an untrusted config, before OmegaConf resolves them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

# Characters and nodes after everything is resolved. Vocabularies of 100,000 pieces, named four times, have
# 4 million.
_CHARACTERS = 16 << 20
# `${a.${b}}`: the key is known only when the inner one is resolved. Each can at most double the size.
_NESTED = 8
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")

Path = tuple[Any, ...]


def check_interpolations(root: Any) -> None:
    """Rejects a small config whose interpolations resolve to more than the memory holds.

    `b: ${a}${a}` doubles the text of `a`, and a few dozen such lines fill any memory.

    Args:
        root: the config as dicts, lists and values, not resolved.

    Raises:
        ValueError: it resolves to more than 16 million characters, or without end, or more than a few of its
            interpolations name a key by another interpolation.

    Example:
        >>> check_interpolations({"rate": 16000, "data": {"rate": "${rate}", "again": "${.rate}"}})
        >>> check_interpolations({"a": "${b}", "b": "${a}"})
        Traceback (most recent call last):
        ValueError: its interpolations resolve to too much, or without end
    """
    sizes: dict[Path, float] = {}
    nested = 0

    def size(path: Path, node: Any) -> float:
        nonlocal nested
        if path not in sizes:
            sizes[path] = math.inf  # a node that is found again inside itself finds this value
            total = 1.0
            if isinstance(node, dict):
                for key, value in node.items():
                    total += size((*path, key), value)
            elif isinstance(node, list):
                for index, value in enumerate(node):
                    total += size((*path, index), value)
            elif isinstance(node, str):
                total += len(node)
                names, deeper = _references(node)
                nested += deeper
                for name in names:
                    found = _find(root, path, name)
                    total += 0 if found is None else size(*found)
            sizes[path] = total
        return sizes[path]

    if size((), root) > _CHARACTERS:
        raise ValueError("its interpolations resolve to too much, or without end")
    if nested > _NESTED:
        raise ValueError(f"it has more than {_NESTED} interpolations inside of interpolations")


def _references(text: str) -> tuple[list[str], int]:
    """Returns the keys that a text names, and the number of its interpolations around others."""
    names: list[str] = []
    nested = -1
    while "${" in text:
        inner = _INNERMOST.findall(text)
        nested = 0 if nested < 0 else nested + len(inner)
        for body in inner:
            resolver, colon, arguments = body.partition(":")
            names += [argument.strip(" '\"") for argument in arguments.split(",")] if colon else [resolver]
        shorter = _INNERMOST.sub("", text)
        if shorter == text:
            break
        text = shorter
    return [name for name in names if name], max(nested, 0)


def _find(root: Any, path: Path, name: str) -> tuple[Path, Any] | None:
    """Returns the place and the node that a key names; the interpolation on the way to it, where there is
    one.

    Args:
        root: the config.
        path: place of the text that names the key, for a key relative to it (`${..a}`).
        name: the key.
    """
    keys = name.lstrip(".")
    up = len(name) - len(keys)
    if up > len(path):
        return None
    place: Path = path[:-up] if up else ()
    node: Any = root
    for key in place:
        node = node[key]
    for part in _parts(keys):
        if isinstance(node, str):
            break  # `${a.b}`, and `a` is itself an interpolation
        index: Any = int(part) if isinstance(node, list) and re.fullmatch(r"-?\d{1,9}", part) else part
        try:
            if isinstance(node, dict) and index not in node:
                index = next(key for key in node if str(key) == part)
            node = node[index]
        except (LookupError, TypeError, StopIteration):
            return None
        place = (*place, index)
    return place, node


def _parts(keys: str) -> Iterator[str]:
    return (part for part in re.split(r"[.\[\]]+", keys.strip()) if part)
