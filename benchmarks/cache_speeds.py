# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Precompute the targets at several speeds, or run the teacher live: megabytes, and seconds of building and
of an epoch.

    python benchmarks/cache_speeds.py TRAIN.jsonl TEACHER.nemo [--speeds 7] [--json speeds.json]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import timing
import torch
import typer
from cache import STUDENT, counted, training
from nemo.utils import logging
from omegaconf import open_dict
from rich.console import Console
from rich.table import Table

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.functional.fft_depthwise import fourier_depthwise


def main(
    manifest: Path,
    teacher: Path,
    speeds: list[int] = typer.Option([1, 3, 7], help="Numbers of speeds, from the smallest to the largest."),
    batch: int = 8,
    rounds: int = typer.Option(20, help="Timed training steps, from which the time of an epoch is computed."),
    student: Path = typer.Option(STUDENT, help="Config of the student."),
    adapter: Path | None = typer.Option(None, help="The teacher's adapter for the student."),
    cache: Path | None = typer.Option(
        None, help="Folder of the cache; kept, and taken up where it is there."
    ),
    json: Path | None = typer.Option(None, help="Write the figures, too."),
) -> None:
    """Precompute or live: builds a cache of more and more speeds, then times steps side by side.

    In each round every kind of training makes one step on the same utterances, and those with the same number
    of speeds on the same audio. An epoch is as many steps as it has, at the mean over the rounds.
    """
    logging.setLevel(logging.ERROR)
    source = {"model_path": str(teacher), **({} if adapter is None else {"adapter": str(adapter)})}
    stages = [{"name": "all", "weights": {"ctc": 1.0, "rkd": 5.0, "skd": 0.25}}]

    def section(number: int, teacher: dict[str, str] | None) -> Any:
        tutor = None if teacher is None else {"teacher": teacher, "stages": stages}
        config = training(manifest, tutor, batch, student)
        if number > 1:
            with open_dict(config):
                config.model.train_ds.augmentor = {"speed": {**timing.SPEED, "num_rates": number}}
        return config

    built: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = cache or Path(scratch) / "cache"
        spent, forwards = 0.0, 0.0
        for number in sorted(speeds):
            forward = {"seconds": 0.0}
            with counted(forward):
                found = build_cache(section(number, source), folder, progress=False)
            spent, forwards = spent + forward.get("predict", 0.0), forwards + forward["seconds"]
            built[str(number)] = {
                "megabytes": round(found.megabytes, 1),
                "hours": round(found.hours, 2),
                "build_s": round(spent, 1),
                "build_to_forward": round(spent / forwards, 4) if forwards else 0.0,
            }
        most = max(speeds)
        kinds: dict[str, Any] = {f"plain, {most} speeds": section(most, None)}
        for number in sorted(speeds):
            kinds[f"cached, {number} speeds"] = section(number, {"cache": str(folder)})
        kinds[f"live, {most} speeds"] = section(most, source)
        times, steps = step_times(kinds, rounds)
    epoch = {name: round(statistics.mean(values) * steps, 1) for name, values in times.items()}
    plain = f"plain, {most} speeds"
    figures = {
        "build": built,
        "epoch_s": epoch,
        "ratio_to_plain": {name: timing.ratio(times, name, [plain]) for name in kinds if name != plain},
        "steps": steps,
        "rounds": rounds,
    }
    table = Table(title=f"{manifest.name}, {steps} steps of {batch}, {torch.get_num_threads()} threads")
    for column in ("", "MB", "hours of audio", "s to build", "x teacher's forward", "s an epoch"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in epoch.items():
        found = built.get(name.split()[1], {}) if name.startswith("cached") else {}
        table.add_row(name, *(str(cell) for cell in found.values() or [""] * 4), str(value))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if json is not None:
        timing.write_json(json, figures)


def step_times(configs: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of a training step, loading of the batch included, of each kind in each round.

    Returns:
        The seconds by kind, without those of the first round; and the steps of an epoch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models: dict[str, tuple[Any, Any]] = {}
    steps = 0
    for name, config in configs.items():
        config.model.train_ds.shuffle = False
        torch.manual_seed(0)
        model = TutorCTCModel(config.model, trainer=timing.trainer(device))
        if config.get("fourier_depthwise") and device.type == "cpu":  # as the training script does
            fourier_depthwise(model)
        timing.ready(model, device)
        steps = len(model._train_dl)
        models[name] = (model, cycle(model._train_dl))
    times: dict[str, list[float]] = {name: [] for name in configs}
    for number in range(rounds + 1):
        for name, (model, batches) in models.items():
            random.seed(number)
            start = time.perf_counter()
            batch = [part.to(device) for part in next(batches)]
            model.training_step(tuple(batch), 0)["loss"].backward()
            model._optimizer.step()
            model._optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return times, steps


if __name__ == "__main__":
    typer.run(main)
