# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A check of the aliases in an untrusted YAML config, before a parser expands them."""

from __future__ import annotations

import math
from typing import Any

import yaml

_NODES = 1_000_000  # a config with a vocabulary of many thousand pieces has far fewer


def check_aliases(content: bytes) -> None:
    """Rejects a small YAML whose aliases OmegaConf would expand into more nodes than the memory holds.

    Args:
        content: the YAML, in UTF-8.

    Raises:
        yaml.YAMLError: the aliases expand into more than `_NODES` nodes or without end, or `content` is not
            YAML.

    Example:
        >>> check_aliases(b"{teacher: &optim {lr: 0.1}, student: *optim}")
        >>> check_aliases(b"a: &a [*a]")
        Traceback (most recent call last):
        yaml.error.YAMLError: its aliases expand into too many nodes
    """
    if b"*" not in content:
        return
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # a node that is inside itself finds this value
            children = node.value if isinstance(node.value, list) else []
            sizes[id(node)] = 1 + sum(
                size(child) for item in children for child in (item if isinstance(item, tuple) else (item,))
            )
        return sizes[id(node)]

    root = yaml.compose(content, Loader=yaml.SafeLoader)
    if root is not None and size(root) > _NODES:
        raise yaml.YAMLError("its aliases expand into too many nodes")
