# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds numbers that are NaN or infinite, and names their cause: audio, teacher, transcripts or student.

Legend: `B` utterances, `N` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.errors import TutorError
from nemo_tutornet.teachers.targets import TeacherTargets

# A message names this many utterances.
_MOST_NAMED = 3
LOWER_RATE = "lower model.optim.lr, set trainer.gradient_clip_val, or look at these utterances."


class BatchNames:
    """Names the utterances of a batch of the training set, for messages.

    Args:
        resolver: finds the utterance of each row; None where rows cannot be identified.
        sample_rate: samples per second of the audio.
    """

    def __init__(self, resolver: UtteranceResolver | None, sample_rate: int) -> None:
        self._resolver, self._sample_rate = resolver, sample_rate

    @classmethod
    def of_training_set(cls, student: Any) -> BatchNames:
        """Connects the names with the training set of a student, whose batches get sample ids thereby.

        Lhotse's rows stay without names, because its workers would send every cut along with its audio.

        Args:
            student: a NeMo CTC model.
        """
        resolver, loader = None, student._train_dl
        if loader is not None and not (student.cfg.get("train_ds") or {}).get("use_lhotse"):
            with suppress(TutorError):
                resolver = UtteranceResolver(loader)
        return cls(resolver, int(student.cfg.sample_rate))

    def __call__(self, batch: TrainingBatch) -> list[str]:
        """Returns the names of a batch's utterances; their lengths where no names are known."""
        if self._resolver is not None and batch.sample_ids is not None:
            return [str(utterance) for utterance in self._resolver(batch)]
        seconds = (batch.signal_lengths / self._sample_rate).tolist()
        return [f"an utterance of {length:.2f} s" for length in seconds]


def find_nonfinite(
    terms: Mapping[str, Tensor],
    batch: TrainingBatch,
    targets: TeacherTargets | None,
    names: Callable[[TrainingBatch], Sequence[str]],
) -> str | None:
    """Returns why the loss of a step is NaN or infinite; None where it is finite.

    Where all is well, one number is looked at: the sum of the losses.

    Args:
        terms: the losses of the step by name, their weighted sum as `loss`.
        batch: the batch.
        targets: the teacher's; None where no loss reads any.
        names: returns the names of the batch's utterances.

    Returns:
        A sentence with the losses, and the utterances with the first cause that is found: samples or the
        teacher's output that are not finite, missing transcripts, or else all of the batch.
    """
    if torch.isfinite(terms["loss"]):
        return None
    wrong = [f"{name} {float(value):g}" for name, value in terms.items() if not torch.isfinite(value)]
    return f"the loss is not finite ({', '.join(wrong)}): {_cause(batch, targets, names(batch))}"


def _cause(batch: TrainingBatch, targets: TeacherTargets | None, named: Sequence[str]) -> str:
    rows = nonfinite_rows(batch.signal)
    if rows:
        where = shown([named[row] for row in rows])
        return f"the audio has NaN or infinite values in {where}; fix the audio or leave it out."
    given: list[Tensor | None] = []
    if targets is not None:
        given = [targets.hidden, *targets.further_hidden, targets.log_probs]
        given += [other.log_probs for other in targets.others]
    for values in given:
        rows = [] if values is None else nonfinite_rows(values, zero_is_infinite=True)
        if rows:
            return (
                f"the teacher's output has NaN or infinite values in {shown([named[row] for row in rows])}; "
                "leave the utterance out, or set model.tutor.teacher.precision to fp32 if it is not."
            )
    if targets is None and isinstance(batch.transcript_lengths, Tensor):
        # With two views of each row, there are twice as many transcripts as rows.
        empty = (batch.transcript_lengths[: len(named)] == 0).nonzero()[:, 0].tolist()
        if empty:
            return (
                f"there is no transcript for {shown([named[row] for row in empty])}, and model.ctc_reduction "
                "may divide by its length; leave such utterances out."
            )
    if targets is None:
        return f"the audio is finite, so the student diverged, on {shown(named)}; {LOWER_RATE}"
    return f"audio and teacher are finite, so the student diverged, on {shown(named)}; {LOWER_RATE}"


def nonfinite_rows(values: Tensor, zero_is_infinite: bool = False) -> list[int]:
    """Returns the rows of a tensor `[B, ...]` that hold NaN or infinity.

    Args:
        values: any.
        zero_is_infinite: minus infinity is allowed, the logarithm of a posterior of 0.

    Example:
        >>> nonfinite_rows(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
        [1]
    """
    bad = torch.isnan(values) | (values == torch.inf) if zero_is_infinite else ~torch.isfinite(values)
    rows: list[int] = bad.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    return rows


def check_audio(signal: Tensor, names: Callable[[], Sequence[str]]) -> None:
    """Refuses audio that is not finite, before a teacher reads it.

    Args:
        signal: waveform `[B, N]`.
        names: returns the names of the batch's utterances.

    Raises:
        TutorError: names the utterances.
    """
    if torch.isfinite(signal).all():
        return
    where = shown([names()[row] for row in nonfinite_rows(signal)])
    raise TutorError(f"the audio has NaN or infinite values in {where}; fix the audio or leave it out.")


def check_weights(student: nn.Module, when: str) -> None:
    """Refuses to write a student that has weights or batch norm statistics that are not finite.

    Args:
        student: any module.
        when: the beginning of the sentence, e.g. `after step 3`.

    Raises:
        TutorError: names the first one.
    """
    name = first_nonfinite((*student.named_parameters(), *student.state_dict().items()))
    if name is not None:
        raise TutorError(
            f"{when}: the student's {name} has NaN or infinite values, so nothing is written; lower "
            "model.optim.lr or set trainer.gradient_clip_val, and begin a new run."
        )


def first_nonfinite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Returns the first name whose tensor holds NaN or infinity; None where all are finite."""
    tensors = [(name, value.detach()) for name, value in named if value is not None]
    tensors = [(name, value) for name, value in tensors if value.is_floating_point() and value.numel()]
    if not tensors:
        return None
    # One norm of all is cheap, and it is not finite where a value is not; the reverse is looked at.
    if torch.isfinite(get_total_norm([value for _, value in tensors])):
        return None
    return next((name for name, value in tensors if not torch.isfinite(value).all()), None)


def shown(names: Sequence[str]) -> str:
    """Returns some names for a message, and the number of the others.

    Example:
        >>> shown(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
