# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes with NeMo's usual `strategy: ddp`: every stage leaves some parameters without a gradient, DDP must not mind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nemo_tutornet.checkpoints import load_lightning_checkpoint
from tests.conftest import student_config

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "speech_to_text_ctc_tutornet.py"


def test_two_ranks_go_through_every_stage(corpus, teacher_file, tmp_path):
    stages = [
        {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
        {"name": "ctc", "epochs": 1, "weights": {"ctc": 1.0}},
        {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
    ]
    config = {
        "seed": 1,
        "model": student_config(corpus, teacher_file, stages, rkd={"warm_start_decoder": False}),
        "trainer": {
            "max_epochs": 3, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False,
            "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        },
        "exp_manager": {
            "exp_dir": str(tmp_path), "name": "run", "create_tensorboard_logger": False, "create_checkpoint_callback": True,
            "checkpoint_callback_params": {"monitor": "val_wer", "mode": "min", "save_top_k": -1},
            "resume_if_exists": True, "resume_ignore_no_checkpoint": True,
        },
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), tmp_path / "student.yaml")
    command = [sys.executable, str(SCRIPT), f"--config-path={tmp_path}", "--config-name=student"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "Stage 'skd' (3 of 3)" in done.stdout
    checkpoints = {
        torch_load["epoch"]: torch_load
        for torch_load in (load_lightning_checkpoint(path) for path in tmp_path.rglob("*.ckpt") if "-last" not in path.name)
    }
    assert sorted(checkpoints) == [0, 1, 2]
    assert checkpoints[0]["global_step"] == 2, "two ranks share four batches"
    projections = [checkpoints[epoch]["tutor"]["projection"]["weight"] for epoch in range(3)]
    assert torch.equal(projections[0], projections[1]) and torch.equal(projections[1], projections[2])
    decoders = [checkpoints[epoch]["state_dict"]["decoder.decoder_layers.0.weight"] for epoch in range(3)]
    assert not torch.equal(decoders[0], decoders[1]) and not torch.equal(decoders[1], decoders[2])
    assert len(list(tmp_path.rglob("run.nemo"))) == 1
