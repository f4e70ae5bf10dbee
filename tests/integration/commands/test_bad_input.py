# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's mistakes: one sentence on standard error, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from tests.conftest import LABELS, save_teacher, student_config, teacher_config

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "speech_to_text_ctc_tutornet.py"
TRAINER = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

Run = Callable[..., str]


@pytest.fixture
def run(corpus: Path, teacher_file: Path, tmp_path: Path, monkeypatch, capsys) -> Run:
    """Runs the example script in this process with overrides; returns the one sentence it must end with."""
    spec = importlib.util.spec_from_file_location("speech_to_text_ctc_tutornet", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = {
        "seed": 1,
        "model": student_config(corpus, teacher_file),
        "trainer": TRAINER,
        "exp_manager": {"exp_dir": str(tmp_path / "runs"), "name": "run", "create_tensorboard_logger": False},
    }

    def call(*overrides: str) -> str:
        OmegaConf.save(OmegaConf.create(config), tmp_path / "student.yaml")
        arguments = [str(SCRIPT), f"--config-path={tmp_path}", "--config-name=student", *overrides]
        before = {*tmp_path.rglob("*.ckpt")}
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            script.main()
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert not list(tmp_path.rglob("*.nemo")) + list({*tmp_path.rglob("*.ckpt")} - before) or overrides[
            0
        ].startswith("model.tutor.teacher")
        return line

    return call


def archive(path: Path, target: str) -> Path:
    """A `.nemo` that names a class and holds nothing else."""
    config = json.dumps({"target": target}).encode()
    with tarfile.open(path, "w:") as tar:
        info = tarfile.TarInfo("./model_config.yaml")
        info.size = len(config)
        tar.addfile(info, io.BytesIO(config))
    return path


def test_a_missing_teacher(run, tmp_path):
    assert "there is no file /no/teacher.nemo" in run("model.tutor.teacher.model_path=/no/teacher.nemo")
    assert not (tmp_path / "runs").exists(), "a wrong path leaves no folder of a run"


@pytest.mark.parametrize(
    "override, what, reason",
    [
        ("model.optim.name=sdg", "model.optim", "sdg"),
        ("model.optim.lr=fast", "model.optim", "TypeError"),
        ("++model.optim.betas=[2.0,0.5]", "model.optim", "Invalid beta"),
        ("+model.optim.learning_rate=0.1", "model.optim", "learning_rate"),
        ("++model.optim.sched={name: NoSuchSchedule}", "model.optim", "NoSuchSchedule"),
        ("model.encoder.jasper.0.filters=many", "the model", "TypeError"),
        ("+model.encoder.no_such_key=1", "the model", "no_such_key"),
        ("trainer.accelerator=abacus", "the trainer", "abacus"),
        ("+trainer.no_such_key=1", "the trainer", "no_such_key"),
        ("+exp_manager.no_such_key=1", "exp_manager", "no_such_key"),
    ],
)
def test_what_nemo_and_lightning_refuse(run, override, what, reason):
    sentence = run(override)
    assert sentence.startswith(f"error: {what}") or f"({what})" in sentence, sentence
    assert reason in sentence and "fix the config" in sentence


def test_a_truncated_teacher(run, teacher_file, tmp_path):
    cut = tmp_path / "cut.nemo"
    cut.write_bytes(teacher_file.read_bytes()[:100_000])
    assert "cut.nemo is not a readable .nemo file" in run(f"model.tutor.teacher.model_path={cut}")


@pytest.mark.parametrize(
    "target",
    [
        "nemo.collections.asr.models.transformer_bpe_models.EncDecTransfModelBPE",
        "nemo.collections.tts.models.fastpitch.FastPitchModel",
        "somebody.elses.EncDecCTCModel",
    ],
)
def test_a_teacher_of_another_class(run, tmp_path, target):
    path = archive(tmp_path / "other.nemo", target)
    line = run(f"model.tutor.teacher.model_path={path}")
    assert target in line and "a teacher must be a NeMo recogniser" in line


def test_a_teacher_with_another_sha256(run, teacher_file):
    assert "the sha256 of" in run("+model.tutor.teacher.sha256=" + "0" * 64)


def test_a_pretrained_name_that_nobody_knows(run, monkeypatch):
    from nemo.collections.asr.models import ASRModel

    def unknown(name: str, **_: object) -> None:
        raise FileNotFoundError(f"Model {name} was not found.")

    monkeypatch.setattr(ASRModel, "from_pretrained", unknown)
    line = run("model.tutor.teacher.model_path=stt_en_nothing")
    assert "'stt_en_nothing'" in line and "Model stt_en_nothing was not found" in line


def test_label_sets_that_differ(run, corpus, tmp_path):
    other = save_teacher(teacher_config(corpus, labels=[*LABELS[:-1], "ä"]), tmp_path / "umlaut.nemo")
    line = run(f"model.tutor.teacher.model_path={other}")
    assert "'ä'" in line and '"\'"' in line and "RKD and pseudo-labels still work" in line


def test_rkd_alone_takes_a_teacher_with_other_labels(corpus, make_student, tmp_path):
    other = save_teacher(teacher_config(corpus, labels=[*LABELS[:-1], "ä"]), tmp_path / "umlaut.nemo")
    stages = [{"name": "rkd", "weights": {"rkd": 1.0}, "epochs": 1}, {"name": "ctc", "weights": {"ctc": 1.0}}]
    model = make_student(student_config(corpus, other, stages), max_epochs=2)
    model.trainer.fit(model)
    assert "label sets differ" in model.distiller.match.no_warm_start


def test_sample_rates_that_differ(run, corpus, tmp_path):
    other = save_teacher(teacher_config(corpus, sample_rate=8000), tmp_path / "8k.nemo")
    line = run(f"model.tutor.teacher.model_path={other}")
    assert "16000 Hz" in line and "8000 Hz" in line


@pytest.mark.parametrize(
    ("key", "path", "near"),
    [
        ("hint_layer", "encoder.layer.1", "encoder.layers.1"),
        ("guided_layer", "encoder.encoder.9", "encoder.encoder."),
    ],
)
def test_a_layer_that_does_not_exist(run, key, path, near):
    line = run(f"+model.tutor.rkd.{key}={path}")
    assert f"model.tutor.rkd.{key}: there is no layer {path!r}" in line and near in line


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("'???'", "model.tokenizer.dir is not set"),
        ("null", "is not set"),
        (".", "., which holds no tokenizer.model"),
    ],
)
def test_a_tokenizer_that_is_not_there(run, folder, words):
    line = run("model.tutor=null", f"+model.tokenizer={{dir:{folder},type:bpe}}")
    assert words in line and "process_asr_text_tokenizer.py" in line


def test_a_layer_that_gives_no_frames(run):
    assert "choose a layer" in run("+model.tutor.rkd.hint_layer=decoder")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.tutor.stages=[{name: rkd, epochs: 1, weights: {hint: 1.0}}]",
            "model.tutor.stages[0].weights.hint is not a loss",
        ),
        ("model.tutor.stages.0.epochs=null", "model.tutor.stages[0] ('rkd') has no length"),
        ("model.tutor.stages.1.weights.ctc=-1", "model.tutor.stages[1].weights.ctc must be 0 or more"),
        ("+model.tutor.skd.divergense=kl", "did you mean 'divergence'?"),
        ("+model.tutor.skd.temperature=hot", "model.tutor.skd.temperature"),
    ],
)
def test_a_section_that_makes_no_sense(run, override, words):
    assert words in run(override)


def manifest(folder: Path, *lines: str) -> str:
    (folder / "bad.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"model.train_ds.manifest_filepath={folder / 'bad.jsonl'}"


def test_manifests_with_mistakes(run, corpus, tmp_path):
    good = json.dumps({"audio_filepath": str(corpus / "train0.wav"), "duration": 0.9, "text": "aa c"})
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "short.wav", np.zeros(160), 16000)

    def row(audio: str, duration: float) -> str:
        return json.dumps({"audio_filepath": audio, "duration": duration, "text": "a"})

    assert "bad.jsonl line 2: there is no audio file" in run(manifest(tmp_path, good, row("gone.wav", 1.0)))
    assert "bad.jsonl line 3 is not JSON" in run(manifest(tmp_path, good, good, "{'audio"))
    assert "empty.wav is empty" in run(manifest(tmp_path, row("empty.wav", 0.0)))
    assert "10 ms of audio, less than one frame of the student (20 ms)" in run(
        manifest(tmp_path, row("short.wav", 0.01))
    )
    assert "there is no manifest" in run("model.train_ds.manifest_filepath=/no/train.jsonl")
    assert "model.validation_ds.manifest_filepath is not set" in run(
        "model.validation_ds.manifest_filepath='???'"
    )


def test_the_script_as_a_user_runs_it(corpus, teacher_file, tmp_path):
    """One real process, so that nothing above depends on being called from a test."""
    config = {"model": student_config(corpus, teacher_file), "trainer": TRAINER}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "student.yaml")
    command = [sys.executable, str(SCRIPT), f"--config-path={tmp_path}", "--config-name=student"]
    done = subprocess.run(
        [*command, "+model.tutor.skd={divergence: l3}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "error: model.tutor.skd.divergence is 'l3'; choose from l2, kl, guided_ctc." in done.stderr
    assert "Traceback" not in done.stderr


class _Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["resumed", "resume_from_checkpoint", "begun from", "begun from parts"])
def test_a_checkpoint_of_foreign_code_runs_nothing(run: Run, tmp_path: Path, how: str) -> None:
    """Lightning would unpickle what `exp_manager` finds in the run's folder."""
    evil = tmp_path / "runs" / "run" / "checkpoints" / "run-last.ckpt"
    if how != "resumed":
        evil = tmp_path / "evil.ckpt"
    evil.parent.mkdir(parents=True, exist_ok=True)
    proof = tmp_path / "ran"
    torch.save({"state_dict": {}, "hyper_parameters": {}, "extra": _Touch(proof)}, evil)
    overrides = {
        "resumed": ["+exp_manager.resume_if_exists=true"],
        "resume_from_checkpoint": [
            "+exp_manager.resume_if_exists=true",
            "+exp_manager.resume_ignore_no_checkpoint=true",
            f"+exp_manager.resume_from_checkpoint={evil}",
        ],
        "begun from": [f"+init_from_ptl_ckpt={evil}"],
        "begun from parts": [f"+init_from_ptl_ckpt.first.path={evil}"],
    }[how]
    message = run(*overrides)
    assert str(evil) in message and "system" in message and "it was not opened" in message
    assert not proof.exists()
    torch.load(evil, weights_only=False)
    assert proof.exists(), "this test's checkpoint is one that runs"
