# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Guards a training against numbers that are NaN or infinite: stops it, or skips the batch and counts it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from nemo.utils import logging
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import SequentialSampler

from nemo_tutornet.data.dataloader import TrainingBatch, manifest_entries
from nemo_tutornet.distill.finite import (
    LOWER_RATE,
    BatchNames,
    check_weights,
    find_nonfinite,
    first_nonfinite,
    shown,
)
from nemo_tutornet.distill.random_states import own_generators, random_states, restore_random_states
from nemo_tutornet.distill.rank_agreement import agree
from nemo_tutornet.distill.unused_parameters import parameters_with_grad
from nemo_tutornet.errors import TutorError
from nemo_tutornet.teachers.targets import TeacherTargets

# A training set that does not know its length is judged by the batches until now, at least this many.
_FEWEST_BATCHES = 100


class FiniteGuard(Callback):
    """Looks at each loss, each gradient, each validation loss and the final weights of a student.

    A training stops at the first value that is not finite, before it changes a weight. With
    `tutor.max_nonfinite_share`, a batch whose loss or gradient is not finite is skipped and counted instead.
    A skipped batch counts as a step of the schedules, and it changes neither the weights nor the optimizer's
    state nor the batch norm statistics. All ranks skip a batch together, or stop together.

    With gradient accumulation, a loss that is not finite leaves out its own batch, and a gradient that is not
    finite all batches of its step. Gradients are not looked at under fp16 with loss scaling, which skips such
    steps itself.
    """

    def __init__(self) -> None:
        self._share = 0.0
        self._names: BatchNames | None = None
        self._skipped = self._seen = 0
        self._of_step = [0, 0]  # batches of the current step, and how many of them are skipped
        self._last: TrainingBatch | None = None
        self._saved: _Saved | None = None
        self._saved_of_step: _Saved | None = None
        self._invalid: str | None = None
        self._warned_of_wer = False

    def attach(self, student: Any) -> None:
        """Connects the guard with a student before a training.

        Args:
            student: a NeMo CTC model with its data sets, and with its `distiller` where it has a teacher.
        """
        config = student._limits
        self._share = 0.0 if config is None else config.max_nonfinite_share
        distiller = student.distiller
        self._names = BatchNames.of_training_set(student) if distiller is None else distiller.names
        self._of_step = [0, 0]

    # --- The training step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to count."""
        self._skipped = self._seen = 0
        self._of_step = [0, 0]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keeps what a batch changes before its loss is known, where batches may be skipped."""
        if self._share:
            self._saved = _Saved(pl_module)
            if not self._of_step[0]:
                self._saved_of_step = self._saved

    def checked(
        self,
        student: Any,
        output: dict[str, Any],
        terms: Mapping[str, Tensor],
        batch: TrainingBatch,
        targets: TeacherTargets | None,
    ) -> dict[str, Any]:
        """Returns the output of a training step; that of a skipped batch has a loss without an effect.

        Args:
            student: the model in training.
            output: the loss, and the values to log.
            terms: the losses by name, their weighted sum as `loss`.
            batch: the batch.
            targets: the teacher's; None where no loss reads any.

        Raises:
            TutorError: the loss is not finite, and the batch may not be skipped. It names the step, the
                losses, the cause and the utterances.
        """
        assert self._names is not None
        self._seen += 1
        self._of_step[0] += 1
        self._last = batch
        found = self.agree(student, find_nonfinite(terms, batch, targets, self._names), terms["loss"].device)
        if found is None:
            return output
        self._skip_or_stop(student.trainer, found)
        self._of_step[1] += 1
        assert self._saved is not None
        self._saved.restore(random_state=True)
        # The others must have no gradient, because an optimizer would move them by one of zero.
        reached = parameters_with_grad(output["loss"])
        trained = [parameter for parameter in student.parameters() if parameter in reached]
        nothing = torch.stack([(parameter * 0.0).sum() for parameter in trained]).sum()
        log = {name: value for name, value in output.get("log", {}).items() if _is_finite(value)}
        return {**output, "loss": nothing, "log": log}

    @staticmethod
    def agree(student: Any, found: str | None, device: torch.device) -> str | None:
        """Returns what any rank found in its batch, and ends the training on all ranks if one was asked to.

        Args:
            student: the model in training.
            found: what this rank found.
            device: where tensors are exchanged.
        """
        loop = student._epoch_loop
        found, stop = agree(found, 0 if loop is None else loop.stop_asked, device)
        if stop and loop is not None:
            loop.stop_agreed = stop
        return found

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the gradients, and takes them away from a step whose batches are all skipped."""
        batches, skipped = self._of_step
        self._of_step = [0, 0]
        if batches and batches == skipped:
            _drop_gradients(pl_module)
            return
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        # DDP has summed them, so all ranks see the same.
        name = first_nonfinite((name, parameter.grad) for name, parameter in pl_module.named_parameters())
        if name is None:
            return
        named = [] if self._last is None or self._names is None else self._names(self._last)
        self._skip_or_stop(
            trainer,
            f"the gradient of {name} is not finite, and the loss is, so the student diverged, on "
            f"{shown(named)}; {LOWER_RATE}",
        )
        _drop_gradients(pl_module)
        if self._saved_of_step is not None:
            self._saved_of_step.restore(random_state=False)

    def _skip_or_stop(self, trainer: Any, found: str) -> None:
        self._skipped += 1
        batches = trainer.num_training_batches
        if math.isinf(batches):
            batches = max(self._seen, _FEWEST_BATCHES)
        most = int(self._share * batches)
        sentence = f"step {trainer.global_step + 1}: {found}"
        if not self._share:
            raise TutorError(sentence)
        if self._skipped > most:
            raise TutorError(
                f"{sentence.rstrip('.')}. It is batch {self._skipped} of this epoch that is not finite, and "
                f"model.tutor.max_nonfinite_share allows {most}."
            )
        logging.warning(f"{sentence} The batch is skipped ({self._skipped} of at most {most} in this epoch).")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Says how many batches were skipped."""
        if self._skipped:
            logging.warning(
                f"Epoch {trainer.current_epoch}: {self._skipped} of {self._seen} batches were skipped, "
                "because their loss or gradient was not finite."
            )

    # --- Validation and the end

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Looks at the loss of a validation batch."""
        loss = outputs.get("val_loss") if isinstance(outputs, Mapping) else None
        if self._invalid is not None or not isinstance(loss, Tensor) or torch.isfinite(loss).all():
            return
        if not isinstance(batch, (tuple, list)):
            return
        named = TrainingBatch.from_nemo(batch)
        if (named.transcript_lengths == 0).any():
            return  # CTC divides by the length of a transcript, which says nothing about the student
        self._invalid = find_nonfinite(
            {"loss": loss.sum()}, named, None, _ValidationNames(trainer, pl_module, batch_idx, dataloader_idx)
        )

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stops where a validation loss was not finite.

        Raises:
            TutorError: names the cause and the utterances.
        """
        found, self._invalid = self._invalid, None
        found, _ = agree(found, 0, pl_module.device)
        if found is not None:
            raise TutorError(f"validation after step {trainer.global_step}: {found}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tells, once, of a word error rate that is no number."""
        wer = trainer.callback_metrics.get("val_wer")
        if wer is not None and not _is_finite(wer) and not self._warned_of_wer:
            self._warned_of_wer = True
            logging.warning(
                f"val_wer is {float(wer):g}, because the validation set has no transcript with a word, so no "
                "epoch is better than another; give model.validation_ds transcripts."
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Refuses to end with weights that are not finite.

        Raises:
            TutorError: names the first parameter.
        """
        self._last = self._saved = self._saved_of_step = None
        check_weights(pl_module, f"after step {trainer.global_step}")


class _Saved:
    """The batch norm statistics and the random states before a batch."""

    def __init__(self, student: Any) -> None:
        norms = [module for module in student.modules() if isinstance(module, _NormBase)]
        buffers = [buffer for module in norms for buffer in module.buffers()]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._generators = own_generators(student.modules())
        self._random = random_states(self._generators)

    def restore(self, random_state: bool) -> None:
        """Restores the statistics, and the random state where that is wanted."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        if random_state:
            restore_random_states(self._random, self._generators)


class _ValidationNames:
    """Names the utterances of a validation batch: by their files where the rows are read in order."""

    def __init__(self, trainer: Any, student: Any, batch_idx: int, dataloader_idx: int) -> None:
        loaders = trainer.val_dataloaders
        self._loader = loaders[dataloader_idx] if isinstance(loaders, (list, tuple)) else loaders
        self._batch_idx, self._ranks = batch_idx, trainer.world_size
        self._otherwise = BatchNames(None, int(student.cfg.sample_rate))

    def __call__(self, batch: TrainingBatch) -> list[str]:
        in_order = isinstance(getattr(self._loader, "sampler", None), SequentialSampler)
        entries = manifest_entries(self._loader) if in_order and self._ranks == 1 else []
        size = getattr(self._loader, "batch_size", None) or 0
        rows = entries[self._batch_idx * size : self._batch_idx * size + len(batch.signal)]
        if len(rows) != len(batch.signal):
            return self._otherwise(batch)
        return [str(entry.audio_file) for entry in rows]


def _drop_gradients(student: Any) -> None:
    """Removes all gradients, so that an optimizer changes neither a parameter nor its own state."""
    for parameter in student.parameters():
        parameter.grad = None


def _is_finite(value: Any) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value)).all())
