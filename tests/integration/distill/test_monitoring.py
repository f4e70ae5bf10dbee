# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard and Weights & Biases get of a distillation, and that it changes nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from nemo.utils import logging

from nemo_tutornet.distill import monitoring
from nemo_tutornet.distill.monitoring import TeacherOutput, agreement
from nemo_tutornet.nemo_io.layers import Capture
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import LABELS, save_teacher, student_config, teacher_config
from tests.integration.recorder import same, state_of

pytest.importorskip("matplotlib")


def _logged(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def _config(corpus: Path, teacher: Path, **log: Any) -> dict[str, Any]:
    config = student_config(corpus, teacher, log=log)
    config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
    return config


def _count_teacher(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    targets = LiveTeacher.targets

    def counted(self: LiveTeacher, batch: Any, request: Any) -> Any:
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            calls.append(len(batch.signal))
        return targets(self, batch, request)

    monkeypatch.setattr(LiveTeacher, "targets", counted)
    return calls


def test_tensorboard_gets_terms_stages_agreement_and_pictures(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    calls = _count_teacher(monkeypatch)
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    model = make_student(_config(corpus, teacher_file), max_epochs=3, logger=logger)
    model.trainer.fit(model)
    logger.finalize("success")
    found = _logged(tmp_path)
    steps = {
        name: [event.step for event in found.Scalars(name)]
        for name in ("train_rkd", "train_skd", "train_ctc", "train_loss", "tutor_stage")
    }
    assert steps["train_rkd"] == [0, 1, 2, 3] and steps["train_skd"] == steps["train_ctc"] == [*range(4, 12)]
    assert steps["train_loss"] == steps["tutor_stage"] == [*range(12)]
    assert [event.value for event in found.Scalars("tutor_stage")] == [0.0] * 4 + [1.0] * 8
    names = found.Tensors("tutor_stage_name/text_summary")
    assert [(event.step, event.tensor_proto.string_val[0]) for event in names] == [(1, b"rkd"), (5, b"skd")]
    for name in ("val_teacher_agreement", "val_wer_to_teacher"):
        assert len(found.Scalars(name)) == 3
    assert all(0 <= event.value <= 1 for event in found.Scalars("val_teacher_agreement"))
    assert [event.step for event in found.Images("posteriors")] == [4, 8, 12]
    assert calls == [2], "the teacher runs once over the two validation utterances"


def test_the_students_output_is_compared_and_not_an_intermediate_layer(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    """With InterCTC, NeMo runs the decoder once more on each intermediate layer."""
    compared: list[list[torch.Tensor]] = []
    monkeypatch.setattr(monitoring, "agreement", lambda student, *_: compared.append(student))
    config = _config(corpus, teacher_file)
    config["interctc"] = {"loss_weights": [0.3], "apply_at_layers": [1]}
    config["encoder"]["jasper"][1]["filters"] = config["encoder"]["jasper"][2]["filters"] = 16
    config["decoder"]["feat_in"] = 16
    model = make_student(config, max_epochs=1, logger=TensorBoardLogger(tmp_path))
    model.trainer.fit(model)
    signal, lengths = next(iter(model._validation_dl))[:2]
    with torch.no_grad():
        log_probs, frames, _ = model.cpu().eval()(input_signal=signal, input_signal_length=lengths)
    (found,) = compared
    for mine, row, length in zip(found, log_probs, frames, strict=True):
        torch.testing.assert_close(mine, row[:length], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stopped", [True, False])
def test_nothing_of_a_validation_stays_on_the_student(stopped, corpus, teacher_file, make_student, tmp_path):
    """Also where the training is stopped between the two hooks of a validation batch."""

    class Stop(Callback):
        def on_validation_batch_end(self, *_: Any) -> None:
            if stopped:
                raise KeyboardInterrupt

    logger = TensorBoardLogger(tmp_path)
    model = make_student(_config(corpus, teacher_file), max_epochs=1, logger=logger, callbacks=[Stop()])
    before = [len(module._forward_hooks) for module in (model.encoder, model.decoder)]
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        model.trainer.fit(model)
    assert [len(module._forward_hooks) for module in (model.encoder, model.decoder)] == before
    (monitor,) = [one for one in model.trainer.callbacks if isinstance(one, monitoring.DistillationMonitor)]
    assert not any(isinstance(value, (Capture, tuple)) for value in vars(monitor).values())


def test_wandb_gets_a_picture_and_the_stage(corpus, teacher_file, make_student, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kept: list[dict[str, Any]] = []
    logger = WandbLogger(project="a", save_dir=tmp_path, offline=True)
    log = type(logger.experiment).log
    monkeypatch.setattr(
        type(logger.experiment),
        "log",
        lambda self, data, *a, **k: (kept.append(data), log(self, data, *a, **k))[1],
    )
    model = make_student(_config(corpus, teacher_file), max_epochs=1, logger=logger)
    model.trainer.fit(model)
    wandb.finish()
    assert [data["tutor_stage_name"] for data in kept if "tutor_stage_name" in data] == ["rkd"]
    assert any("train_rkd" in data for data in kept) and any("val_teacher_agreement" in data for data in kept)
    (picture,) = [data for data in kept if "posteriors" in data]
    assert picture["trainer/global_step"] == 4 and isinstance(picture["posteriors"][0], wandb.Image)
    assert list(tmp_path.rglob("posteriors*.png"))


def test_a_training_is_the_same_with_and_without(corpus, teacher_file, make_student, tmp_path):
    states = []
    for log in ({}, {"agreement": 0, "posteriors": False}):
        logger = TensorBoardLogger(tmp_path / str(len(states)))
        # Two steps before the first validation and two after it.
        model = make_student(
            _config(corpus, teacher_file, **log), max_steps=4, logger=logger, val_check_interval=2
        )
        torch.manual_seed(5)
        model.trainer.fit(model)
        states.append({**state_of(model), "random": torch.get_rng_state()})
    assert same(*states)


def test_nothing_of_the_teacher_in_validation_where_it_is_off(
    corpus, teacher_file, make_student, tmp_path, monkeypatch
):
    calls = _count_teacher(monkeypatch)
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    model = make_student(_config(corpus, teacher_file, agreement=0), max_epochs=1, logger=logger)
    model.trainer.fit(model)
    logger.finalize("success")
    found = _logged(tmp_path)
    assert not calls and "val_teacher_agreement" not in found.Tags()["scalars"]
    assert found.Tags()["images"] == ["posteriors"], "the student's own are drawn"


def test_what_cannot_be_logged_is_said_once(corpus, make_student, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *_: said.append(str(text)))
    monkeypatch.setattr(monitoring, "can_draw", lambda: False)
    teacher = save_teacher(teacher_config(corpus, labels=[*LABELS, "#"]), tmp_path / "other.nemo")
    config = _config(corpus, teacher)
    config["tutor"]["stages"] = [{"name": "rkd", "weights": {"rkd": 1.0}}]
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    model = make_student(config, max_epochs=2, logger=logger)
    model.trainer.fit(model)
    logger.finalize("success")
    printed = [text for text in said if text.startswith("No ")]
    assert printed == [
        "No agreement with the teacher is logged on validation: the teacher has other labels than the "
        "student (`nemo-tutornet adapt` makes an adapter).",
        "No pictures of posteriors are logged: they need matplotlib (pip install matplotlib).",
    ]
    assert "images" not in _logged(tmp_path).Tags() or not _logged(tmp_path).Tags()["images"]


def test_agreement_counts_frames_on_which_the_teacher_speaks():
    def log_probs(best: list[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(best), 4).float().clamp(min=1e-3).log()

    def decode(labels: list[int]) -> str:
        return "".join("ab "[label] for label in labels)

    outputs = [
        TeacherOutput(torch.tensor([0, 3, 2, 1, 1]), "a b", None),
        TeacherOutput(torch.tensor([3, 3]), "", None),  # no text, so there is no word to compare
    ]
    found = agreement([log_probs([0, 0, 2, 1, 3]), log_probs([1, 3])], outputs, decode)
    assert found is not None and found.frames == 3 / 4 and found.wer == 0.0
    found = agreement([log_probs([1, 3, 2, 1, 0])], outputs[:1], decode)
    assert found is not None and found.frames == 2 / 4 and found.wer == 1.0
    assert agreement([log_probs([0, 3])], outputs[1:], decode) is None
