# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes with NeMo's usual `strategy: ddp`: every stage leaves some parameters without a gradient, DDP
must not mind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from nemo_tutornet.distill.warm_start import compose_decoder
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.restore import pointwise_decoder, restore_ctc
from tests.conftest import student_config, with_bad_audio

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "speech_to_text_ctc_tutornet.py"


# A training script whose second rank alone gets a signal, in its third step.
INTERRUPTED = """
import importlib.util, os, signal
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

class Interrupt(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.{signal})

fit = Trainer.fit

def interrupted_fit(trainer, *given, **named):
    trainer.callbacks.append(Interrupt())
    fit(trainer, *given, **named)

Trainer.fit = interrupted_fit
# Not `runpy`, which changes sys.argv[0], from which Lightning starts the second rank.
spec = importlib.util.spec_from_file_location("script", {script!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.main()
"""


class StopAfter(Callback):
    """Stops a training as a signal does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def run(
    folder: Path, model: dict[str, Any], epochs: int, script: Path = SCRIPT, code: int = 0, **checkpoints: Any
) -> str:
    """Trains with two ranks and returns what they printed."""
    config = {
        "seed": 1,
        "model": model,
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": "ddp",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
        },
        "exp_manager": {
            "exp_dir": str(folder),
            "name": "run",
            "seconds_to_sleep": 1,  # of the second rank, while the first makes the folder
            "create_tensorboard_logger": False,
            "create_checkpoint_callback": True,
            "checkpoint_callback_params": {
                "monitor": "val_wer",
                "mode": "min",
                "save_top_k": -1,
                **checkpoints,
            },
            "resume_if_exists": True,
            "resume_ignore_no_checkpoint": True,
        },
    }
    OmegaConf.save(OmegaConf.create(config), folder / "student.yaml")
    command = [sys.executable, str(script), f"--config-path={folder}", "--config-name=student"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def test_two_ranks_go_through_every_stage(corpus, teacher_file, make_student, tmp_path):
    """One utterance's audio is not finite: the ranks skip its batch together. One process goes on at the end.

    One stage does not use the projection, so its first checkpoint has the one that the run began with.
    """
    stages = [
        {"name": "ctc", "epochs": 1, "weights": {"ctc": 1.0}},
        {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
        {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
    ]
    config = student_config(
        corpus, teacher_file, stages, rkd={"warm_start_decoder": False}, max_nonfinite_share=0.5
    )
    config["train_ds"]["manifest_filepath"] = with_bad_audio(corpus, tmp_path, 3)
    printed = run(tmp_path, config, epochs=3)
    assert "Stage 'skd' (3 of 3)" in printed
    # NeMo was imported before this process knew its rank, so both ranks write: once for each epoch.
    assert printed.count("The batch is skipped (1 of at most 1 in this epoch)") in (3, 6)
    checkpoints = {
        torch_load["epoch"]: torch_load
        for torch_load in (
            load_lightning_checkpoint(path) for path in tmp_path.rglob("*.ckpt") if "-last" not in path.name
        )
    }
    assert sorted(checkpoints) == [0, 1, 2]
    assert checkpoints[0]["global_step"] == 2, "two ranks share four batches"
    projections = [checkpoints[epoch]["tutor"]["projection"]["weight"] for epoch in range(3)]
    assert not torch.equal(projections[0], projections[1]) and torch.equal(projections[1], projections[2])
    decoders = [checkpoints[epoch]["state_dict"]["decoder.decoder_layers.0.weight"] for epoch in range(3)]
    assert torch.equal(decoders[0], decoders[1]) and not torch.equal(decoders[1], decoders[2])
    assert len(list(tmp_path.rglob("run.nemo"))) == 1

    alone = make_student(config, folder=tmp_path, max_epochs=4)
    torch.manual_seed(1)  # the seed of the run
    alone.setup("fit")
    assert torch.equal(alone.distiller.projection.weight.cpu(), projections[0]), "one seed, one projection"
    alone.trainer.fit(alone)
    assert alone.current_epoch == 4 and alone.distiller.stage == 2
    assert torch.equal(alone.distiller.projection.weight.cpu(), projections[2])
    assert not torch.equal(alone.decoder.decoder_layers[0].weight.cpu(), decoders[2])
    assert all(value.isfinite().all() for value in alone.state_dict().values())


def test_two_ranks_go_on_and_save_in_the_middle_of_rkd(corpus, teacher_file, make_student, tmp_path):
    """One process begins, and is stopped after three of four batches: two begin the epoch anew.

    Every rank composes the decoder for a file, and none waits for another.
    """
    stages = [
        {"name": "rkd", "epochs": 2, "weights": {"rkd": 1.0}},
        {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
    ]
    config = student_config(corpus, teacher_file, stages)
    alone = make_student(config, folder=tmp_path, max_epochs=1)
    alone.trainer.callbacks.append(StopAfter(3))
    with pytest.raises(SystemExit):
        alone.trainer.fit(alone)
    saving = {
        "every_n_train_steps": 1,
        "every_n_epochs": None,
        "monitor": "train_loss",
        "filename": "{step}",
        "always_save_nemo": True,
    }
    printed = run(tmp_path, config, epochs=3, **saving)
    assert "Stage 'skd' (2 of 2)" in printed and printed.count("Stage 'rkd'") == 0
    head = pointwise_decoder(restore_ctc(teacher_file).decoder)
    saved = {
        one["global_step"]: one
        for one in (load_lightning_checkpoint(path) for path in tmp_path.rglob("step=*.ckpt"))
    }
    assert "1 process wrote this checkpoint in the middle of epoch 1, and 2 continue: the epoch" in printed
    assert max(saved) == 3 + 3 * 2, "each of two processes has two batches"
    in_rkd = [step for step, one in saved.items() if step > 3 and one["tutor"]["stage"] == "rkd"]
    assert in_rkd
    for step in in_rkd:
        projection = torch.nn.Conv1d(20, 24, 1)
        projection.load_state_dict(saved[step]["tutor"]["projection"])
        weight, _ = compose_decoder(head, projection, None)
        assert torch.equal(saved[step]["state_dict"]["decoder.decoder_layers.0.weight"], weight)


@pytest.fixture(scope="module")
def mixed(corpus, teacher_file, tmp_path_factory) -> dict[str, Any]:
    """A training whose ranks share epochs that are mixed of two manifests."""
    config = student_config(
        corpus, teacher_file, [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25, "rkd": 1.0}}]
    )
    rows = (corpus / "train.jsonl").read_text(encoding="utf-8").replace("train", f"{corpus}/train")
    folder = tmp_path_factory.mktemp("mixed")
    halves = [folder / "first.jsonl", folder / "second.jsonl"]
    for i, half in enumerate(halves):
        half.write_text("\n".join(rows.splitlines()[i::2]) + "\n", encoding="utf-8")
    config["train_ds"]["manifest_filepath"] = list(map(str, halves))
    config["tutor"]["manifest_weights"] = [1.0, 3.0]
    return config


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights after a run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, mixed, 2)
    (written,) = folder.rglob("run.nemo")
    return restore_ctc(written).state_dict()


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stop_of_one_rank_is_a_stop_of_all(name, code, mixed, whole, make_student, tmp_path):
    """Both ranks end after the same batch with one checkpoint, and the same command continues from it.

    One process alone begins the epoch anew.
    """
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED.format(signal=name, script=str(SCRIPT)), encoding="utf-8")
    printed = run(tmp_path, mixed, 2, script, code)
    assert "in epoch 2, step 3: the same command continues from" in printed
    (last,) = tmp_path.rglob("*-last.ckpt")
    saved = load_lightning_checkpoint(last)
    assert saved["global_step"] == 3 and len(saved["resumption"]["ranks"]) == 2
    if name == "SIGTERM":
        other = tmp_path / "other"
        shutil.copytree(tmp_path / "run", other / "run")
        alone = make_student(mixed, folder=other, max_epochs=2)
        alone.trainer.fit(alone)
        assert alone.trainer.global_step == 3 + 4, "all four batches of the second epoch"
    run(tmp_path, mixed, 2)
    (resumed,) = (tmp_path / "run").rglob("run.nemo")
    assert all(torch.equal(value, whole[key]) for key, value in restore_ctc(resumed).state_dict().items())
