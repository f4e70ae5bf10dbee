# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters that no loss of a stage reaches."""

from __future__ import annotations

from torch import Tensor


def parameters_with_grad(loss: Tensor) -> set[Tensor]:
    """The parameters that a backward of `loss` gives a gradient: the leaves of its graph. Nothing is
    computed.
    """
    reached: set[Tensor] = set()
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the end of a path, where a gradient is accumulated
            reached.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return reached
