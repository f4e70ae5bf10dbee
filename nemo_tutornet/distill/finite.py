# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Stops a training at its first loss that is not a finite number, and names the cause.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.errors import TutorError
from nemo_tutornet.teachers.targets import TeacherTargets

# A message names this many utterances.
_MOST_NAMED = 3


def check_finite(
    terms: Mapping[str, Tensor],
    step: int,
    batch: TrainingBatch,
    targets: TeacherTargets | None,
    names: Callable[[], Sequence[str]],
) -> None:
    """Raises an error where the loss of a step is NaN or infinite.

    Call it before the backward pass, so that no parameter changes. A training that ends with an error writes
    no checkpoint, so the batch norm statistics of this batch are not saved either. Where all is well, one
    number is looked at: the sum of the losses.

    Args:
        terms: the losses of the step by name, their weighted sum as `loss`.
        step: optimizer steps before this one.
        batch: the batch.
        targets: the teacher's; None where no loss reads any.
        names: returns the names of the batch's utterances.

    Raises:
        TutorError: names the step, the losses, and the utterances with the first cause that is found: samples
            or the teacher's output that are not finite, or else all of the batch.
    """
    if torch.isfinite(terms["loss"]):
        return
    named = names()
    wrong = [f"{name} {float(value):g}" for name, value in terms.items() if not torch.isfinite(value)]
    parts: list[tuple[str, str, Any]] = [("the audio", "fix the audio or leave it out.", batch.signal)]
    if targets is not None:
        remedy = "leave the utterance out, or set model.tutor.teacher.precision to fp32 if it is not."
        given = (targets.hidden, *targets.further_hidden, targets.log_probs)
        given += tuple(other.log_probs for other in targets.others)
        parts += [("the teacher's output", remedy, values) for values in given if values is not None]
    for part, remedy, values in parts:
        # A posterior of 0 is minus infinity as a logarithm.
        bad = torch.isnan(values) | (values == torch.inf)
        if part == "the audio":
            bad |= torch.isinf(values)
        rows = bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        if rows:
            found = f"{part} has NaN or infinite values in {_shown([named[row] for row in rows])}; {remedy}"
            break
    else:
        found = (
            f"audio and teacher are finite, so the student diverged, on {_shown(named)}; lower "
            "model.optim.lr, set trainer.gradient_clip_val, or look at these utterances."
        )
    raise TutorError(f"step {step + 1}: the loss is not finite ({', '.join(wrong)}): {found}")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
