# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A training that is killed at any moment and resumed equals one that was not, bit for bit.

A training that is killed continues from the last checkpoint that was written. So a run keeps a copy of every
checkpoint that it writes, and another run is resumed from each copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import lightning.pytorch as pl
import pytest
import torch
from hypothesis import example, given, settings
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from nemo.utils import logging
from nemo.utils.exp_manager import configure_no_restart_validation_training_loop
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.distill.resumption import ResumableEpochLoop
from nemo_tutornet.nemo_io.lightning_ckpt import check_lightning_checkpoint
from tests.conftest import student_config
from tests.integration.recorder import RKD, SKD, same
from tests.integration.target_cache.caching import tar
from tests.properties import LONG, LONG_EXAMPLES, examples

# What writes checkpoints: NeMo's default, after every step, and at the end of an epoch.
AFTER_VALIDATION = {"monitor": "val_wer", "save_on_train_epoch_end": False}
AFTER_STEPS = {"every_n_train_steps": 1}
AFTER_EPOCHS = {"save_on_train_epoch_end": True}
# An epoch has four steps.
STAGES = [RKD | {"steps": 5}, SKD]


class Losses(Callback):
    def __init__(self) -> None:
        self.of_steps: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.of_steps.append((trainer.global_step, float(outputs["loss"])))


class EveryCheckpoint(ModelCheckpoint):
    """Keeps a copy of every last checkpoint that is written."""

    def __init__(self, folder: Path, **when: Any) -> None:
        super().__init__(folder, save_last=True, **when)
        self.copies: list[Path] = []

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if filepath.endswith("last.ckpt"):
            self.copies.append(Path(shutil.copy(filepath, f"{self.dirpath}/copy{len(self.copies):03d}")))


def train(
    config: dict[str, Any],
    resumed_from: Path | None = None,
    *callbacks: Callback,
    seed: int = 1,
    **trainer: Any,
) -> tuple[Any, list[tuple[int, float]]]:
    """Trains a student with NeMo's epoch loop, as exp_manager sets it up; returns the losses of its steps."""
    pl.seed_everything(seed, verbose=False)
    losses = Losses()
    settings = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    settings |= {"enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks)}
    built = pl.Trainer(**settings | trainer, callbacks=[losses, *callbacks])
    configure_no_restart_validation_training_loop(built)
    model = TutorCTCModel(OmegaConf.create({"model": config}).model, trainer=built)
    built.fit(model, ckpt_path=resumed_from)
    return model, losses.of_steps


def optimizer_of(model: Any) -> dict[str, torch.Tensor]:
    state = model.trainer.optimizers[0].state_dict()["state"]
    return {
        f"{i} {name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()
    }


def check_kill_points(
    config: dict[str, Any],
    folder: Path,
    when: dict[str, Any],
    only: Callable[[list[Path]], list[Path]] = list,
    further: Callable[[], list[Callback]] = list,
    **trainer: Any,
) -> int:
    """Compares runs that are resumed from every checkpoint of a run with it; returns their number."""
    checkpoints = EveryCheckpoint(folder, **when)
    model, losses = train(config, None, *further(), checkpoints, **trainer)
    for path in only(checkpoints.copies):
        check_lightning_checkpoint(path)  # as the example script does
        # Another seed: a new process has other random numbers.
        resumed, rest = train(config, path, *further(), seed=99, **trainer)
        assert isinstance(resumed.trainer.fit_loop.epoch_loop, ResumableEpochLoop)
        assert rest == losses[len(losses) - len(rest) :], f"{path}: other losses"
        assert resumed.trainer.global_step == model.trainer.global_step
        assert same(resumed.state_dict(), model.state_dict()), f"{path}: other weights"
        assert same(optimizer_of(resumed), optimizer_of(model)), f"{path}: another optimizer state"
        epochs = model.trainer.fit_loop.epoch_loop._batches_that_stepped, model.trainer.current_epoch
        assert (
            resumed.trainer.fit_loop.epoch_loop._batches_that_stepped,
            resumed.trainer.current_epoch,
        ) == epochs
    return len(only(checkpoints.copies))


def drawing(corpus: Path, teacher: Path | None) -> dict[str, Any]:
    """A student whose training draws from every kind of generator."""
    config = student_config(corpus, teacher, STAGES)
    config["optim"]["sched"] = {"name": "CosineAnnealing", "warmup_steps": 2, "min_lr": 1e-5}
    config["encoder"]["jasper"][0]["dropout"] = 0.1  # torch
    # SpecCutout and the masks of SpecAugment own a generator of Python each.
    config["spec_augment"] |= {"freq_masks": 1, "freq_width": 5, "use_vectorized_spec_augment": False}
    config["train_ds"]["augmentor"] = {"white_noise": {"prob": 0.5, "min_level": -60, "max_level": -40}}
    return config


@pytest.fixture(scope="module")
def cache(corpus, teacher_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets") / "cache"
    trainer = {"max_epochs": 1, "accelerator": "cpu", "devices": 1}
    config = {"model": student_config(corpus, teacher_file, STAGES), "trainer": trainer}
    build_cache(OmegaConf.create(config), folder, progress=False)
    return folder


def test_every_step_with_cached_targets_and_semi_sorted_batches(corpus, cache, tmp_path):
    config = drawing(corpus, None) | {"tutor": {"teacher": {"cache": str(cache)}, "stages": STAGES}}
    config["train_ds"] |= {"use_semi_sorted_batching": True, "randomization_factor": 2.0, "drop_last": False}
    assert check_kill_points(config, tmp_path, AFTER_STEPS) == 12


def mixing(corpus: Path, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Gives half of each epoch to a second manifest with two of the eight utterances."""
    rows = (corpus / "train.jsonl").read_text().splitlines()[:2]
    (folder / "few.jsonl").write_text("".join(row.replace("train", f"{corpus}/train") + "\n" for row in rows))
    config["train_ds"]["manifest_filepath"] = [str(corpus / "train.jsonl"), str(folder / "few.jsonl")]
    config["tutor"]["manifest_weights"] = [1.0, 1.0]
    return config


@pytest.mark.parametrize("semi_sorted", [True, False])
def test_every_step_of_a_mix_of_manifests(corpus, cache, tmp_path, semi_sorted):
    config = drawing(corpus, None) | {"tutor": {"teacher": {"cache": str(cache)}, "stages": STAGES}}
    config["train_ds"] |= {
        "use_semi_sorted_batching": semi_sorted,
        "randomization_factor": 2.0,
        "drop_last": False,
    }
    mixed = mixing(corpus, tmp_path, config)
    assert check_kill_points(mixed, tmp_path / "run", AFTER_STEPS, first_and_middle, max_epochs=2) == 2


@pytest.mark.parametrize(
    ("when", "trainer", "count"),
    [(AFTER_VALIDATION, {"val_check_interval": 2}, 6), (AFTER_EPOCHS, {"accumulate_grad_batches": 2}, 3)],
)
def test_every_validation_and_epoch(corpus, teacher_file, tmp_path, when, trainer, count):
    assert check_kill_points(drawing(corpus, teacher_file), tmp_path, when, **trainer) == count


def first_and_middle(paths: list[Path]) -> list[Path]:
    return [paths[0], paths[len(paths) // 2]]


def test_without_a_teacher_with_workers_and_a_number_of_steps(corpus, tmp_path):
    config = drawing(corpus, None)
    config["train_ds"]["num_workers"] = 2
    steps = {"max_epochs": -1, "max_steps": 10}
    assert check_kill_points(config, tmp_path, AFTER_STEPS, first_and_middle, **steps) == 2


LHOTSE = {"use_lhotse": True, "batch_size": 3, "seed": 0, "shard_seed": 0, "shuffle": True}


@pytest.mark.parametrize(
    ("settings", "trainer"),
    [
        ({**LHOTSE, "force_finite": True}, {"max_epochs": -1, "max_steps": 8}),
        ({**LHOTSE, "num_workers": 1}, {"max_epochs": -1, "max_steps": 7, "limit_train_batches": 3}),
        ({"is_tarred": True, "shuffle_n": 8}, {}),
    ],
)
def test_streams(corpus, tmp_path, settings, trainer):
    config = drawing(corpus, None)
    config["train_ds"] |= settings
    if "is_tarred" in settings:
        config["train_ds"] |= tar(corpus, tmp_path, [f"train{i}.wav" for i in range(8)], 0)
    folder = tmp_path / "checkpoints"
    assert check_kill_points(config, folder, AFTER_STEPS, first_and_middle, **trainer) == 2


def test_early_stopping_and_a_plateau_count_each_epoch_once(corpus, tmp_path):
    """Both read `val_loss`, which a resumed run has not computed."""
    config = student_config(corpus, None)
    config["optim"]["sched"] = {
        "name": "ReduceLROnPlateau",
        "patience": 0,
        "monitor": "val_loss",
        "mode": "max",
    }

    def stopping() -> list[Callback]:
        return [EarlyStopping("val_loss", patience=2, mode="max", min_delta=1000.0)]

    further = {"further": stopping, "max_epochs": 5}
    assert check_kill_points(config, tmp_path, {**AFTER_VALIDATION, "monitor": "val_loss"}, **further) > 2


@pytest.fixture(scope="module")
def whole(corpus, teacher_file):
    """A run that is not stopped, and the losses of its steps."""
    return train(drawing(corpus, teacher_file), val_check_interval=3)


@pytest.mark.parametrize(
    ("number", "hook"),
    [
        (signal.SIGTERM, "on_train_batch_end"),
        (signal.SIGINT, "on_validation_batch_end"),
        (signal.SIGTERM, "on_validation_end"),
    ],
)
def test_a_stopped_training_keeps_its_last_batch(corpus, teacher_file, whole, tmp_path, capsys, number, hook):
    """A signal in the first epoch, before any other checkpoint, or in a validation."""
    config = drawing(corpus, teacher_file)
    sent: list[int] = []

    class Stops(Callback):
        pass

    def stop(self: Callback, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    setattr(Stops, hook, stop)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, **AFTER_EPOCHS)
    with pytest.raises(SystemExit) as stopped:
        train(config, None, checkpoint, Stops(), val_check_interval=3)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert f"step 3: the same command continues from {tmp_path / 'last.ckpt'}." in capsys.readouterr().err
    resumed, rest = train(config, tmp_path / "last.ckpt", seed=99, val_check_interval=3)
    model, losses = whole
    assert rest == losses[3:] and same(resumed.state_dict(), model.state_dict())


def test_accumulated_gradients_are_not_lost(corpus, tmp_path):
    class Stops(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    config = drawing(corpus, None)
    whole, losses = train(config, accumulate_grad_batches=2)
    with pytest.raises(SystemExit):
        train(config, None, ModelCheckpoint(tmp_path, save_last=True), Stops(), accumulate_grad_batches=2)
    resumed, rest = train(config, tmp_path / "last.ckpt", seed=99, accumulate_grad_batches=2)
    assert rest == losses[2:] and same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("stopped_after", [3, 4])
def test_another_number_of_processes_begins_an_epoch_anew(corpus, tmp_path, monkeypatch, stopped_after):
    """Two processes wrote the checkpoint, after that many of the epoch's four batches."""
    printed: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *_, **__: printed.append(str(message)))
    config = student_config(corpus, None)
    checkpoints = EveryCheckpoint(tmp_path, **AFTER_STEPS)
    train(config, None, checkpoints, max_epochs=1)
    saved = torch.load(checkpoints.copies[stopped_after - 1], weights_only=False)
    saved["resumption"]["ranks"] *= 2
    torch.save(saved, tmp_path / "two.ckpt")
    _, rest = train(config, tmp_path / "two.ckpt", max_epochs=2)
    first = 4 if stopped_after == 3 else 0  # a finished epoch stays so
    assert [step for step, _ in rest] == [stopped_after + i for i in range(1, 1 + first + 4)]
    said = [text for text in printed if "begins anew" in text]
    assert len(said) == (stopped_after == 3)
    if said:
        assert "2 processes wrote this checkpoint in the middle of epoch 1, and 1 continues: " in said[0]
        assert "and 6 batches that the run has trained on are trained on once more." in said[0]


def test_a_second_ctrl_c_stops_at_once(corpus, tmp_path):
    class Stops(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:
        train(student_config(corpus, None), None, ModelCheckpoint(tmp_path, save_last=True), Stops())
    assert stopped.value.code == 1 and not list(tmp_path.iterdir())


def test_a_run_with_another_seed_differs(corpus, tmp_path):
    """Or the comparisons above would compare nothing."""
    config = drawing(corpus, None)
    models = [train(config, seed=seed, max_epochs=1)[0].state_dict() for seed in (1, 1, 2)]
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_more_epochs_have_a_learning_rate(corpus, tmp_path, monkeypatch):
    printed: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *_, **__: printed.append(str(message)))
    config = drawing(corpus, None)
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    whole = Rates()
    train(config, None, whole, max_epochs=3)
    expected, rates = rates[:], []
    checkpoints = EveryCheckpoint(tmp_path, **AFTER_VALIDATION)
    train(config, None, checkpoints, max_epochs=2)
    assert rates == []
    train(config, checkpoints.copies[-1], Rates(), max_epochs=3)
    assert rates == pytest.approx(expected[8:]) and min(rates[:3]) > 1e-4
    (message,) = [message for message in printed if "learning-rate schedule" in message]
    assert "8 steps" in message and "12 now" in message


@settings(examples(2), max_examples=min(200, LONG_EXAMPLES) if LONG else 2)
@example(AFTER_VALIDATION, 3, 2, False, False, 0.0)  # between the batches of one optimizer step
@given(
    when=st.sampled_from([AFTER_STEPS, AFTER_VALIDATION, AFTER_EPOCHS]),
    interval=st.sampled_from([1, 2, 3, 1.0]),
    accumulate=st.sampled_from([1, 2, 3]),
    cutout=st.booleans(),
    distilled=st.booleans(),
    point=st.floats(0, 1),
)
def test_any_kill_point(corpus, teacher_file, when, interval, accumulate, cutout, distilled, point):
    config = drawing(corpus, teacher_file if distilled else None)
    if not cutout:
        config["spec_augment"] |= {"rect_masks": 0}

    def one(copies: list[Path]) -> list[Path]:
        return [copies[int(point * (len(copies) - 1))]]

    trainer = {"val_check_interval": interval, "accumulate_grad_batches": accumulate}
    with tempfile.TemporaryDirectory() as folder:
        assert check_kill_points(config, Path(folder), when, one, **trainer) == 1
