# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that an older version wrote are still read: a cache, a run that was interrupted, a summary
(`data/README`).
"""

from __future__ import annotations

import contextlib
import json
import lzma
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.utterances import Utterance
from nemo_tutornet.export.summary import check_summary
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.teachers.cached import CachedTeacher
from nemo_tutornet.teachers.targets import TargetRequest

DATA = Path(__file__).parent / "data"
RATE = 8000
# Name, samples and text of each utterance.
SPOKEN = (("one", 4000, "ab"), ("two", 3210, "b ca"), ("three", 5120, "cab"))
STEPS = 9  # of the whole run: three epochs


def write_corpus(folder: Path) -> None:
    """The audio that the cache's teacher heard, and its manifest in a folder of its own.

    NeMo leaves a path as it stands where no such file is below the manifest's folder, so the cache's keys are
    these relative paths, and the run needs `folder` as its working folder.
    """
    for name in ("audio", "manifests"):
        (folder / name).mkdir(parents=True)
    rows = []
    for i, (name, samples, text) in enumerate(SPOKEN):
        time = np.arange(samples) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (300 + 200 * i) * time) + 0.2 * np.sin(
            2 * np.pi * (1100 + 1500 * time) * time
        )
        soundfile.write(folder / "audio" / f"{name}.wav", np.round(20000 * wave).astype(np.int16), RATE)
        rows.append({"audio_filepath": f"audio/{name}.wav", "duration": samples / RATE, "text": text})
    manifest = folder / "manifests" / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*callbacks: Callback) -> tuple[Any, Any]:
    """The student of `data/student.yaml` and its trainer, in the corpus's folder."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )
    # The key has another name since; the sentence that says so has its own test.
    config = Path("student.yaml").read_text(encoding="utf-8").replace("at_layers:", "intermediate_layers:")
    return TutorCTCModel(OmegaConf.create(config), trainer=trainer), trainer


class Steps(Callback):
    """Keeps what is there when a run begins and the stage of each step; may interrupt the run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stages: list[str] = []
        self.begin: dict[str, Any] = {}
        self._stop_after = stop_after

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.begin = {"step": trainer.global_step, **module.distiller.state()}
        self.begin["projection"] = {name: value.clone() for name, value in self.begin["projection"].items()}

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        # Here Lightning counts the batches before this one as done, and no other.
        if trainer.global_step == self._stop_after:
            trainer.save_checkpoint("run.ckpt")
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.stages.append(module.distiller.schedule.stages[module.distiller.stage].name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the old run: corpus, cache, config, `run.ckpt`, `student.nemo` and its
    summary.
    """
    write_corpus(tmp_path)
    shutil.copytree(DATA / "cache", tmp_path / "cache")
    for name in ("student.yaml", "student.json"):
        shutil.copy(DATA / name, tmp_path)
    for packed in DATA.glob("*.xz"):
        (tmp_path / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_old_cache_is_read(folder: Path) -> None:
    expected = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
    teacher = CachedTeacher(TeacherConfig(model_path="", cache="cache"))
    keys = [Utterance(f"audio/{name}.wav", 0.0, samples / RATE) for name, samples, _ in SPOKEN]
    everything = TargetRequest(hidden=True, posteriors=True, hypotheses=True)
    teacher.check(everything, SimpleNamespace(is_iterable=False, manifest_utterances=keys))
    lengths = torch.tensor([samples for _, samples, _ in SPOKEN])
    batch = TrainingBatch(torch.zeros(len(keys), 1), lengths, utterances=keys)
    given = teacher.targets(batch, everything)
    assert given.lengths.tolist() == expected["frames"]
    assert [one.text for one in given.hypotheses] == expected["texts"]
    assert [one.confidence for one in given.hypotheses] == pytest.approx(expected["confidences"], abs=1e-6)
    for row, frames in enumerate(expected["frames"]):
        posteriors = given.log_probs[row, :frames].exp()
        torch.testing.assert_close(
            posteriors.mean(0), torch.tensor(expected["posteriors"][row]), rtol=0, atol=1e-5
        )
        hidden = given.hidden[row, :, :frames].mean(1)
        torch.testing.assert_close(hidden, torch.tensor(expected["hidden"][row]), rtol=0, atol=1e-5)
    assert teacher.ctc_projection().weight.shape == (len(teacher.labels) + 1, given.hidden.shape[1], 1)
    assert float(teacher.ctc_projection().weight.sum()) == pytest.approx(expected["head"], abs=1e-5)


def test_an_old_run_goes_on(folder: Path) -> None:
    saved = load_lightning_checkpoint(folder / "run.ckpt")
    state = saved["tutor"]
    assert (saved["global_step"], state["stage"], state["decoder_trained"]) == (4, "skd", True)
    steps = Steps()
    model, trainer = run(steps)
    trainer.fit(model, ckpt_path="run.ckpt")
    # Since then, a state also says whether the decoder is random, and when consistency began.
    new = {"step", "decoder_is_random", "consistent_since"}
    assert steps.begin["step"] == 4 and steps.begin.keys() == {*new, *state}
    assert (steps.begin["stage"], steps.begin["decoder_trained"]) == ("skd", True)
    assert not steps.begin["decoder_is_random"] and steps.begin["consistent_since"] == 0
    assert steps.begin["teachers"] == state["teachers"]
    for name in ("projection", "head encoder.encoder.0"):
        assert steps.begin[name].keys() == state[name].keys()
    assert all(
        torch.equal(steps.begin["projection"][name], value) for name, value in state["projection"].items()
    )
    assert trainer.global_step == STEPS and steps.stages == ["skd"] * 2 + ["ctc"] * 3
    # RKD was the mean over frames, and the weights of the run's config are for that.
    assert model.distiller.objective.losses["rkd"].reduction == "frame_mean"


def test_a_new_run_is_interrupted_in_the_same_stage(folder: Path) -> None:
    """`run.ckpt` is of this very schedule."""
    steps = Steps(stop_after=4)
    model, trainer = run(steps)
    (folder / "run.ckpt").unlink()
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(model)
    assert steps.stages == ["rkd"] * 2 + ["skd"] * 2
    assert load_lightning_checkpoint(folder / "run.ckpt")["tutor"]["stage"] == "skd"


def test_an_old_summary_is_of_its_student(folder: Path) -> None:
    checks = check_summary(folder / "student.json", folder / "student.nemo")
    assert [check.name for check in checks] == ["summary", "sha256"]
    assert all(check.passed for check in checks), checks
