# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Training depthwise convolutions on a CPU: PyTorch's against the Fourier transform, side by side.

    python benchmarks/depthwise.py [--student conf/quartznet_5x5.yaml]... [--batch 4] [--seconds 10] [--json
    depthwise.json]

First whole training steps of students (forward, backward, optimizer), in float32 and in mixed precision, then
the forward of the same models as teachers, then single convolutions (forward, backward) with kernels of
several lengths. Every round times each once. Medians are printed, and of the ratios the median over the
rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
import typer
from nemo.utils import logging
from rich.table import Table
from timing import ROOT, Setting

from nemo_tutornet.functional.fft_depthwise import FourierConv1d, fourier_depthwise

PLAIN, FOURIER, MIXED = "PyTorch's", "Fourier", "Fourier, bf16-mixed"
FRAMES_PER_SECOND = 50  # of a QuartzNet
KERNELS = (3, 5, 7, 9, 11, 15, 21, 33, 51, 87)


def figures(work: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, Any]:
    """Times, and their ratios to PyTorch's."""
    times = timing.interleaved(work, rounds, device)
    ratios = {name: timing.ratio(times, name, [PLAIN]) for name in work if name != PLAIN}
    return {"median_s": timing.medians(times), "ratio": ratios}


def steps(path: Path, where: Setting, rounds: int) -> dict[str, Any]:
    """Training steps of a student."""
    config, batch = timing.load_config(path), where.batch()
    models = {name: timing.student(config, where.device) for name in (PLAIN, FOURIER, MIXED)}
    for name in (FOURIER, MIXED):
        fourier_depthwise(models[name])
    settings = {MIXED: replace(where, precision="bf16")}
    work = {name: timing.one_step(model, batch, settings.get(name, where)) for name, model in models.items()}
    found = figures(work, rounds, where.device)
    return {"parameters": {"student": timing.parameters(models[PLAIN])}, **found}


def forwards(path: Path, where: Setting, rounds: int) -> dict[str, Any]:
    """Forwards of a model as a live teacher runs it, in float32."""
    config, batch = timing.load_config(path), where.batch()
    models = {name: timing.student(config, where.device).eval() for name in (PLAIN, FOURIER)}
    fourier_depthwise(models[FOURIER])

    def forward(model: Any) -> None:
        with torch.no_grad():
            model(input_signal=batch[0].clone(), input_signal_length=batch[1])

    work = {name: partial(forward, model) for name, model in models.items()}
    return figures(work, rounds, where.device)


def one_convolution(kernel: int, width: int, frames: int, where: Setting, rounds: int) -> dict[str, Any]:
    """One convolution, forward and backward."""
    signal = torch.randn(where.batch_size, width, frames, requires_grad=True)
    work = {}
    for name, kind in ((PLAIN, torch.nn.Conv1d), (FOURIER, FourierConv1d)):
        layer = kind(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        work[name] = lambda layer=layer: layer(signal).sum().backward()
    return figures(work, rounds, where.device)


def kernels_table(title: str, kernels: dict[int, dict[str, Any]]) -> Table:
    """A row for each length of the kernel."""
    table = Table(
        "frames of the kernel",
        *(f"{name}, ms (median)" for name in (PLAIN, FOURIER)),
        f"x {PLAIN}",
        title=title,
    )
    for kernel, one in kernels.items():
        milliseconds = (f"{1000 * one['median_s'][name]:.1f}" for name in (PLAIN, FOURIER))
        table.add_row(str(kernel), *milliseconds, f"{one['ratio'][FOURIER]:.2f}")
    return table


def main(
    student: list[Path] = typer.Option(
        [
            ROOT / "conf" / name
            for name in ("small/quartznet_small.yaml", "quartznet_5x5.yaml", "quartznet_15x5.yaml")
        ],
        help="Config of a student; repeatable.",
    ),
    batch: timing.BatchOption = 4,
    seconds: timing.SecondsOption = 10.0,
    rounds: timing.RoundsOption = 7,
    width: int = typer.Option(256, help="Of the single convolutions."),
    json: timing.JsonOption = None,
) -> None:
    """Prints a table for each student, and one of the kernels."""
    logging.setLevel(logging.ERROR)
    where = timing.setting("cpu", "32", batch, seconds)
    found: dict[str, Any] = {"machine": where.describe(), "rounds": rounds, "students": {}, "teachers": {}}
    for path in student:
        found["students"][path.stem] = one = steps(path, where, rounds)
        title = f"{path.stem} ({timing.sizes(one)['student']}): {where.title()}"
        timing.show(timing.times_table(title, one, {f"x {PLAIN}": "ratio"}))
        found["teachers"][path.stem] = one = forwards(path, where, rounds)
        title = f"{path.stem} as a teacher, forward: {where.title()}"
        timing.show(timing.times_table(title, one, {f"x {PLAIN}": "ratio"}))
    frames = int(seconds * FRAMES_PER_SECOND)
    found["kernels"] = {kernel: one_convolution(kernel, width, frames, where, rounds) for kernel in KERNELS}
    timing.show(
        kernels_table(f"One convolution, {batch} x {frames} frames, {width} channels", found["kernels"])
    )
    if json is not None:
        timing.write_json(json, found)


if __name__ == "__main__":
    typer.run(main)
