# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The same distillation done in three ways, side by side in one run: ours, DAG-KD's and that of NeMo's pull
request 13939.

    python benchmarks/peers.py [--teacher large] [--batch 4] [--json peers.json]

Theirs are written anew from a description of what their code does, reduced to CTC, the posteriors and one
hidden layer; nothing is copied, and what else they do is left out. The student is a Conformer of half the
teacher's width, because DAG-KD's way needs the teacher's front end and frames and the pull request's needs
layers that return one tensor. A second table shows what the ways leave behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import typer
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from nemo.utils import logging
from omegaconf import DictConfig
from rich.table import Table
from timing import ROOT, Batch, Setting
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_tutornet.nemo_io.layers import Capture
from nemo_tutornet.nemo_io.restore import restore_ctc

PLAIN, OURS, DAG, OURS_HIDDEN, PULL = (
    "plain CTC step",
    "ours (CTC + RKD + SKD)",
    "DAG-KD's way (the same)",
    "ours (CTC + RKD)",
    "PR 13939's way (the same)",
)
AGAINST = {DAG: OURS, PULL: OURS_HIDDEN}
PADDING = 2.0  # seconds of zeros behind a batch, as a longer neighbour would bring


class TeacherInside(EncDecCTCModel):
    """A student with a frozen teacher as a child module, in fp32.

    Args:
        config: of the student.
        trainer: its trainer.
        teacher: a restored model.
    """

    def __init__(self, config: DictConfig, trainer: Any, teacher: nn.Module) -> None:
        super().__init__(cfg=config, trainer=trainer)
        self.teacher = teacher.eval().requires_grad_(False)

    def training_step(self, batch: Batch, batch_nb: int) -> dict[str, Any]:
        """CTC plus what the way adds, each with weight 1."""
        signal, lengths, labels, counts = batch
        log_probs, frames, terms = self.distil(signal, lengths)
        terms["ctc"] = self.loss(
            log_probs=log_probs, targets=labels, input_lengths=frames, target_lengths=counts
        )
        logs = {f"train_{name}": term.detach() for name, term in terms.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), "log": logs}

    def distil(self, signal: Tensor, lengths: Tensor) -> Any:
        """The student's log-probabilities, their lengths, and the named terms."""
        raise NotImplementedError


class DagKd(TeacherInside):
    """The teacher reads the student's augmented features; KL of the posteriors and squared error of the
    projected encoder, both over padding, too.
    """

    def __init__(self, config: DictConfig, trainer: Any, teacher: Any) -> None:
        super().__init__(config, trainer, teacher)
        self.projection = nn.Conv1d(width(self), width(teacher), kernel_size=1)

    def distil(self, signal: Tensor, lengths: Tensor) -> Any:
        """See the class."""
        features, frames = self.preprocessor(input_signal=signal, length=lengths)
        if self.training:
            features = self.spec_augmentation(input_spec=features, length=frames)
        encoded, encoded_frames = self.encoder(audio_signal=features, length=frames)
        log_probs = self.decoder(encoder_output=encoded)
        with torch.no_grad(), torch.autocast(signal.device.type, enabled=False):
            hidden, _ = self.teacher.encoder(audio_signal=features.float(), length=frames)
            taught = self.teacher.decoder(encoder_output=hidden)
        terms = {
            "skd": F.kl_div(
                log_probs.float().flatten(0, 1), taught.flatten(0, 1), log_target=True, reduction="batchmean"
            ),
            "rkd": F.mse_loss(self.projection(encoded).float(), hidden),
        }
        return log_probs, encoded_frames, terms


class Pull13939(TeacherInside):
    """A pair of layers by name, squared error over padding, too, after a trained adapter on the teacher's
    side; no posteriors.
    """

    def __init__(self, config: DictConfig, trainer: Any, teacher: Any) -> None:
        super().__init__(config, trainer, teacher)
        self.adapter = nn.Linear(width(teacher), width(self))

    def distil(self, signal: Tensor, lengths: Tensor) -> Any:
        """See the class."""
        with (
            Capture(self, last_layer(self)) as mine,
            Capture(self.teacher, last_layer(self.teacher)) as theirs,
        ):
            with torch.no_grad(), torch.autocast(signal.device.type, enabled=False):
                self.teacher(input_signal=signal, input_signal_length=lengths)
            log_probs, frames, _ = self.forward(input_signal=signal, input_signal_length=lengths)
        return log_probs, frames, {"rkd": F.mse_loss(mine.output, self.adapter(theirs.output))}


WAYS = {DAG: DagKd, PULL: Pull13939}


def width(model: Any) -> int:
    """Of the encoder's output."""
    return int(model.encoder._feat_out)


def last_layer(model: Any) -> str:
    """Path of the last layer of an encoder."""
    conformer = hasattr(model.encoder, "layers")
    return (
        f"encoder.layers.{len(model.encoder.layers) - 1}"
        if conformer
        else f"encoder.encoder.{len(model.encoder.encoder) - 1}"
    )


def theirs(way: str, config: DictConfig, teacher: Path, device: torch.device) -> Any:
    """A student in one of their ways, ready for a step."""
    torch.manual_seed(0)
    return timing.ready(WAYS[way](config.copy(), timing.trainer(device), restore_ctc(teacher)), device)


def ours(
    weights: dict[str, float], config: DictConfig, teacher: Path, device: torch.device, **rkd: str
) -> Any:
    """Our student with the same losses, masked."""
    tutor = {
        "teacher": {"model_path": str(teacher)},
        "rkd": rkd,
        "skd": {"divergence": "kl"},
        "stages": [{"name": "it", "weights": weights}],
    }
    return timing.student(config, device, tutor)


def settled_teacher(config: DictConfig, where: Setting, path: Path) -> Path:
    """A randomly initialised teacher whose BatchNorm statistics are those of the batch, so that they have no
    reason to move.
    """
    timing.save_teacher(config, path)
    model = restore_ctc(path)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all that it sees
        norm.train()
    with torch.no_grad():
        signal, lengths = where.batch()[:2]
        model(input_signal=signal.cpu(), input_signal_length=lengths.cpu())
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    model.eval().save_to(str(path))
    return path


# --- What the ways leave behind


def statistics_of(teacher: Any) -> Tensor:
    """All BatchNorm statistics of a model in one vector."""
    named = teacher.state_dict().items()
    return torch.cat([value.detach().float().cpu() for name, value in named if "running_" in name])


def teacher_of(model: Any) -> Any:
    """The teacher's model."""
    return model.teacher if isinstance(model, TeacherInside) else model.distiller.teacher.model


def with_padding(model: Any, where: Setting) -> dict[str, float]:
    """Each term for a batch with zeros behind it, against the same batch without them; SpecAugment and
    dropout are off.
    """
    model.eval()
    terms = []
    with torch.no_grad():
        for padding in (0.0, PADDING):
            model.training_step(where.batch(padding), 0)
            terms.append(
                {
                    name: float(model.logged[f"train_{name}"])
                    for name in ("rkd", "skd")
                    if f"train_{name}" in model.logged
                }
            )
    model.train()
    return {name.removeprefix("train_"): round(terms[1][name] / terms[0][name], 4) for name in terms[0]}


def restores(path: Path) -> bool:
    """Whether NeMo restores a file without the code that wrote it."""
    try:
        ASRModel.restore_from(str(path), map_location="cpu")
    except Exception:  # whatever NeMo raises, the answer is no
        return False
    return True


def left_behind(model: Any, untouched: Tensor, where: Setting, folder: Path) -> dict[str, Any]:
    """Sizes, statistics and losses of a model that has been trained for some steps."""
    moved = statistics_of(teacher_of(model)) - untouched
    ids = {id(p) for p in teacher_of(model).parameters()}
    optimized = [p for group in model._optimizer.param_groups for p in group["params"]]
    checkpoint, file = folder / "run.ckpt", folder / "run.nemo"
    torch.save(
        {"state_dict": model.state_dict(), "optimizer_states": [model._optimizer.state_dict()]}, checkpoint
    )
    model.save_to(str(file))
    return {
        ".nemo, MB": round(file.stat().st_size / 1e6, 1),
        "NeMo alone restores it": restores(file),
        ".ckpt (weights, optimizer), MB": round(checkpoint.stat().st_size / 1e6, 1),
        "teacher's weights given to the optimizer": sum(p.numel() for p in optimized if id(p) in ids),
        "teacher's BatchNorm moved by, %": round(100 * float(moved.norm() / untouched.norm()), 3),
        **{
            f"{name} with {PADDING:g} s of padding, x": value
            for name, value in with_padding(model, where).items()
        },
    }


def quartznet(build: Callable[[DictConfig], Any], where: Setting, config: DictConfig) -> str:
    """What becomes of a QuartzNet student in one step."""
    try:
        timing.one_step(build(config), where.batch(), where)()
    except Exception as error:  # the point is which one
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:90] if lines else ''}"
    return "trains"


def left_behind_table(found: dict[str, dict[str, Any]], steps: int) -> Table:
    """What is left after some steps, one column for each way."""
    table = Table(title=f"After {steps} steps in train mode")
    table.add_column("")
    for name in found:
        table.add_column(name)
    rows = list(dict.fromkeys(row for figures in found.values() for row in figures))
    for row in rows:
        values = [figures.get(row, "") for figures in found.values()]
        table.add_row(
            row, *(["no", "yes"][value] if isinstance(value, bool) else str(value) for value in values)
        )
    return table


def main(
    teacher: str = typer.Option("small", help=" or ".join(timing.TEACHERS)),
    other_student: Path = typer.Option(
        ROOT / "conf" / "quartznet_5x5.yaml", help="Which ways can teach this one?"
    ),
    teacher_config: timing.TeacherConfigOption = timing.TEACHER_CONFIG,
    batch: timing.BatchOption = 16,
    seconds: timing.SecondsOption = 10.0,
    rounds: timing.RoundsOption = 7,
    device: timing.DeviceOption = None,
    precision: timing.PrecisionOption = "32",
    json: timing.JsonOption = None,
) -> None:
    """Prints a table of times and one of what the ways leave behind."""
    logging.setLevel(logging.CRITICAL)
    where = timing.setting(device, precision, batch, seconds)
    large = timing.load_config(teacher_config, timing.TEACHERS[teacher])
    half = {"d_model": large.encoder.d_model // 2, "n_heads": large.encoder.n_heads // 2}
    config, other = timing.load_config(teacher_config, half), timing.load_config(other_student)
    with tempfile.TemporaryDirectory() as folder:
        file = settled_teacher(large, where, Path(folder) / "teacher.nemo")
        untouched = statistics_of(restore_ctc(file))
        build: dict[str, Callable[[DictConfig], Any]] = {
            OURS: lambda c: ours({"ctc": 1.0, "rkd": 1.0, "skd": 1.0}, c, file, where.device),
            DAG: lambda c: theirs(DAG, c, file, where.device),
            OURS_HIDDEN: lambda c: ours(
                {"ctc": 1.0, "rkd": 1.0}, c, file, where.device, frame_weighting="uniform"
            ),
            PULL: lambda c: theirs(PULL, c, file, where.device),
        }
        plain = timing.student(config, where.device)
        models = {name: make(config) for name, make in build.items()}
        work = {
            name: timing.one_step(model, where.batch(), where)
            for name, model in {PLAIN: plain, **models}.items()
        }
        times = timing.interleaved(work, rounds, where.device)
        figures = {
            "parameters": {
                "student": timing.parameters(plain),
                "teacher": timing.parameters(teacher_of(models[OURS])),
            },
            "median_s": timing.medians(times),
            "ratio_to_plain": {name: timing.ratio(times, name, [PLAIN]) for name in models},
            "ratio_to_ours": {name: timing.ratio(times, name, [other]) for name, other in AGAINST.items()},
        }
        found = {name: left_behind(model, untouched, where, Path(folder)) for name, model in models.items()}
        for name, make in build.items():
            found[name][f"a {other_student.stem} student"] = quartznet(make, where, other)
    sizes = timing.sizes(figures)
    title = f"Conformer {sizes['student']} from Conformer {sizes['teacher']}: {where.title()}"
    timing.show(
        timing.times_table(title, figures, {"x plain step": "ratio_to_plain", "x ours": "ratio_to_ours"})
    )
    timing.show(left_behind_table(found, rounds + timing.WARM_UP))
    if json is not None:
        timing.write_json(
            json, {"machine": where.describe(), "rounds": rounds, **figures, "left_behind": found}
        )


if __name__ == "__main__":
    typer.run(main)
