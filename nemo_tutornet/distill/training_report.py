# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training shows: a bar with stage, losses and time left on a terminal, a line every minute in a log
file, and a table at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from torch import Tensor

from nemo_tutornet.distill.training_table import (
    LOG_WIDTH,
    StageRecord,
    TrainingFiles,
    losses_in_words,
    percent,
    print_training_table,
)
from nemo_tutornet.functional.schedule import progress
from nemo_tutornet.utils.progress import Progress


class LossMeans:
    """Means of losses over some steps. They stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the losses of a step; another set of losses begins anew."""
        if losses.keys() != self._sums.keys():
            self._sums, self._steps = {}, 0
        for name, value in losses.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Returns the means and begins anew."""
        means = {name: float(value) / self._steps for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


class TrainingReport(Callback):
    """Shows how far a training is, and prints a table at its end. On rank zero only.

    It takes the place of Lightning's own bar. With `trainer.enable_progress_bar=false`, or another bar among
    the trainer's callbacks, there is only the table.

    Args:
        console: where it is shown; None is standard output.
        clock: returns seconds; a test's own.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar: TQDMProgressBar | None = None
        self._progress: Progress | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Switches Lightning's bar off."""
        self._stages: list[StageRecord] = []
        self._best_wer: float | None = None
        self._wer: float | None = None
        self._losses = ""
        self._recent, self._epoch = LossMeans(), LossMeans()
        bar = trainer.progress_bar_callback
        if trainer.is_global_zero and type(bar) is TQDMProgressBar and bar.is_enabled:
            self._bar = bar
            bar.disable()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to show the progress."""
        if self._bar is None:
            return
        self._trainer = trainer
        share = self._share(self._last_batch())
        shown = Progress(
            "training", None if share is None else 1.0, self._position, self._shown_on(), self._clock
        )
        self._progress = shown.start_at(share or 0.0)
        self._progress.__enter__()

    def _shown_on(self) -> Console:
        if self._console is None:
            console = Console()
            self._console = console if console.is_terminal else Console(width=LOG_WIDTH)
        return self._console

    def _share(self, batch_idx: int = -1) -> float | None:
        """Returns the finished share of the training, after a batch of the current epoch."""
        trainer = self._trainer
        batches = trainer.num_training_batches
        part = (batch_idx + 1) / batches if batches and not math.isinf(batches) else 0.0
        epochs = trainer.current_epoch + part
        return progress(epochs, trainer.global_step, trainer.max_epochs, trainer.max_steps)

    def _last_batch(self) -> int:
        """Returns the last batch of the current epoch that a resumed run has trained on; -1 for none."""
        epoch = self._trainer.fit_loop.epoch_loop
        return int(epoch.batch_progress.current.completed) - 1 if epoch.restarting else -1

    def _position(self, share: float) -> str:
        trainer = self._trainer
        of_epochs = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        of_steps = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        return f"epoch {trainer.current_epoch + 1}{of_epochs}, step {trainer.global_step}{of_steps}"

    # --- Steps

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the losses of a step, and shows them where it is time for it."""
        if not trainer.is_global_zero:
            return
        name, words, losses = _stage_and_losses(trainer, pl_module)
        epoch = trainer.current_epoch + 1
        begins = not self._stages or self._stages[-1].name != name
        if begins:
            self._end_epoch()
            self._stages.append(StageRecord(name, epoch, epoch))
        self._stages[-1].last_epoch = epoch
        self._epoch.add(losses)
        self._recent.add(losses)
        if self._progress is None:
            return
        due = begins or self._progress.is_due
        if due:
            self._losses = words + losses_in_words(self._recent.read())
        self._progress.update(self._share(batch_idx) or 0.0, self._status if due else None, line=begins)

    @property
    def _status(self) -> str:
        return self._losses if self._wer is None else f"{self._losses}, val_wer {percent(self._wer)}"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the means of the epoch."""
        self._end_epoch()

    def _end_epoch(self) -> None:
        means = self._epoch.read()
        if means:
            self._stages[-1].losses = means

    # --- Validation

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Shows how far a validation is."""
        if self._progress is not None and self._progress.is_due and not trainer.sanity_checking:
            batches = trainer.num_val_batches[dataloader_idx]
            of_batches = "" if math.isinf(batches) else f" of {batches}"
            self._progress.update(self._progress.completed, f"validation, batch {batch_idx + 1}{of_batches}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the word error rate."""
        value = trainer.callback_metrics.get("val_wer")
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or value is None:
            return
        if not trainer.is_global_zero or not self._stages or not math.isfinite(float(value)):
            return
        self._wer = self._stages[-1].wer = float(value)
        self._best_wer = min(self._wer, self._wer if self._best_wer is None else self._best_wer)
        if self._progress is not None:
            self._progress.update(self._progress.completed, self._status)

    # --- The end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Ends the bar, before NeMo says which files it writes."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Ends the bar, so that the error is printed below it."""
        self._close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Prints the table, when all files are written."""
        if not trainer.is_global_zero:
            return
        callback = trainer.checkpoint_callback
        best = self._best_wer
        score = getattr(callback, "best_model_score", None)
        if getattr(callback, "monitor", None) == "val_wer" and score is not None:
            best = float(score)  # it knows of the epochs before a run was resumed, too
        print_training_table(self._stages, best, TrainingFiles.of(callback), self._shown_on())

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
        if self._bar is not None:
            self._bar.enable()  # for a test after the training
            self._bar = None


def _stage_and_losses(trainer: Any, model: Any) -> tuple[str, str, dict[str, Tensor]]:
    """Returns the name of the stage, its name and number in words, and the losses of the last step."""
    metrics = trainer.callback_metrics
    distiller = getattr(model, "distiller", None)
    if distiller is None or distiller.stage is None:
        return "", "", {"loss": metrics["train_loss"]} if "train_loss" in metrics else {}
    stages = distiller.schedule.stages
    stage = stages[distiller.stage]
    objective = distiller.objective
    known = [*objective.weights(stage), *objective.diagnostics(stage)]
    names = [name for name in known if f"train_{name}" in metrics]
    words = f"{stage.name} ({distiller.stage + 1} of {len(stages)}): "
    return stage.name, words, {name: metrics[f"train_{name}"] for name in names}
