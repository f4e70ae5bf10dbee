# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: options, models of known sizes, a batch, timing of many things side by side, and
tables.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import lightning.pytorch as pl
import soundfile
import torch
import typer
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.data.views import views_of

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16000
SPEED = {
    "prob": 1.0,
    "sr": SAMPLE_RATE,
    "resample_type": "scipy",
    "min_speed_rate": 0.85,
    "max_speed_rate": 1.15,
}
WARM_UP = 2
# Teachers by size: what differs from the config. The large one has the dimensions of NeMo's
# Conformer-CTC-Large.
TEACHERS: dict[str, dict[str, Any]] = {"small": {}, "large": {"d_model": 512, "n_layers": 18, "n_heads": 8}}
TEACHER_CONFIG = ROOT / "conf" / "conformer_ctc_small.yaml"

Batch = tuple[Tensor, Tensor, Tensor, Tensor]

TeacherConfigOption = Annotated[
    Path, typer.Option(help="The Conformer of which --teacher changes the sizes.")
]
BatchOption = Annotated[int, typer.Option(help="Utterances; on a CPU take 4 or fewer.")]
SecondsOption = Annotated[float, typer.Option(help="Length of the longest utterance.")]
RoundsOption = Annotated[int, typer.Option(help="How often everything is timed.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")]
PrecisionOption = Annotated[str, typer.Option(help="Of the student: 32 or bf16.")]
JsonOption = Annotated[Path | None, typer.Option(help="Write the figures, too.")]


@dataclass(frozen=True)
class Setting:
    """Where and on what is measured.

    Attributes:
        device: `cpu` or `cuda`.
        precision: of the student, `32` or `bf16`; the teacher has its own.
        batch_size: utterances.
        seconds: length of each.
    """

    device: torch.device
    precision: str
    batch_size: int
    seconds: float

    def batch(self, padding: float = 0.0) -> Batch:
        """Noise with labels, the same for the same setting; the first utterance is whole, the others are up
        to a third shorter.

        Args:
            padding: seconds of zeros behind all of them.
        """
        random = torch.Generator().manual_seed(0)
        samples = int(self.seconds * SAMPLE_RATE)
        lengths = torch.linspace(samples, samples * 2 / 3, self.batch_size).long()
        signal = torch.randn(self.batch_size, samples, generator=random)
        signal = signal.masked_fill(torch.arange(samples)[None] >= lengths[:, None], 0.0)
        signal = torch.nn.functional.pad(signal, (0, int(padding * SAMPLE_RATE)))
        labels = torch.randint(0, 28, (self.batch_size, max(1, int(self.seconds * 8))), generator=random)
        counts = torch.full((self.batch_size,), labels.shape[1])
        return tuple(tensor.to(self.device) for tensor in (signal, lengths, labels, counts))  # type: ignore[return-value]

    def autocast(self) -> Any:
        """The context of a student's step."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def describe(self) -> dict[str, Any]:
        """For the JSON: this and the machine."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": self.precision,
            "batch": self.batch_size,
            "seconds": self.seconds,
        }

    def title(self) -> str:
        """For a table."""
        where = "cuda" if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        return (
            f"{self.batch_size} x {self.seconds:g} s, {where}, student in {self.precision}, torch "
            f"{torch.__version__}"
        )


def setting(device: str | None, precision: str, batch_size: int, seconds: float) -> Setting:
    """On a GPU where there is one."""
    return Setting(
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        precision,
        batch_size,
        seconds,
    )


def load_config(path: Path, encoder: Mapping[str, Any] | None = None) -> DictConfig:
    """The model section of a config without data, schedules and teacher.

    Args:
        path: of the YAML.
        encoder: settings of the encoder that differ.
    """
    config = OmegaConf.load(path).model
    with open_dict(config):
        for name in ("train_ds", "validation_ds", "test_ds", "tutor"):
            config.pop(name, None)
        config.optim.pop("sched", None)
        config.optim.lr = 1e-4  # small enough for random data
        config.encoder.update(encoder or {})
    return config


def save_teacher(config: DictConfig, path: Path) -> Path:
    """A randomly initialised model; what it knows changes no time."""
    torch.manual_seed(0)
    EncDecCTCModel(copy.deepcopy(config)).save_to(str(path))
    return path


def ready(model: Any, device: torch.device) -> Any:
    """A model as in the middle of `fit`; `logged` has what its last step logged."""
    model.to(device)
    model.setup("fit")
    model.setup_optimization()
    model.logged = {}
    # Outside of fit there is nowhere else to log to.
    model.log_dict = lambda values, **kwargs: model.logged.update(values)
    return model.train()


def cache(
    config: DictConfig,
    teacher: Path,
    stages: Sequence[Mapping[str, float]],
    where: Setting,
    folder: Path,
    speeds: int = 1,
) -> tuple[dict[str, Any], Path]:
    """A cache of a teacher's targets for the batch of a setting, which is laid on the disk as NeMo's data for
    it.

    Args:
        config: of the student.
        teacher: its file.
        stages: the weights of the losses of each stage.
        where: the setting.
        folder: where the data and the cache go.
        speeds: of a speed perturbation; the cache has every utterance at each.

    Returns:
        The data's section of a config, and the cache's folder.
    """
    signal, lengths = where.batch()[:2]
    rows = []
    for i, (samples, length) in enumerate(zip(signal.cpu(), lengths.tolist(), strict=True)):
        soundfile.write(folder / f"{i}.wav", samples[:length].numpy(), SAMPLE_RATE, subtype="FLOAT")
        rows.append({"audio_filepath": f"{i}.wav", "duration": length / SAMPLE_RATE, "text": "noise"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train_ds = {
        "manifest_filepath": str(folder / "train.jsonl"),
        "sample_rate": SAMPLE_RATE,
        "labels": list(config.labels),
        "batch_size": where.batch_size,
        "shuffle": False,
        "num_workers": 0,
    }
    if speeds > 1:
        train_ds["augmentor"] = {"speed": {**SPEED, "num_rates": speeds}}
    config = copy.deepcopy(config)
    with open_dict(config):
        config.train_ds = train_ds
        config.tutor = {
            "teacher": {"model_path": str(teacher)},
            "stages": [
                {"name": str(i), "weights": dict(weights), "epochs": 1} for i, weights in enumerate(stages)
            ],
        }
    trainer = {"accelerator": "gpu" if where.device.type == "cuda" else "cpu", "devices": 1}
    path = folder / f"cache-{speeds}"
    build_cache(OmegaConf.create({"model": config, "trainer": trainer}), path, progress=False)
    return train_ds, path


def perturbed(batch: Batch, train_ds: Mapping[str, Any]) -> Batch:
    """A batch in which each utterance is played at another speed of a training set, all speeds in turn."""
    views, rows = views_of(train_ds), []
    for i, (samples, length) in enumerate(zip(batch[0].cpu(), batch[1].tolist(), strict=True)):
        segment = SimpleNamespace(_samples=samples[:length].numpy())
        views[i % len(views)].augmentor().perturb(segment)
        rows.append(torch.from_numpy(segment._samples).float())
    signal = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return signal.to(batch[0].device), lengths.to(batch[0].device), *batch[2:]


def student(
    config: DictConfig,
    device: torch.device,
    tutor: Mapping[str, Any] | None = None,
    train_ds: Mapping[str, Any] | None = None,
) -> Any:
    """A student of ours, with a `tutor:` section or plain."""
    config = copy.deepcopy(config)
    with open_dict(config):
        if tutor is not None:
            config.tutor = tutor
        if train_ds is not None:
            config.train_ds = train_ds
    torch.manual_seed(0)
    return ready(TutorCTCModel(config, trainer=trainer(device)), device)


def trainer(device: torch.device) -> pl.Trainer:
    """A trainer that leaves no files."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    return pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator=accelerator,
        devices=1,
        max_steps=1000,
    )


def one_step(model: Any, batch: Batch, where: Setting) -> Callable[[], None]:
    """Forward, backward and the optimizer's step."""

    def step() -> None:
        # NeMo's front end adds its dither to the waveform in place.
        with where.autocast():
            loss = model.training_step((batch[0].clone(), *batch[1:]), 0)["loss"]
        loss.backward()
        model._optimizer.step()
        model._optimizer.zero_grad()

    return step


def interleaved(
    work: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call. Every round runs each once, so that whatever else the machine does falls on all
    of them.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for i in range(rounds + WARM_UP):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return times


def peaks(work: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Megabytes that each call has on a GPU at its peak, on top of what stays there anyway; nothing on a
    CPU.
    """
    found: dict[str, float] = {}
    for name, function in work.items() if device.type == "cuda" else ():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        found[name] = round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    return found


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Seconds, to the tenth of a millisecond."""
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def ratio(times: Mapping[str, Sequence[float]], name: str, against: Sequence[str]) -> float:
    """The median over the rounds of one time against the sum of others in the same round."""
    rounds = zip(times[name], zip(*(times[other] for other in against), strict=True), strict=True)
    return round(statistics.median(one / sum(others) for one, others in rounds), 4)


def times_table(title: str, figures: Mapping[str, Any], columns: Mapping[str, str]) -> Table:
    """A row for each thing that was timed.

    Args:
        title: with the sizes in it (`sizes`).
        figures: with `median_s`, and others by the names of what was timed.
        columns: which of the others to show, by the heading of their column.
    """
    table = Table(title=title)
    table.add_column("")
    for column in ("ms (median)", *columns):
        table.add_column(column, justify="right")
    for name, value in figures["median_s"].items():
        found = [figures[key].get(name) for key in columns.values()]
        cells = ("" if cell is None else f"{cell:.0f}" if cell > 100 else f"{cell:.3f}" for cell in found)
        table.add_row(name, f"{1000 * value:.1f}", *cells)
    return table


def sizes(figures: Mapping[str, Any]) -> dict[str, str]:
    """Numbers of parameters in words."""
    return {name: f"{count / 1e6:.1f} M" for name, count in figures["parameters"].items()}


def show(table: Table) -> None:
    """Prints a table; a pipe has no width, and 80 columns would fold the names."""
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def parameters(model: torch.nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in model.parameters())


def write_json(path: Path, figures: Any) -> None:
    """Writes figures for other programs."""
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
