# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The mean of a run's checkpoints as a student, and NeMo's moving average (EMA) of the weights."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from typer.testing import CliRunner

from nemo_tutornet import export_student
from nemo_tutornet.cli import app
from nemo_tutornet.distill.run_files import repair_run_folder
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import refusal, student_config

KEEP = {"monitor": "val_loss", "save_top_k": -1}


@pytest.fixture(scope="module", params=["distilled", "undistilled"])
def run(request, corpus, teacher_file, make_student, tmp_path_factory) -> Path:
    """A run of three epochs that has kept its checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    teacher = teacher_file if request.param == "distilled" else None
    stages = [{"name": "all", "weights": {"ctc": 1.0, "rkd": 1.0}}]
    model = make_student(
        student_config(corpus, teacher, stages),
        folder=folder,
        max_epochs=3,
        manager={"checkpoint_callback_params": KEEP},
    )
    model.trainer.fit(model)
    (checkpoints,) = folder.rglob("checkpoints")
    return checkpoints.parent


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_lightning_checkpoint(path)["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


STATISTICS = ("running_mean", "running_var")


def test_the_mean_leaves_as_a_stock_student_with_statistics_of_its_own(run, corpus, tmp_path):
    done = CliRunner().invoke(
        app, ["export", str(run), str(tmp_path / "student.nemo"), "--average", "last-3", "--verify"]
    )
    assert done.exit_code == 0, done.output
    assert "mean of 3 checkpoints" in done.output and "8 utterances" in done.output
    files = sorted(run.rglob("*.ckpt"), key=lambda path: load_lightning_checkpoint(path)["global_step"])
    by_step = {load_lightning_checkpoint(path)["global_step"]: state(path) for path in files}
    states = list(by_step.values())
    assert len(states) == 3
    student = restore_ctc(tmp_path / "student.nemo")
    moved = 0
    for name, value in student.state_dict().items():
        if name.endswith(STATISTICS):
            moved += not torch.equal(value, torch.stack([one[name] for one in states]).mean(0))
        elif value.is_floating_point():
            assert torch.equal(value, torch.stack([one[name] for one in states]).double().mean(0).float())
        else:
            assert torch.equal(value, states[-1][name])
    assert moved
    summary = json.loads((tmp_path / "student.json").read_text())
    assert len(summary["averaged"]) == 3 and summary["source"] is None
    assert b"tutor" not in (tmp_path / "student.nemo").read_bytes()


def test_statistics_are_those_of_the_audio(run, corpus, tmp_path):
    """Twice the same audio gives the same statistics; other audio gives others."""
    make = {"average": "last-2"}
    one = restore_ctc(export_student(run, tmp_path / "1.nemo", **make).path).state_dict()
    two = restore_ctc(
        export_student(run, tmp_path / "2.nemo", statistics=corpus / "train.jsonl", **make).path
    ).state_dict()
    other = export_student(run, tmp_path / "3.nemo", statistics=corpus / "valid.jsonl", **make)
    assert other.average is not None and "2 utterances" in (other.average.statistics or "")
    three = restore_ctc(other.path).state_dict()
    assert equal(one, two)
    differing = {name for name in one if not torch.equal(one[name], three[name])}
    assert differing and all(name.endswith(STATISTICS) for name in differing)


def test_one_checkpoint_is_exported_as_it_is(run, tmp_path):
    last = next(run.rglob("*-last.ckpt"))
    exported = export_student(run, tmp_path / "a.nemo", average="last-1")
    assert equal(restore_ctc(exported.path).state_dict(), state(last))


def test_mistakes_are_one_sentence(run, corpus, tmp_path):
    def refused(*arguments: str, source: Path = run) -> str:
        done = CliRunner().invoke(app, ["export", str(source), str(tmp_path / "no.nemo"), *arguments])
        assert done.exit_code == 2 and not (tmp_path / "no.nemo").exists()
        return done.output

    assert "save_top_k" in refused("--average", "last-9")
    assert "last-5 or best-5" in refused("--average", "mean-3")
    assert "--average" in refused("--statistics", str(corpus / "train.jsonl"))
    assert "there is no manifest" in refused("--average", "last-2", "--statistics", "nowhere.jsonl")
    assert "no checkpoints to average" in refusal(
        lambda: export_student(object(), tmp_path / "no.nemo", average="last-2")
    )


def test_a_training_set_that_is_not_here_asks_for_audio(run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for file in run.rglob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=False)
        checkpoint["hyper_parameters"]["cfg"]["train_ds"]["manifest_filepath"] = "/nowhere/train.jsonl"
        torch.save(checkpoint, tmp_path / "checkpoints" / file.name)
    message = refusal(lambda: export_student(tmp_path, tmp_path / "no.nemo", average="last-2"))
    assert "/nowhere/train.jsonl" in message and "--statistics" in message


# --- NeMo's EMA


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self._step:
            raise KeyboardInterrupt


def last_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of the last step, and their average."""
    return state(next(folder.rglob("*-last.ckpt"))), state(next(folder.rglob("*-last-EMA.ckpt")))


@pytest.mark.parametrize("distilled", [True, False])
def test_a_run_with_nemos_ema_resumes_and_its_nemo_holds_the_average(
    distilled, corpus, teacher_file, make_student, tmp_path
):
    ema = {"enable": True, "decay": 0.5}
    config = student_config(corpus, teacher_file if distilled else None)

    def fit(folder: Path, **more: Any) -> Any:
        model = make_student(config, folder=folder, max_epochs=3, manager={"ema": ema}, **more)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            model.trainer.fit(model)
        return model

    model = fit(tmp_path / "whole")
    weights, average = last_of(tmp_path / "whole")
    assert not equal(weights, average)
    assert equal({k: v.cpu() for k, v in model.state_dict().items()}, weights)
    assert equal(restore_ctc(next((tmp_path / "whole").rglob("*.nemo"))).state_dict(), average)
    note = export_student(next((tmp_path / "whole").rglob("*-last.ckpt")), tmp_path / "s.nemo").note
    assert note is not None and "-EMA.ckpt" in note

    fit(tmp_path / "parts", callbacks=[StopAfter(6)])
    fit(tmp_path / "parts")
    resumed = last_of(tmp_path / "parts")
    assert equal(resumed[0], weights) and equal(resumed[1], average)


def test_a_last_checkpoint_that_is_repaired_keeps_its_average(corpus, make_student, tmp_path):
    ema = {"enable": True, "decay": 0.5}
    model = make_student(student_config(corpus, None), folder=tmp_path, max_epochs=1, manager={"ema": ema})
    model.trainer.fit(model)
    for file in tmp_path.rglob("*-last*.ckpt"):
        file.unlink()
    (checkpoints,) = tmp_path.rglob("checkpoints")
    repair_run_folder({"explicit_log_dir": str(checkpoints.parent), "resume_if_exists": True, "name": "run"})
    weights, average = last_of(tmp_path)
    assert not equal(weights, average)
    next(tmp_path.rglob("*-last-EMA.ckpt")).unlink()
    again = make_student(student_config(corpus, None), folder=tmp_path, max_epochs=2, manager={"ema": ema})
    assert "-EMA.ckpt" in refusal(again.trainer.fit, again)
