# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory of a training over time: runs the training script for some minutes, and asks for no more.

    python benchmarks/memory.py --minutes 60 --json memory.jsonl -- --config-path=../conf/small \
        --config-name=quartznet_small model.train_ds.manifest_filepath=train.jsonl ...
        trainer.max_epochs=100000

The script's processes are asked for their memory every ten seconds (proportional set size: shared pages count
once). The first tenth of the time is the warm-up. The rest is fitted by a line, whose slope is what an hour
adds. At the end the training is stopped by SIGTERM.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import typer

ROOT = Path(__file__).parents[1]
SECONDS = 10.0


def megabytes(process: psutil.Process) -> float:
    """Memory of a process and of those that it started, in MB."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a worker that ended meanwhile
            continue
    return total / 1e6


def growth(samples: list[tuple[float, float]]) -> dict[str, float | list[float]]:
    """Memory after the warm-up, at its most, its growth, and its median in each tenth of the time.

    Args:
        samples: seconds and megabytes.
    """
    times, memory = np.array(samples).T
    kept = times >= times[-1] / 10
    slope = np.polyfit(times[kept] / 3600, memory[kept], 1)[0] if kept.sum() > 1 else float("nan")
    tenths = np.minimum((10 * times / times[-1]).astype(int), 9)
    return {
        "mb_in_tenths": [round(float(np.median(memory[tenths == i])), 1) for i in np.unique(tenths)],
        "minutes": round(float(times[-1]) / 60, 1),
        "mb_after_warm_up": round(float(memory[kept][0]), 1),
        "mb_at_end": round(float(memory[-1]), 1),
        "mb_at_most": round(float(memory.max()), 1),
        "mb_per_hour": round(float(slope), 1),
    }


def main(
    overrides: list[str] = typer.Argument(..., help="Arguments of the training script."),
    minutes: float = typer.Option(60.0, min=0.1, help="How long the training runs."),
    name: str = typer.Option("training", help="Of this line in the file."),
    json_file: Path | None = typer.Option(None, "--json", help="Append the figures to this file."),
) -> None:
    script = ROOT / "examples" / "speech_to_text_ctc_tutornet.py"
    training = subprocess.Popen([sys.executable, str(script), *overrides])
    process, began, samples = psutil.Process(training.pid), time.monotonic(), []
    while training.poll() is None and time.monotonic() - began < 60 * minutes:
        time.sleep(min(SECONDS, 6 * minutes))
        if training.poll() is None:
            samples.append((time.monotonic() - began, megabytes(process)))
    if training.poll() is None:
        training.send_signal(signal.SIGTERM)
        training.wait()
    elif training.returncode:
        sys.exit(f"the training ended by itself with {training.returncode}; see its message above.")
    line = json.dumps({"name": name, **growth(samples)})
    print(line)
    if json_file is not None:
        with json_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    typer.run(main)
