# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Who acts on Ctrl-C in a training."""

from __future__ import annotations

import multiprocessing
import signal
from types import SimpleNamespace

import pytest

from nemo_tutornet.distill.stopping import TrainingStop


def test_a_worker_of_a_data_loader_leaves_ctrl_c_to_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal sends it to the workers, too, which inherit the training's handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    connector = SimpleNamespace(received_sigterm=False)
    trainer = SimpleNamespace(world_size=1, _signal_connector=connector)
    stop = TrainingStop()
    try:
        stop.on_train_start(trainer, SimpleNamespace(_epoch_loop=None))
        worker = multiprocessing.get_context("fork").Process(
            target=lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)]
        )
        worker.start()
        worker.join()
        assert worker.exitcode == 0 and capfd.readouterr().err == ""
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert connector.received_sigterm
    assert capfd.readouterr().err == "stopping after this batch; Ctrl-C again stops at once.\n"
