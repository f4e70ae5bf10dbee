# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory that averaging checkpoints takes beyond one of them in memory.

    python benchmarks/average_memory.py --parameters 333 --checkpoints 10 --folder /tmp --json memory.json

Two files of random weights are written, and the checkpoints are links to them in turn. Writing, loading one
and averaging all run in a process of their own each, whose largest resident memory is read, pages of mapped
files included.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import typer

from nemo_tutornet.export.averaging import average_checkpoints
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint

_SIDE = 2048  # of the square matrices that the weights are


def write(files: list[Path], millions: float) -> None:
    """Writes checkpoints of random weights."""
    count = max(1, round(millions * 1e6 / _SIDE**2))
    for seed, file in enumerate(files):
        random = torch.Generator().manual_seed(seed)
        state = {f"layers.{i}.weight": torch.randn(_SIDE, _SIDE, generator=random) for i in range(count)}
        torch.save({"state_dict": state, "hyper_parameters": {}, "global_step": seed}, file)


def largest() -> float:
    """The largest resident memory of this program until now, in MB (Linux).

    `getrusage` would not do: its maximum begins with that of the process which started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def one(paths: list[Path]) -> tuple[float, float]:
    """MB and seconds of loading the first checkpoint into memory."""
    before, start = largest(), time.perf_counter()
    checkpoint = load_lightning_checkpoint(paths[0])
    assert checkpoint["state_dict"]
    return largest() - before, time.perf_counter() - start


def mean(paths: list[Path]) -> tuple[float, float]:
    """MB and seconds of averaging all, the mean included."""
    before, start = largest(), time.perf_counter()
    average = average_checkpoints(paths)
    assert average["state_dict"]
    return largest() - before, time.perf_counter() - start


def in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def main(
    parameters: float = typer.Option(333.0, help="Millions of parameters."),
    checkpoints: int = typer.Option(10, min=1, help="How many are averaged."),
    folder: Path | None = typer.Option(None, help="Where two checkpoints have room; a temporary folder."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the figures, too."),
) -> None:
    """Prints the memory of one checkpoint, and of the mean."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = [Path(scratch) / f"file-{i}.ckpt" for i in (0, 1)]
        in_a_process(write, files, parameters)
        paths = [Path(scratch) / f"run--{i}.ckpt" for i in range(checkpoints)]
        for i, path in enumerate(paths):
            os.link(files[i % 2], path)
        found = {}
        for work in (one, mean):
            megabytes, seconds = in_a_process(work, paths)
            found[work.__name__] = {"mb": round(megabytes, 1), "seconds": round(seconds, 2)}
    beyond = round(found["mean"]["mb"] - found["one"]["mb"], 1)
    print(
        f"{parameters:g} M parameters: one checkpoint {found['one']['mb']:.0f} MB, the mean of {checkpoints} "
        f"{found['mean']['mb']:.0f} MB in {found['mean']['seconds']:.0f} s: {beyond:.0f} MB beyond one"
    )
    if json_file is not None:
        figures = {"parameters_m": parameters, "checkpoints": checkpoints, **found, "beyond_one_mb": beyond}
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
