# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a live teacher costs: a distillation step against a plain step and the teacher's forward, side by side in one run.

    python benchmarks/step.py [--student conf/quartznet_5x5.yaml] [--teacher conf/conformer_ctc_small.yaml] [--seconds 10]

Every round times each of the four once, so that whatever else the machine does falls on all of them; medians are printed.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import lightning.pytorch as pl
import torch
import typer
from nemo.collections.asr.models import EncDecCTCModel
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from nemo_tutornet import TutorCTCModel

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"rkd": {"rkd": 1.0}, "ctc + skd": {"ctc": 1.0, "skd": 0.25}}


def build(config_file: Path, teacher: Optional[Path], weights: Optional[Dict[str, float]], device: torch.device) -> Any:
    """A student (or, without a teacher, any plain model) ready for `training_step`."""
    config = OmegaConf.load(config_file).model
    with open_dict(config):
        for name in ("train_ds", "validation_ds", "test_ds"):
            config.pop(name, None)
        if teacher is None:
            config.pop("tutor", None)
        else:
            config.tutor.teacher.model_path = str(teacher)
            config.tutor.stages = [{"name": "measured", "weights": weights}]
        config.pop("sched", None)
        config.optim.pop("sched", None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator=device.type, devices=1, max_steps=1000)
    model = TutorCTCModel(config, trainer=trainer).to(device)
    model.setup("fit")
    model.setup_optimization()
    model.log_dict = lambda *args, **kwargs: None  # outside of fit there is nowhere to log to
    return model.train()


def one_step(model: Any, batch: Any) -> Callable[[], None]:
    """Forward, backward and the optimizer's step."""

    def step() -> None:
        loss = model.training_step(batch, 0)["loss"]
        loss.backward()
        model._optimizer.step()
        model._optimizer.zero_grad()

    return step


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(
    student: Path = ROOT / "conf" / "quartznet_5x5.yaml",
    teacher: Path = ROOT / "conf" / "conformer_ctc_small.yaml",
    seconds: float = typer.Option(10.0, help="Length of each utterance."),
    batch_size: int = 4,
    rounds: int = 7,
    output: Optional[Path] = typer.Option(None, help="Write the figures as JSON, too."),
) -> None:
    """Prints milliseconds and ratios."""
    logging.setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = int(seconds * 16000)
    signal = torch.randn(batch_size, samples, device=device)
    lengths = torch.full((batch_size,), samples, device=device)
    targets = torch.randint(0, 28, (batch_size, int(seconds * 12)), device=device)
    batch = (signal, lengths, targets, torch.full((batch_size,), targets.shape[1], device=device))

    with tempfile.TemporaryDirectory() as folder:
        teacher_file = Path(folder) / "teacher.nemo"
        build(teacher, None, None, device).save_to(str(teacher_file))
        plain = build(student, None, None, device)
        students = {name: build(student, teacher_file, weights, device) for name, weights in STAGES.items()}
    tutor = students["ctc + skd"].tutor
    forwards = {
        "rkd": lambda: tutor.teacher(signal, lengths, hidden=True, posteriors=True),
        "ctc + skd": lambda: tutor.teacher(signal, lengths, hidden=False, posteriors=True),
    }
    work: Dict[str, Callable[[], Any]] = {
        "plain CTC step": one_step(plain, batch),
        **{f"teacher forward ({name})": forward for name, forward in forwards.items()},
        **{f"distillation step ({name})": one_step(model, batch) for name, model in students.items()},
    }
    times: Dict[str, List[float]] = {name: [] for name in work}
    for i in range(rounds + 2):
        for name, function in work.items():
            elapsed = timed(function, device)
            if i >= 2:  # the first rounds warm up
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(
            step / (base + forward)
            for step, base, forward in zip(
                times[f"distillation step ({name})"],
                times["plain CTC step"],
                times[f"teacher forward ({name})"],
                strict=True,
            )
        )
        for name in STAGES
    }
    sizes = {"student": count(plain), "teacher": count(tutor.teacher.model)}
    table = Table(
        title=f"{batch_size} x {seconds:g} s on {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    table.add_column(f"student {sizes['student'] / 1e6:.2f} M, teacher {sizes['teacher'] / 1e6:.2f} M parameters")
    table.add_column("ms (median)", justify="right")
    table.add_column("against plain + teacher forward", justify="right")
    for name, value in median.items():
        stage = next((s for s in STAGES if name == f"distillation step ({s})"), None)
        table.add_row(name, f"{1000 * value:.1f}", f"{ratios[stage]:.3f} x" if stage else "")
    Console().print(table, width=None if sys.stdout.isatty() else 110)
    if output is not None:
        figures = {"median_s": median, "ratio": ratios, "parameters": sizes, "device": device.type}
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def count(model: EncDecCTCModel) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    typer.run(main)
