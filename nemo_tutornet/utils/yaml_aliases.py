# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""YAML aliases of an untrusted config, counted before anything unfolds them."""

from __future__ import annotations

import math
from typing import Any

import yaml

_NODES = 1_000_000  # a config with a vocabulary of many thousand pieces has far fewer


def check_aliases(content: bytes) -> None:
    """Refuses a YAML of a few bytes whose aliases OmegaConf would unfold into more than the memory holds.

    Raises:
        yaml.YAMLError: its aliases unfold into more nodes than any config has, or without end.
    """
    if b"*" not in content:
        return
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # until it is known: what holds itself has no end
            children = node.value if isinstance(node.value, list) else []
            sizes[id(node)] = 1 + sum(
                size(child) for item in children for child in (item if isinstance(item, tuple) else (item,))
            )
        return sizes[id(node)]

    root = yaml.compose(content, Loader=yaml.SafeLoader)
    if root is not None and size(root) > _NODES:
        raise yaml.YAMLError("its aliases unfold without end")
