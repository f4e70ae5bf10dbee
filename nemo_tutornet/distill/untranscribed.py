# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on audio without transcripts: the teacher's losses use these utterances, and CTC skips them.

NeMo gives a manifest row without `text` an empty transcript, and CTC would train the student to output only
blanks for it. A row whose `text` is explicitly empty cannot be distinguished from a row without `text`.
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
    """Restricts NeMo's CTC loss to the utterances that have a transcript, within the context (ours).

    A labelled utterance has the same weight as in a batch of the same size without unlabelled utterances. For
    this, a reduction that divides by the number of utterances divides by the size of the whole batch. The
    loss of a batch without any transcript is 0.

    Args:
        loss: NeMo's `CTCLoss`, called with keyword arguments: `log_probs` `[B, T, V]`, `targets` `[B, L]`,
            `input_lengths` `[B]` and `target_lengths` `[B]`.
        reduction: the loss's reduction, which is the student's `ctc_reduction`.
    """
    share, nothing = 1.0, torch.zeros(())

    def select(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal share, nothing
        labelled = kwargs["target_lengths"] > 0
        share = 1.0
        if not labelled.any():
            # The loss cannot be called on an empty batch. It is called on the empty transcripts, and a zero
            # that depends on `log_probs` replaces its value.
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
