# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Ends a training on Ctrl-C and SIGTERM after the batch it is in, and says how it continues."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nemo_tutornet.distill.training_table import TrainingFiles


class TrainingStop(Callback):
    """Ends a training on a signal, with a checkpoint, a line, and the exit code of a stopped program.

    SIGTERM is Lightning's own, which would end with code 0 and lose the epoch. Ctrl-C is treated like it. A
    second Ctrl-C interrupts at once, as Lightning does, and loses what is in no checkpoint.

    A training of several ranks ends on all of them after the same batch, whichever ranks the signal reached.
    A validation is finished first.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._stopped_by = signal.SIGTERM

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Replaces Python's own handler of Ctrl-C; another one stays.

        Lightning restores the handlers that it finds before this hook.
        """
        self._handle_signals(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Does the same, because a training may have no sanity check."""
        self._handle_signals(trainer, pl_module)

    def _handle_signals(self, trainer: Any, pl_module: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # no other thread may set a handler
        loop = pl_module._epoch_loop
        alone = trainer.world_size == 1 or loop is None
        process = os.getpid()

        def interrupted(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:
                return  # a worker of a data loader, which inherits the handler, finishes its batches
            self._restore(signal.SIGINT)
            self._stopped_by = signal.SIGINT
            if alone:
                trainer._signal_connector.received_sigterm = True
            else:
                loop.stop_asked = number
            print("stopping after this batch; Ctrl-C again stops at once.", file=sys.stderr)

        def terminated(number: int, frame: FrameType | None) -> None:
            # Lightning's handler would end this rank alone. Like it, this one tells the ranks that this
            # process started; other launchers tell all ranks.
            if not loop.stop_asked and trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(number)
            loop.stop_asked = number

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
        if not alone and signal.SIGTERM not in self._handlers:
            self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, terminated)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        """Ends a validation of a training that was asked to stop."""
        if trainer.received_sigterm and trainer.state.fn == TrainerFn.FITTING:
            raise SIGTERMException

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Sets the exit code of a stopped training, and says how it continues."""
        self._restore_handlers()
        if isinstance(exception, KeyboardInterrupt):
            name = "Ctrl-C"
        elif isinstance(exception, SIGTERMException):
            agreed = 0 if pl_module._epoch_loop is None else pl_module._epoch_loop.stop_agreed
            self._stopped_by = signal.Signals(agreed or self._stopped_by)
            name = "Ctrl-C" if self._stopped_by == signal.SIGINT else "SIGTERM"
            exception.code = 128 + self._stopped_by
        else:
            return
        if not trainer.is_global_zero:
            return
        last = TrainingFiles.of(trainer.checkpoint_callback).last
        words = "no checkpoint was written yet, so the same command begins anew"
        if last is not None:
            words = f"the same command continues from {last}"
        print(
            f"stopped by {name} in epoch {trainer.current_epoch + 1}, step {trainer.global_step}: {words}.",
            file=sys.stderr,
        )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Restores the handlers."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number in list(self._handlers):
            self._restore(number)

    def _restore(self, number: signal.Signals) -> None:
        if number in self._handlers:
            signal.signal(number, self._handlers.pop(number))
