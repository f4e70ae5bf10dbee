# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio without transcripts: the teacher's losses hear it, CTC does not.

NeMo gives a row without `text` an empty transcript, and CTC would teach the student to be silent on it. A row
that says so itself, with an empty `text`, cannot be told from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Reductions of NeMo's CTCLoss that divide by the number of utterances.
_BY_UTTERANCE = ("mean_batch", "mean")


@contextmanager
def ctc_on_transcribed_only(loss: nn.Module, reduction: str) -> Iterator[None]:
    """While open, NeMo's CTC loss counts the utterances that have a transcript (ours).

    A labelled utterance weighs as much as in a batch without unlabelled ones: what is divided by the number
    of utterances is divided by all of them. A batch without any transcript gives 0.

    Args:
        loss: NeMo's `CTCLoss`, called with names: `log_probs` `[B, T, V]`, `targets` `[B, L]`,
            `input_lengths` and `target_lengths` `[B]`.
        reduction: its reduction, the student's `ctc_reduction`.
    """
    share, nothing = 1.0, torch.zeros(())

    def select(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal share, nothing
        labelled = kwargs["target_lengths"] > 0
        share = 1.0
        if not labelled.any():
            # The loss cannot be asked about no utterance; it is asked about silence and its answer is left
            # out of the graph.
            share, nothing = 0.0, 0.0 * kwargs["log_probs"].sum()
        elif not labelled.all():
            share = float(labelled.float().mean()) if reduction in _BY_UTTERANCE else 1.0
            kwargs = {name: tensor[labelled] for name, tensor in kwargs.items()}
        return args, kwargs

    def weigh(module: nn.Module, args: Any, value: Tensor) -> Tensor:
        return nothing if share == 0.0 else value * share

    hooks = (loss.register_forward_pre_hook(select, with_kwargs=True), loss.register_forward_hook(weigh))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
