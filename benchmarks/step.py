# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a teacher costs, live and cached: distillation steps against a plain step and the teacher's forward,
side by side.

    python benchmarks/step.py [--student conf/quartznet_15x5.yaml]... [--teacher large]... [--batch 4] [--json
    step.json]

The student's consistency on two views of a batch is measured, too; at most 2.1 plain steps are wanted.

Every pair of a student and a teacher is measured by itself. Every round times each row once; medians are
printed, and of the ratios the median over the rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import typer
from nemo.utils import logging
from omegaconf import DictConfig
from rich.table import Table
from timing import ROOT, Setting

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest

# Stages by name: the losses' weights, and what the stage reads of the teacher.
STAGES: dict[str, dict[str, Any]] = {
    "rkd": {"weights": {"rkd": 1.0}, "reads": TargetRequest(hidden=True, posteriors=True)},
    "rkd, layer inside": {"weights": {"rkd": 1.0}, "reads": TargetRequest(hidden=True)},
    "ctc + rkd": {
        "weights": {"ctc": 1.0, "rkd": 1.85},
        "reads": TargetRequest(hidden=True, posteriors=True),
    },  # the configs' second
    "ctc + skd": {"weights": {"ctc": 1.0, "skd": 0.25}, "reads": TargetRequest(posteriors=True)},
}
PLAIN, FRONT_END = "plain CTC step", "teacher's front end"
SPEEDS = 3
PLAIN_PERTURBED = f"plain CTC step, {SPEEDS} speeds"
VIEWS = "CTC + consistency of two views, no teacher"


def measure(
    config: DictConfig, teacher_config: DictConfig, where: Setting, rounds: int, folder: Path
) -> dict[str, Any]:
    """Times and ratios of one pair, and on a GPU the memory of each step."""
    file = timing.save_teacher(teacher_config, folder / "teacher.nemo")
    batch = where.batch()
    signal, lengths = batch[:2]
    audio = TrainingBatch(signal, lengths)
    plain = timing.student(config, where.device)
    # CR-CTC: twice the rows in one step.
    views = timing.student(config, where.device, {"teacher": None, "consistency": {"weight": 0.2}})
    work: dict[str, Callable[[], Any]] = {
        PLAIN: timing.one_step(plain, batch, where),
        VIEWS: timing.one_step(views, batch, where),
    }
    against: dict[str, list[str]] = {}
    middle = f"encoder.layers.{teacher_config.encoder.n_layers // 2 - 1}"
    for name, stage in STAGES.items():
        rkd = {"hint_layer": middle, "frame_weighting": "uniform"} if name == "rkd, layer inside" else {}
        tutor = {
            "teacher": {"model_path": str(file)},
            "rkd": rkd,
            "stages": [{"name": "it", "weights": stage["weights"]}],
        }
        live = timing.student(config, where.device, tutor)
        teacher, forward = live.distiller.teacher, f"teacher's forward ({name})"
        if FRONT_END not in work:
            work[FRONT_END] = front_end(teacher, signal, lengths)
            sizes = {"student": timing.parameters(plain), "teacher": timing.parameters(teacher.model)}
        work[forward] = lambda teacher=teacher, reads=stage["reads"]: teacher.targets(audio, reads)
        work[f"live ({name})"] = timing.one_step(live, batch, where)
        against[f"live ({name})"] = [PLAIN, forward]
        if where.device.type == "cuda":
            work[f"live ({name}), one stream"] = on_one_stream(live, timing.one_step(live, batch, where))
            against[f"live ({name}), one stream"] = [PLAIN, forward]
    kept = [name for name in STAGES if name != "rkd, layer inside"]
    train_ds, cache = timing.cache(config, file, [STAGES[name]["weights"] for name in kept], where, folder)
    for name in kept:
        tutor = {
            "teacher": {"cache": str(cache)},
            "stages": [{"name": "it", "weights": STAGES[name]["weights"]}],
        }
        read = timing.student(config, where.device, tutor, train_ds)
        work[f"cached ({name})"] = timing.one_step(read, (*batch, torch.arange(where.batch_size)), where)
    train_ds, cache = timing.cache(
        config, file, [STAGES[name]["weights"] for name in kept], where, folder, SPEEDS
    )
    spoken = timing.perturbed(batch, train_ds)
    work[PLAIN_PERTURBED] = timing.one_step(plain, spoken, where)
    for name in kept:
        tutor = {
            "teacher": {"cache": str(cache)},
            "stages": [{"name": "it", "weights": STAGES[name]["weights"]}],
        }
        read = timing.student(config, where.device, tutor, train_ds)
        row = f"cached ({name}), {SPEEDS} speeds"
        work[row] = timing.one_step(read, (*spoken, torch.arange(where.batch_size)), where)
    times = timing.interleaved(work, rounds, where.device)
    return {
        "parameters": sizes,
        "median_s": timing.medians(times),
        "ratio_to_plain": {name: timing.ratio(times, name, [PLAIN]) for name in work if name != PLAIN},
        "ratio_to_perturbed": {
            name: timing.ratio(times, name, [PLAIN_PERTURBED])
            for name in work
            if name.endswith(f", {SPEEDS} speeds") and name != PLAIN_PERTURBED
        },
        "ratio_to_parts": {name: timing.ratio(times, name, parts) for name, parts in against.items()},
        "peak_mb": timing.peaks(work, where.device),
    }


def front_end(teacher: LiveTeacher, signal: Any, lengths: Any) -> Callable[[], Any]:
    """The mel spectrogram that the teacher makes for itself."""
    teacher.move_to(signal.device)
    return lambda: teacher.model.preprocessor(input_signal=signal, length=lengths)


def on_one_stream(live: Any, step: Callable[[], Any]) -> Callable[[], Any]:
    """A step of a student whose teacher runs on the student's own CUDA stream this time."""

    def run() -> None:
        teacher = live.distiller.teacher
        side_stream, teacher.side_stream = teacher.side_stream, None
        step()
        teacher.side_stream = side_stream

    return run


def table(student: str, teacher: str, where: Setting, figures: dict[str, Any]) -> Table:
    """The figures of one pair."""
    sizes = timing.sizes(figures)
    title = f"{student} ({sizes['student']}) from Conformer {teacher} ({sizes['teacher']}): {where.title()}"
    columns = {
        "x plain step": "ratio_to_plain",
        "x plain + forward": "ratio_to_parts",
        f"x plain, {SPEEDS} speeds": "ratio_to_perturbed",
    }
    if figures["peak_mb"]:
        columns["MB on top, at most"] = "peak_mb"
    return timing.times_table(title, figures, columns)


def main(
    student: list[Path] = typer.Option(
        [ROOT / "conf" / "quartznet_5x5.yaml", ROOT / "conf" / "quartznet_15x5.yaml"],
        help="Config of a student; repeatable.",
    ),
    teacher: list[str] = typer.Option(
        ["small", "large"], help=f"{' or '.join(timing.TEACHERS)}; repeatable."
    ),
    teacher_config: timing.TeacherConfigOption = timing.TEACHER_CONFIG,
    batch: timing.BatchOption = 16,
    seconds: timing.SecondsOption = 10.0,
    rounds: timing.RoundsOption = 7,
    device: timing.DeviceOption = None,
    precision: timing.PrecisionOption = "32",
    json: timing.JsonOption = None,
) -> None:
    """Prints a table for each pair of a student and a teacher."""
    logging.setLevel(logging.ERROR)
    where = timing.setting(device, precision, batch, seconds)
    pairs = []
    for size in teacher:
        for path in student:
            with tempfile.TemporaryDirectory() as folder:
                configs = timing.load_config(path), timing.load_config(teacher_config, timing.TEACHERS[size])
                figures = measure(*configs, where, rounds, Path(folder))
            pairs.append({"student": path.stem, "teacher": size, **figures})
            timing.show(table(path.stem, size, where, figures))
    if json is not None:
        timing.write_json(json, {"machine": where.describe(), "rounds": rounds, "pairs": pairs})


if __name__ == "__main__":
    typer.run(main)
