# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Two augmented views of each batch for student consistency, with a teacher and without one.

The student's front end runs once on the batch. Its features are repeated, so the rest of the student runs
once on twice as many rows: SpecAugment draws other masks for each view, batch norm sees both, and every loss
is the mean over both. A teacher runs once on the batch; its targets serve both views.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.config import ConsistencyConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill.untranscribed import ctc_on_transcribed_only
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional import losses
from nemo_tutornet.functional.consistency import consistency, twice, warmup_factor
from nemo_tutornet.functional.frame_weighting import frame_mask, greedy_lengths
from nemo_tutornet.functional.schedule import Stage
from nemo_tutornet.nemo_io.layers import ENCODER, Capture

# The losses that give the decoder a gradient; without any of them, the posteriors mean nothing.
TRAIN_DECODER = ("ctc", "skd", "pseudo")
# The stage of a training without a teacher.
CTC_ALONE = Stage("ctc", {"ctc": 1.0})


def is_consistent(config: ConsistencyConfig, stage: Stage) -> bool:
    """Tells whether a stage trains on two views of each batch."""
    return config.weight > 0 and any(stage.uses(loss) for loss in TRAIN_DECODER)


def consistency_loss(log_probs: Tensor, lengths: Tensor, target_lengths: Tensor, reduction: str) -> Tensor:
    """Computes the consistency of a batch of views, reduced as NeMo reduces CTC.

    Args:
        log_probs: of both views `[2 B, S, V]`.
        lengths: valid frames `[2 B]`.
        target_lengths: labels of the transcripts `[2 B]`; where there is none, the length of the student's
            own greedy hypothesis takes its place.
        reduction: the student's `ctc_reduction`.

    Returns:
        Scalar.
    """
    mask = frame_mask(lengths, log_probs.shape[1])
    half = len(log_probs) // 2
    labels = target_lengths[:half]
    if reduction in ("mean_volume", "mean"):
        greedy = greedy_lengths(log_probs[:half].detach(), mask[:half])
        labels = torch.where(labels > 0, labels, greedy)
    return losses.reduce_like_ctc(consistency(log_probs, mask), labels, reduction)


@contextmanager
def two_views(student: Any, config: ConsistencyConfig, batch: TrainingBatch) -> Iterator[TrainingBatch]:
    """Makes the student see each row of a batch twice, while its SpecAugment masks more of the time.

    The front end computes the features of a row once, so both views have the same dither.

    Args:
        student: a NeMo CTC model, which runs on the batch inside the context.
        config: `tutor.consistency`.
        batch: of `B` rows.

    Yields:
        The batch with the waveforms of `B` rows and the transcripts of the `2 B` rows that the student's
        outputs have.
    """
    modules = time_maskers(student)
    before = [module.time_masks for module in modules]
    for module in modules:
        module.time_masks = more_time_masks(module.time_masks, config.time_masks)
    repeat = student.preprocessor.register_forward_hook(_repeat_features)
    try:
        yield replace(
            batch, transcripts=twice(batch.transcripts), transcript_lengths=twice(batch.transcript_lengths)
        )
    finally:
        repeat.remove()
        for module, masks in zip(modules, before, strict=True):
            module.time_masks = masks


def _repeat_features(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    features, lengths = output
    return twice(features), twice(lengths)


def more_time_masks(masks: int, factor: float) -> int:
    """Returns the number of time masks in a view, rounded; none stay none.

    Example:
        >>> [more_time_masks(masks, 2.5) for masks in (0, 1, 2, 10)]
        [0, 3, 5, 25]
    """
    return max(min(masks, 1), int(masks * factor + 0.5))


def time_maskers(student: Any) -> list[Any]:
    """Returns the parts of a student's SpecAugment that have a number of time masks."""
    augmentation = getattr(student, "spec_augmentation", None)
    parts = [getattr(augmentation, name, None) for name in ("spec_augment", "spec_augment_numba")]
    return [part for part in parts if isinstance(getattr(part, "time_masks", None), int)]


def check_views(student: Any, config: ConsistencyConfig) -> list[str]:
    """Checks that a student's views differ, and that its losses are means.

    Args:
        student: a NeMo CTC model.
        config: `tutor.consistency`.

    Returns:
        A warning where `time_masks` has no effect.

    Raises:
        TutorError: both views would be equal, or CTC is a sum over the batch.
    """
    if config.weight <= 0:
        return []
    augmentation = student.cfg.get("spec_augment")
    counts = {name: int((augmentation or {}).get(name) or 0) for name in _MASKS}
    if getattr(student, "spec_augmentation", None) is None or not any(counts.values()):
        raise TutorError(
            "model.tutor.consistency compares two views of each utterance, and model.spec_augment masks "
            "nothing, so both would be equal; set model.spec_augment.time_masks, freq_masks or rect_masks."
        )
    if str(student.cfg.get("ctc_reduction", "mean_batch")) == "sum":
        raise TutorError(
            "model.ctc_reduction is sum, which would count each of the two views of model.tutor.consistency "
            "in full; choose mean_batch."
        )
    if not counts["time_masks"] and config.time_masks != 1:
        return [
            "model.tutor.consistency.time_masks multiplies model.spec_augment.time_masks, which is 0: the "
            "views differ by the other masks only; CR-CTC wants time masks (e.g. "
            "model.spec_augment.time_masks=2, time_width=0.05)."
        ]
    return []


_MASKS = ("time_masks", "freq_masks", "rect_masks")


class ViewsWithoutTeacher:
    """Consistency in a training that has no teacher.

    Args:
        student: a NeMo CTC model.
        config: `tutor.consistency`, with a weight.
    """

    def __init__(self, student: Any, config: ConsistencyConfig) -> None:
        self._student, self._config = student, config
        self._reduction = str(student.cfg.get("ctc_reduction", "mean_batch"))

    def check(self) -> list[str]:
        """Returns warnings, and raises an error, as `check_views` does."""
        return check_views(self._student, self._config)

    @contextmanager
    def capture(self, batch: TrainingBatch) -> Iterator[TrainingBatch]:
        """Yields the batch with the transcripts of both views; inside, the student runs once on it."""
        with ExitStack() as stack:
            stack.enter_context(ctc_on_transcribed_only(self._student.loss, self._reduction))
            views = stack.enter_context(two_views(self._student, self._config, batch))
            self._encoder = stack.enter_context(Capture(self._student, ENCODER))
            self._decoder = stack.enter_context(Capture(self._student, "decoder"))
            stack.callback(self._release)
            yield views

    def _release(self) -> None:
        """Releases the outputs of the batch, which would stay in memory until the next."""
        del self._encoder, self._decoder

    def terms(self, views: TrainingBatch, ctc: Tensor) -> dict[str, Tensor]:
        """Computes the losses, inside the context of `capture`.

        Args:
            views: what `capture` yielded.
            ctc: NeMo's CTC loss of both views.

        Returns:
            The weighted sum as `loss`, and `ctc` and `consistency`, not weighted.
        """
        lengths = self._encoder.output[1]
        with torch.autocast(lengths.device.type, enabled=False):
            value = consistency_loss(self._decoder.output, lengths, views.transcript_lengths, self._reduction)
        factor = warmup_factor(self._student.trainer.global_step, self._config.warmup)
        total = ctc + self._config.weight * factor * value
        return {"loss": total, "ctc": ctc, "consistency": value}
