# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A builder and a training that are killed in the middle, and a builder of two ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.target_cache.reader import CacheReader
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import student_config
from tests.integration.target_cache.caching import STAGES, cached, whole

ROOT = Path(__file__).resolve().parents[3]
# Shards of one utterance each, and an end in the middle of the sixth.
KILLED_BUILD = """
import os, signal, sys
from omegaconf import OmegaConf
from nemo_tutornet.commands import cache_targets as build
from nemo_tutornet.target_cache import writer as store
real, added = store.CacheWriter.add, []
def add(writer, utterance, targets):
    writer._max_shard_bytes = 1
    added.append(utterance)
    if len(added) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    real(writer, utterance, targets)
store.CacheWriter.add = add
build.build_cache(OmegaConf.load(sys.argv[1]), build.Path(sys.argv[2]), progress=False)
"""


def write(config: dict, folder: Path, **more: dict) -> Path:
    path = folder / "student.yaml"
    path.write_text(yaml.safe_dump({**OmegaConf.to_container(whole(config)), **more}), encoding="utf-8")
    return path


def call(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=900
    )


def test_a_killed_builder_goes_on_where_it_was(corpus, teacher_file, tmp_path, monkeypatch):
    config, folder = student_config(corpus, teacher_file, STAGES), tmp_path / "cache"
    done = call("-c", KILLED_BUILD, str(write(config, tmp_path)), str(folder), folder=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert len(shards) == 5
    heard = []
    real = LiveTeacher.targets

    def listen(self: LiveTeacher, batch: TrainingBatch, request: Any) -> Any:
        # Silence, for matching, is heard without hypotheses.
        heard.extend(batch.signal_lengths.tolist() if request.hypotheses else [])
        return real(self, batch, request)

    monkeypatch.setattr(LiveTeacher, "targets", listen)
    built = build_cache(whole(config), folder, progress=False)
    assert (built.utterances, built.added, len(heard)) == (8, 3, 3)
    assert all(path.stat().st_mtime_ns == written for path, written in shards.items()), (
        "a finished shard was written again"
    )
    assert len(CacheReader(folder)) == 8 and not list(folder.glob("*.tmp"))


def test_two_ranks_write_their_own_shards(corpus, teacher_file, tmp_path):
    config = student_config(corpus, teacher_file, STAGES)
    rows = (
        (corpus / "train.jsonl")
        .read_text(encoding="utf-8")
        .replace("train", str(corpus / "train"))
        .splitlines()
    )
    manifest = tmp_path / "train.jsonl"
    config["train_ds"]["manifest_filepath"] = str(manifest)
    write(config, tmp_path, trainer={"max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    arguments = [
        "-m",
        "nemo_tutornet",
        "cache",
        "--config-path",
        str(tmp_path),
        "--config-name",
        "student",
        "--output",
        "cache",
    ]
    for many in (7, 8):  # one more is less than one for each rank
        manifest.write_text("\n".join(rows[:many]) + "\n", encoding="utf-8")
        done = call(*arguments, folder=tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, (
            done.stdout + done.stderr
        )[-3000:]
        names = sorted(path.name for path in (tmp_path / "cache").glob("shard-*-00000.safetensors"))
        assert names == ["shard-00000-00000.safetensors", "shard-00001-00000.safetensors"]
        assert (
            len(CacheReader(tmp_path / "cache")) == many
            and len(re.findall(f"{many} utterances", done.stdout)) == 1
        )


def test_a_killed_training_resumes_from_its_cache(corpus, teacher_file, make_student, tmp_path):
    folder = tmp_path / "cache"
    build_cache(whole(student_config(corpus, teacher_file, STAGES)), folder, progress=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    script = ROOT / "examples" / "speech_to_text_ctc_tutornet.py"
    config = cached(corpus, folder)
    manager = {
        "exp_dir": str(tmp_path),
        "name": "run",
        "create_tensorboard_logger": False,
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": {
            "monitor": "val_wer",
            "mode": "min",
            "save_top_k": 1,
            "always_save_nemo": True,
        },
        "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
    }
    trainer = {
        "max_epochs": 5000,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    write(config, tmp_path, exp_manager=manager, trainer=trainer)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), f"--config-path={tmp_path}", "--config-name=student"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        printed = []
        for line in run.stdout:
            printed.append(line)
            if "Epoch 3, global step" in line:
                break
        run.kill()
    assert "Epoch 3, global step" in printed[-1], "".join(printed)[-3000:]
    last = max(
        int(found)
        for path in tmp_path.rglob("*-last.ckpt")
        for found in re.findall(r"epoch=(\d+)", path.name)
    )
    resumed = make_student(config, folder=tmp_path, max_epochs=last + 3)
    begun = []
    resumed.on_train_start = lambda: begun.append(resumed.trainer.current_epoch)
    resumed.trainer.fit(resumed)
    assert begun and begun[0] > 1 and resumed.trainer.current_epoch == last + 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_error_lets_the_folder_go(corpus, teacher_file, tmp_path, monkeypatch):
    config, folder = whole(student_config(corpus, teacher_file, STAGES)), tmp_path / "cache"
    with monkeypatch.context() as broken:
        broken.setattr(
            "nemo_tutornet.commands.cache_builder.split_targets",
            lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")),
        )
        with pytest.raises(OSError, match="Input/output"):
            build_cache(config, folder, progress=False)
    assert not list(folder.glob("shard-*"))
    assert build_cache(config, folder, progress=False).added == 8
