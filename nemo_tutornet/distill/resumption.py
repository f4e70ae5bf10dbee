# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A resumed training that goes on as if it had not been interrupted: an epoch loop, and what it keeps in a
`.ckpt`.

Lightning and NeMo resume the weights, the optimizer and the number of steps. Three things are missing, and
each of them changes the student: the states of the random generators, the position in an epoch's batches, and
an epoch that ends where it ended before (NeMo's loop trains one batch more).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from nemo.utils import logging
from nemo.utils.exp_manager import SkipResumeTrainingValidationLoop
from torch import Tensor, distributed

from nemo_tutornet.distill.random_states import (
    own_generators,
    random_states,
    restore_random_states,
    seed_generators,
)

KEY = "resumption"


class ResumableEpochLoop(_TrainingEpochLoop):
    """An epoch loop that continues where a checkpoint was written, with the random numbers that follow there.

    On a CPU a resumed training equals an uninterrupted one to the bit, with the same number of processes, the
    same workers and a dataset that yields the same utterances again. The batches of an interrupted epoch that
    the run has trained on are read once more and not used. On a GPU the same numbers are drawn, and kernels
    that add in any order still differ.

    Args:
        trainer: Lightning's.
        min_steps: see Lightning.
        max_steps: see Lightning.
    """

    def __init__(self, trainer: Any, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._generators: list[Any] = []
        self._saved: dict[str, Any] | None = None  # of the checkpoint that is resumed from, until it is used
        self._before_iterator: dict[str, Any] | None = None  # random states when the data are set up
        self._epoch_start: dict[str, Any] | None = None  # before the iterator of this epoch was made
        self._ended_batches = 0  # batches of this epoch after which nothing is left to do
        self._ended_before = False  # the checkpoint holds a finished epoch, validated if that was due
        # With several ranks, all of them end after the same batch, or one would wait for another in vain.
        self.stop_asked = 0  # number of the signal that this process got
        self.stop_agreed = 0  # number of the signal that any process got

    # --- What a checkpoint holds

    def note_random_states(self) -> None:
        """Keeps the random states from which the first iterator over the training set is made."""
        self._before_iterator = random_states(self._generators)

    def state(self) -> dict[str, Any]:
        """Returns what resuming needs beyond Lightning's state.

        All processes of a distributed training call this method together.
        """
        epoch = self.trainer.fit_loop.epoch_progress.current
        mine: dict[str, Any] = {"now": random_states(self._generators), "epoch_start": self._epoch_start}
        if self._should_accumulate():
            mine["gradients"] = {
                name: parameter.grad.detach().cpu()
                for name, parameter in self.trainer.lightning_module.named_parameters()
                if parameter.grad is not None
            }
        ranks = [mine]
        if self.trainer.world_size > 1 and distributed.is_available() and distributed.is_initialized():
            ranks = [{}] * self.trainer.world_size
            distributed.all_gather_object(ranks, mine)
        ended = self._ended_batches == self.batch_progress.current.ready
        metrics = self.trainer.callback_metrics.items()
        return {
            "ranks": ranks,
            # Lightning counts an epoch as processed before the hooks that may save, and completes it after.
            "epoch_ended": epoch.processed == epoch.ready,
            "validated": ended or self.trainer.validating,
            "ended": ended,
            "metrics": {name: value.detach().cpu() for name, value in metrics},
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Reads what `state` returned, and corrects Lightning's progress in the checkpoint.

        In the middle of an epoch that another number of processes began, the epoch begins anew.

        Args:
            checkpoint: Lightning's; changed in place. One of an earlier version has no such state: it was
                written after a validation, as NeMo does.
        """
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if loops is None:
            return
        missing: dict[str, Any] = {
            "ranks": [],
            "epoch_ended": False,
            "validated": True,
            "ended": False,
            "metrics": {},
        }
        saved = checkpoint.get(KEY)
        if not isinstance(saved, dict) or missing.keys() - saved.keys():
            saved = missing
        self._saved = saved
        epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
        for counts in (batch["total"], batch["current"]):
            # A checkpoint that is written after a step, in a hook, comes before `completed` is counted.
            counts["completed"] = counts["processed"]
        validation = loops["epoch_loop.val_loop.batch_progress"]["current"]
        validation.update(dict.fromkeys(validation, 0))  # a validation that was stopped begins anew
        if saved["epoch_ended"]:
            for counts in (epoch["total"], epoch["current"]):
                counts["completed"] = counts["processed"]
            batch["current"].update(dict.fromkeys(batch["current"], 0))
            batch["is_last_batch"] = False
        elif saved["ranks"] and len(saved["ranks"]) != self.trainer.world_size:
            self._begin_anew(len(saved["ranks"]), epoch["current"]["processed"] + 1, batch)

    def _begin_anew(self, ranks: int, epoch: int, batch: dict[str, Any]) -> None:
        """Begins an interrupted epoch anew: its utterances are dealt to another number of processes.

        Which of them the run has trained on depends on how they were dealt, so to go on in the middle would
        leave some out.
        """
        done = batch["current"]["processed"]
        if not done or batch["is_last_batch"]:
            return
        now = self.trainer.world_size
        logging.warning(
            f"{ranks} process{'es' * (ranks > 1)} wrote this checkpoint in the middle of epoch {epoch}, and "
            f"{now} continue{'s' * (now == 1)}: the epoch begins anew, so no utterance is left out, and "
            f"{done * ranks} batches that the run has trained on are trained on once more."
        )
        batch["current"].update(dict.fromkeys(batch["current"], 0))

    # --- Lightning's loop

    def reset(self) -> None:
        """Begins an epoch, or an epoch's rest."""
        self._ended_before, self._ended_batches = False, 0
        with warnings.catch_warnings():
            # Lightning warns that the dataloader cannot be resumed; here its batches are read again.
            warnings.simplefilter("ignore", category=PossibleUserWarning)
            super().reset()

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Sets the random generators, and goes to the batch that follows."""
        saved, self._saved = self._saved, None
        states = None if saved is None else self._states(saved)
        if saved is None or not self.restarting:  # a new epoch, also after a checkpoint of a finished one
            if states is not None:
                restore_random_states(states["now"], self._generators)
            if self.trainer.current_epoch > 0 or self._before_iterator is None:
                self._before_iterator = random_states(self._generators)
            self._epoch_start, self._before_iterator = self._before_iterator, None
            super().on_run_start(data_fetcher)
            return
        super().on_run_start(data_fetcher)
        done = self.batch_progress.current.ready
        validates = bool(done) and not saved["validated"] and self._should_check_val_fx(data_fetcher)
        if done and self._is_training_done:
            if states is not None:
                restore_random_states(states["now"], self._generators)
            self._ended_before = not validates
        else:
            self._go_to(done, states, data_fetcher)
            self._restore_gradients((states or {}).get("gradients", {}))
            if not validates:
                self._restarting = False  # the next batch is trained on, and its validation is not left out
        if done and not validates and not saved["ended"] and not self._should_accumulate():
            self._batches_that_stepped += 1  # Lightning counts an optimizer step after its validation

    def _states(self, saved: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the random states of this process, and restores the logged values that callbacks read."""
        self.trainer._logger_connector._callback_metrics.update(saved["metrics"])
        if len(saved["ranks"]) == self.trainer.world_size:
            return dict(saved["ranks"][self.trainer.global_rank])
        logging.warning(
            "The checkpoint has no random states of this many processes, so the resumed training draws other "
            "random numbers than one that was not interrupted."
        )
        return None

    def _go_to(self, done: int, states: dict[str, Any] | None, data_fetcher: _DataFetcher) -> None:
        """Reads the batches of the epoch that the run has trained on once more."""
        loader = self.trainer.fit_loop._combined_loader
        stateful = loader is not None and all(isinstance(one, _Stateful) for one in loader.flattened)
        start = (states["epoch_start"] if done else states["now"]) if states is not None else None
        self._epoch_start = start
        if start is None or (done and stateful):  # such a loader continues by itself
            return
        restore_random_states(start, self._generators)
        iter(data_fetcher)
        if states is not None and done:
            for _ in range(done):
                next(data_fetcher)
            restore_random_states(states["now"], self._generators)

    def _restore_gradients(self, saved: dict[str, Tensor]) -> None:
        """Restores the gradients that were accumulated for the next optimizer step."""
        for name, parameter in self.trainer.lightning_module.named_parameters():
            if name in saved and saved[name].shape == parameter.shape:
                parameter.grad = saved[name].to(parameter)

    @property
    def _is_validation_done(self) -> bool:
        return self._ended_before or super()._is_validation_done

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validates where it is time for it; ends a training that was asked to stop, with a checkpoint."""
        connector, trainer = self.trainer._signal_connector, self.trainer
        connector.received_sigterm |= bool(self.stop_agreed)
        if self._should_accumulate():
            # A stop waits for the optimizer's step, or its checkpoint would hold the gradients, too.
            asked, connector.received_sigterm = connector.received_sigterm, False
            super().on_advance_end(data_fetcher)
            connector.received_sigterm |= asked
            return
        if not connector.received_sigterm:
            validates = self._should_check_val_fx(data_fetcher)
            before = random_states(self._generators) if validates else {}
            try:
                super().on_advance_end(data_fetcher)
            except SIGTERMException:
                if trainer.validating:  # stopped in the middle; the resumed run validates anew
                    restore_random_states(before, self._generators)  # its dataloader has drawn a seed
                    trainer.training = True
                    self._stop()
            self._ended_batches = self.batch_progress.current.ready
        if connector.received_sigterm:
            self._stop()

    def _stop(self) -> None:
        self._save_last()
        raise SIGTERMException

    def _save_last(self) -> None:
        """Writes the last checkpoint, from which the same command continues."""
        if self.trainer.world_size > 1 and not self.stop_agreed:
            return  # the others do not take part
        for callback in self.trainer.checkpoint_callbacks:
            if getattr(callback, "save_last", None):
                callback._save_last_checkpoint(self.trainer, callback._monitor_candidates(self.trainer))

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """Steps the learning-rate schedulers.

        At the end of an epoch that a checkpoint holds, Lightning would step most schedulers a second time,
        and those that read a metric not at all.
        """
        if self._ended_before and interval == "epoch":
            update_plateau_schedulers = True
        super().update_lr_schedulers(interval, update_plateau_schedulers)


def resumable(trainer: Any, model: torch.nn.Module) -> ResumableEpochLoop | None:
    """Gives a trainer the epoch loop, and seeds the generators that modules own.

    Args:
        trainer: Lightning's, before it trains.
        model: the student.

    Returns:
        The loop; None where the trainer has an epoch loop of somebody else.
    """
    loop = trainer.fit_loop.epoch_loop
    if type(loop) in (_TrainingEpochLoop, SkipResumeTrainingValidationLoop):
        new = ResumableEpochLoop(trainer, trainer.min_steps, trainer.max_steps)
        new.__dict__.update(vars(loop))  # the progress of an earlier training
        trainer.fit_loop.epoch_loop = loop = new
    if not isinstance(loop, ResumableEpochLoop):
        return None
    loop._generators = own_generators(model.modules())
    if not (trainer.current_epoch or trainer.global_step):
        # `initial_seed` is the run's seed where there is one, and else another number in each process.
        seed_generators(loop._generators, torch.initial_seed(), trainer.global_rank)
    return loop
