# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cache of teacher targets costs and whether it teaches the same.

    python benchmarks/cache.py cost TRAIN.jsonl TEACHER.nemo [--json cost.json]
    python benchmarks/cache.py curve TRAIN.jsonl TEACHER.nemo [--steps 200] [--json curve.json]
    python benchmarks/cache.py memory TRAIN.jsonl TEACHER.nemo [--json memory.json]

`cost`: building against the teacher's forward alone, bytes per hour of audio, and reading against NeMo's
dataloader alone, in one run. `curve`: the same student live and cached, same seed and data, step by step.
`memory`: the peaks of trainings with a live, a cached and no teacher. With several speeds: `cache_speeds.py`.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timing
import torch
import typer
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from timing import ROOT

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch, UtteranceResolver
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.cached import CachedTeacher

app = typer.Typer(add_completion=False)
STUDENT = ROOT / "conf" / "small" / "quartznet_small.yaml"
BOTH = [
    {"name": "rkd", "weights": {"rkd": 1.0}, "steps": 1},
    {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
]
SKD = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]


def training(manifest: Path, tutor: dict[str, Any] | None, batch: int, student: Path = STUDENT) -> Any:
    """A whole config: the small student on a manifest, without what draws numbers that no seed reaches."""
    config = OmegaConf.load(student)
    with open_dict(config):
        config.model.train_ds.update(
            manifest_filepath=str(manifest), batch_size=batch, num_workers=0, shuffle=True
        )
        config.model.train_ds.use_semi_sorted_batching = False
        config.model.validation_ds = None
        config.model.pop("test_ds", None)
        config.model.pop("spec_augment", None)
        config.model.preprocessor.dither = 0.0
        config.model.tutor = tutor
        config.trainer = {"accelerator": "auto", "devices": 1}
    return config


@app.command()
def cost(
    manifest: Path,
    teacher: Path,
    batch: int = typer.Option(16, help="Utterances in a batch of the teacher."),
    rounds: int = 3,
    json: Path | None = typer.Option(None, help="Write the figures, too."),
) -> None:
    """Builds the cache of a manifest a few times and reads it."""
    logging.setLevel(logging.ERROR)
    section = {"teacher": {"model_path": str(teacher)}}
    ratios, reads, figures = [], [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(rounds):
            folder = Path(scratch) / str(i)
            start = time.perf_counter()
            forward = {"seconds": 0.0}
            with counted(forward):
                built = build_cache(
                    training(manifest, {**section, "stages": BOTH}, batch), folder, progress=False
                )
            whole = time.perf_counter() - start
            # Restoring the teacher and the student happens once, whatever the corpus; what is compared is the
            # work on the audio.
            ratios.append(forward["predict"] / forward["seconds"])
            figures = {
                "hours": built.hours,
                "whole_s": round(whole, 2),
                "hours_per_hour": built.hours / (forward["predict"] / 3600),
                "mb_per_hour": built.megabytes / built.hours,
            }
            reads.append(
                read_rate(
                    training(manifest, {"teacher": {"cache": str(folder)}, "stages": BOTH}, batch), folder
                )
            )
        posteriors = build_cache(
            training(manifest, {**section, "stages": SKD}, batch), Path(scratch) / "skd", progress=False
        )
    figures["posteriors_mb_per_hour"] = posteriors.megabytes / posteriors.hours
    figures["build_to_forward"] = round(statistics.median(ratios), 4)
    figures["read_to_dataloader"] = round(statistics.median(reads), 4)
    table = Table(
        title=f"{manifest.name}, {figures['hours']:.2f} hours, batches of {batch}, {torch.get_num_threads()} "
        "threads"
    )
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("building / (NeMo's dataloader and the teacher's forward)", f"{figures['build_to_forward']:.3f} x"),
        ("hours of audio built an hour", f"{figures['hours_per_hour']:.0f}"),
        ("posteriors and hidden vectors", f"{figures['mb_per_hour']:.1f} MB an hour of audio"),
        ("posteriors alone", f"{figures['posteriors_mb_per_hour']:.1f} MB an hour of audio"),
        ("reading / NeMo's dataloader alone", f"{figures['read_to_dataloader']:.3f} x"),
    ):
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if json is not None:
        timing.write_json(json, figures)


class counted:
    """Adds up the seconds of the teacher's forward and of the dataloader, and those of the whole pass over
    the audio.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        from nemo_tutornet.teachers.live import LiveTeacher

        seconds, self._old = self._seconds, (LiveTeacher.targets, pl.Trainer.predict)
        call, predict = self._old
        inside = [False]

        def timed_call(teacher: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            given = call(teacher, *args, **kwargs)
            if inside[0]:
                seconds["seconds"] += time.perf_counter() - start
            return given

        def timed_predict(trainer: Any, model: Any, loader: Any, **kwargs: Any) -> Any:
            class Timed:
                """The loader, timed."""

                def __iter__(self) -> Any:
                    start = time.perf_counter()
                    for one in loader:
                        seconds["seconds"] += time.perf_counter() - start
                        yield one
                        start = time.perf_counter()

            inside[0], start = True, time.perf_counter()
            given = predict(trainer, model, Timed(), **kwargs)
            inside[0] = False
            seconds["predict"] = seconds.get("predict", 0.0) + time.perf_counter() - start
            return given

        LiveTeacher.targets, pl.Trainer.predict = timed_call, timed_predict  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from nemo_tutornet.teachers.live import LiveTeacher

        LiveTeacher.targets, pl.Trainer.predict = self._old  # type: ignore[method-assign]


def read_rate(config: Any, folder: Path) -> float:
    """Seconds of NeMo's dataloader with the cache's targets for each batch, over those of the dataloader
    alone.
    """
    model = TutorCTCModel(config.model, trainer=pl.Trainer(logger=False, accelerator="cpu"))
    reader, rows = CacheReader(folder), UtteranceResolver(model._train_dl)
    alone = both = 0.0
    start = time.perf_counter()
    for batch in model._train_dl:
        loaded = time.perf_counter()
        reader.read(rows(TrainingBatch.from_nemo(batch)))
        alone += loaded - start
        start_again = time.perf_counter()
        both += start_again - start
        start = start_again
    return both / alone


@app.command()
def curve(
    manifest: Path,
    teacher: Path,
    steps: int = typer.Option(200, help="Half of them RKD, half CTC + SKD."),
    batch: int = 8,
    json: Path | None = typer.Option(None, help="Write every step's losses, too."),
) -> None:
    """Compares every step's losses, live and cached: of the same student, and of students that train apart.

    Two trainings drift apart from any difference, however small. A third student tells how far: its live
    targets are scaled by 1 + 1e-5.
    """
    logging.setLevel(logging.ERROR)
    stages = [{**BOTH[0], "steps": steps // 2}, BOTH[1]]
    live, runs = {"model_path": str(teacher)}, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cache"
        build_cache(training(manifest, {"teacher": live, "stages": stages}, batch), folder, progress=False)
        for name, source in (("live", live), ("cached", {"cache": str(folder)}), ("nudged", live)):
            runs[name] = losses_of(
                name, training(manifest, {"teacher": source, "stages": stages}, batch), steps, folder
            )
    figures: dict[str, Any] = {}
    table = Table(title=f"{manifest.name}: each of {steps} steps, change in %, median and largest")
    for column in (
        "",
        "same student, cached targets",
        "trained apart, cached",
        "trained apart, live, nudged by 1e-5",
    ):
        table.add_column(column, justify="right" if column else "left")
    for loss in ("train_rkd", "train_skd"):
        pairs = {
            "same student": [(one[loss], one[f"cached {loss}"]) for one in runs["live"] if loss in one],
            "cached": [
                (a[loss], b[loss]) for a, b in zip(runs["live"], runs["cached"], strict=True) if loss in a
            ],
            "nudged": [
                (a[loss], b[loss]) for a, b in zip(runs["live"], runs["nudged"], strict=True) if loss in a
            ],
        }
        changes = {name: [abs(b / a - 1) for a, b in found] for name, found in pairs.items()}
        figures[loss] = {
            name: {"median": statistics.median(found), "largest": max(found)}
            for name, found in changes.items()
        }
        table.add_row(
            loss,
            *(f"{100 * one['median']:.3f}   {100 * one['largest']:.3f}" for one in figures[loss].values()),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if json is not None:
        timing.write_json(json, {"steps": steps, **figures, "runs": runs})


def losses_of(name: str, config: Any, steps: int, folder: Path) -> list[dict[str, float]]:
    """The losses of each step of a training; of a live one also those that the cached targets give the same
    student.
    """
    pl.seed_everything(1)
    trainer = pl.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
    )
    model = TutorCTCModel(config.model, trainer=trainer)
    kept: list[dict[str, float]] = []

    class Keep(pl.Callback):
        """Looks into each step."""

        def on_train_start(self, trainer: Any, model: Any) -> None:
            distiller = model.distiller
            targets_of, losses_of = distiller.teacher_targets, distiller.losses
            cached = CachedTeacher(TeacherConfig(model_path="", cache=str(folder)))
            utterances = UtteranceResolver(model._train_dl)
            last: list[Any] = []

            def targets(stage: Any, batch: Any) -> Any:
                last[:] = [batch]
                found = targets_of(stage, batch)
                if name != "nudged":
                    return found
                scaled = {key: getattr(found, key) for key in ("log_probs", "hidden")}
                return replace(
                    found,
                    **{key: None if value is None else value * (1 + 1e-5) for key, value in scaled.items()},
                )

            def losses(stage: Any, student: Any, found: Any, ctc: Any = None) -> Any:
                terms = losses_of(stage, student, found, ctc)
                line = {f"train_{key}": float(value) for key, value in terms.items() if key != "loss"}
                if name == "live":
                    with torch.no_grad():
                        batch = replace(last[0], utterances=utterances(last[0]))
                        read = cached.targets(batch, distiller.objective.request([stage]))
                        again = losses_of(stage, student, read, None if ctc is None else ctc.detach())
                    line.update(
                        {f"cached train_{key}": float(value) for key, value in again.items() if key != "loss"}
                    )
                kept.append(line)
                return terms

            distiller.teacher_targets, distiller.losses = targets, losses

    trainer.callbacks.append(Keep())
    trainer.fit(model)
    return kept


@app.command()
def memory(
    manifest: Path,
    teacher: Path,
    steps: int = 100,
    batch: int = 8,
    json: Path | None = typer.Option(None, help="Write the figures, too."),
) -> None:
    """Peak memory of the same student without a teacher, with a live and with a cached one, each in a process
    of its own.
    """
    logging.setLevel(logging.ERROR)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cache"
        build_cache(
            training(manifest, {"teacher": {"model_path": str(teacher)}, "stages": BOTH}, batch),
            folder,
            progress=False,
        )
        for name, source in (
            ("plain", {}),
            ("live", {"model_path": str(teacher)}),
            ("cached", {"cache": str(folder)}),
        ):
            config = training(manifest, {"teacher": source, "stages": SKD} if source else None, batch)
            OmegaConf.save(config, Path(scratch) / "config.yaml")
            command = [sys.executable, __file__, "peak", str(Path(scratch) / "config.yaml"), str(steps)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[name] = float(printed.splitlines()[-1])
    for name, megabytes in figures.items():
        print(f"{name}: {megabytes:.0f} MB ({megabytes - figures['plain']:+.0f})")
    if json is not None:
        timing.write_json(json, figures)


@app.command(hidden=True)
def peak(config_file: Path, steps: int) -> None:
    """One training; prints the largest resident memory in MB."""
    config = OmegaConf.load(config_file)
    trainer = pl.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
        devices=1,
    )
    trainer.fit(TutorCTCModel(config.model, trainer=trainer))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    app()
