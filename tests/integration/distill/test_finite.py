# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A number that is not finite stops a training before it spoils anything, and its cause is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from typer.testing import CliRunner

from nemo_tutornet import TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.teachers.live import LiveTeacher
from tests.conftest import student_config, with_bad_audio
from tests.integration.recorder import RKD, SKD, Recorder, same, state_of


def _stopped(model: Any) -> str:
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(TutorError) as error:
        model.trainer.fit(model)
    after = dict(model.named_parameters())  # with those that exist in training only
    assert model.trainer.global_step == 0 and same(before, {name: after[name] for name in before})
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_audio_that_is_not_finite(corpus: Path, teacher_file, make_student, tmp_path: Path, value: float):
    """With a teacher in each kind of stage, and without one."""
    manifest = with_bad_audio(corpus, tmp_path, 3, value)
    for stage in (RKD, SKD, None):
        config = student_config(corpus, teacher_file if stage else None, [stage] if stage else None)
        config["train_ds"].update(manifest_filepath=manifest, batch_size=8)
        model = make_student(config, folder=tmp_path / (stage["name"] if stage else "ctc"))
        message = _stopped(model)
        assert message.startswith("step 1: the loss is not finite (") and " nan" in message
        assert f"the audio has NaN or infinite values in {tmp_path / 'bad.wav'} from 0 s for " in message
        assert message.endswith("; fix the audio or leave it out.")
        assert not [*tmp_path.rglob("*.nemo"), *tmp_path.rglob("*.ckpt")], "nothing spoilt is saved"


def test_a_teacher_that_is_not_finite(corpus, teacher_file, make_student, monkeypatch):
    targets = LiveTeacher.targets

    def broken(self: LiveTeacher, batch: Any, request: Any) -> Any:
        given = targets(self, batch, request)
        log_probs = given.log_probs.clone()
        log_probs[1, 3] = float("nan")
        return replace(given, log_probs=log_probs)

    monkeypatch.setattr(LiveTeacher, "targets", broken)
    config = student_config(corpus, teacher_file, [SKD])
    config["train_ds"]["shuffle"] = False
    message = _stopped(make_student(config))
    assert f"the teacher's output has NaN or infinite values in {corpus / 'train1.wav'} from" in message


def test_a_student_that_diverged(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [{"name": "ctc", "weights": {"ctc": 1.0, "skd": 1.0}}])
    config["train_ds"].update(shuffle=False, batch_size=8)
    model = make_student(config)
    with torch.no_grad():
        model.decoder.decoder_layers[0].bias[:] = float("inf")
    with pytest.raises(TutorError) as error:
        model.trainer.fit(model)
    assert "so the student diverged, on " in str(error.value)
    assert f"{corpus / 'train0.wav'} from 0 s" in str(error.value) and "and 5 more" in str(error.value)


@pytest.mark.parametrize("stage", [RKD, SKD])
def test_a_skipped_batch_changes_nothing(corpus, teacher_file, make_student, tmp_path: Path, stage: dict):
    """The last of four batches: weights, statistics and the optimizer's state are those of three."""
    config = student_config(corpus, teacher_file, [stage], max_nonfinite_share=0.25)
    config["train_ds"].update(manifest_filepath=with_bad_audio(corpus, tmp_path, 6), shuffle=False)
    config["spec_augment"].update(rect_masks=0)  # NeMo seeds it from the clock
    skipped, without = (
        make_student(config, max_epochs=1, limit_val_batches=0, **more)
        for more in ({}, {"limit_train_batches": 3})
    )
    states = []
    for model in (skipped, without):
        torch.manual_seed(3)
        model.trainer.fit(model)
        optimizer = model.trainer.optimizers[0].state_dict()["state"]
        states.append((state_of(model), optimizer, torch.get_rng_state()))
    assert skipped.trainer.global_step == 4 and same(states[0][0], states[1][0])
    assert states[0][1].keys() == states[1][1].keys() and torch.equal(states[0][2], states[1][2])
    for one, other in zip(states[0][1].values(), states[1][1].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one)


def test_more_than_the_allowed_share_stops(corpus, teacher_file, make_student, tmp_path: Path):
    config = student_config(corpus, teacher_file, [SKD], max_nonfinite_share=0.24)
    config["train_ds"].update(manifest_filepath=with_bad_audio(corpus, tmp_path, 6), shuffle=False)
    model = make_student(config, max_epochs=1)
    with pytest.raises(TutorError, match=r"^step 4: .*bad\.wav.* batch 1 of this epoch .* allows 0\.$"):
        model.trainer.fit(model)


def test_accumulated_batches_lose_the_bad_one_only(corpus, teacher_file, make_student, tmp_path: Path):
    """A stage that leaves the decoder out: a gradient of zero would let weight decay move it."""
    config = student_config(corpus, teacher_file, [RKD], max_nonfinite_share=0.5)
    config["train_ds"].update(manifest_filepath=with_bad_audio(corpus, tmp_path, 6), shuffle=False)
    config["tutor"]["rkd"] = {"warm_start_decoder": False}
    model = make_student(config, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=2)
    moved = Recorder()
    model.trainer.callbacks.append(moved)
    before = model.decoder.decoder_layers[0].weight.detach().clone()
    encoder = model.encoder.encoder[0].mconv[0].conv.weight.detach().clone()
    model.trainer.fit(model)
    assert model.trainer.global_step == 2 and torch.equal(moved.decoders[-1], before)
    after = state_of(model)
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert not torch.equal(model.encoder.encoder[0].mconv[0].conv.weight, encoder)
    optimizer = model.trainer.optimizers[0].state_dict()["state"]
    assert all(float(state["step"]) == 2 for state in optimizer.values()), "both steps count"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_gradient_that_is_not_finite(corpus, teacher_file, make_student, share: float):
    """The loss is finite, and after the step no weight would be."""
    config = student_config(corpus, teacher_file, [SKD], max_nonfinite_share=share)
    config["train_ds"]["shuffle"] = False
    model = make_student(config, max_epochs=1, limit_val_batches=0, gradient_clip_val=1.0)
    parameter = model.decoder.decoder_layers[0].bias
    parameter.register_hook(
        lambda gradient: gradient * (float("inf") if model.trainer.global_step == 3 else 1.0)
    )
    if not share:
        with pytest.raises(TutorError) as error:
            model.trainer.fit(model)
        assert str(error.value).startswith("step 4: the gradient of decoder.decoder_layers.0.bias is not")
        assert str(corpus / "train6.wav") in str(error.value) and model.trainer.global_step == 3
        return
    model.trainer.fit(model)
    assert model.trainer.global_step == 4
    assert all(torch.isfinite(value).all() for value in state_of(model).values() if value.is_floating_point())
    assert float(model.trainer.optimizers[0].state[parameter]["step"]) == 3


def test_validation_that_is_not_finite(corpus, make_student, tmp_path: Path):
    config = student_config(corpus, None)
    manifest = with_bad_audio(corpus, tmp_path, 3)
    config["validation_ds"]["manifest_filepath"] = manifest
    model = make_student(config, folder=tmp_path)
    with pytest.raises(TutorError) as error:
        model.trainer.fit(model)
    message = str(error.value)
    assert message.startswith("validation after step 4: the loss is not finite (loss nan): the audio has NaN")
    assert str(tmp_path / "bad.wav") in message and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("command", [["cache"], ["adapt"], ["adapt", "--live"]])
def test_cache_and_adapt_refuse_such_audio(corpus, teacher_file, tmp_path: Path, command: list[str]):
    """The hypothesis of such audio is a finite, empty text."""
    config = student_config(corpus, teacher_file, [{"name": "p", "weights": {"pseudo": 1.0}}])
    config["train_ds"]["manifest_filepath"] = with_bad_audio(corpus, tmp_path, 3)
    whole = {"model": config, "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    arguments = [
        "--config-path",
        str(tmp_path),
        "--config-name",
        "student",
        "--output",
        str(tmp_path / "o.safetensors"),
    ]
    result = CliRunner().invoke(app, [command[0], *arguments, *command[1:]])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert f"the audio has NaN or infinite values in {tmp_path / 'bad.wav'} from 0 s" in result.output
    assert not (tmp_path / "o").is_file()


def test_a_student_that_is_not_finite_is_not_written(corpus, make_student, tmp_path: Path):
    """An optimizer that overflows, with losses and gradients that do not."""
    model = make_student(student_config(corpus, None), folder=tmp_path, max_epochs=1, limit_val_batches=0)

    class Overflow(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index == 3:
                with torch.no_grad():
                    module.encoder.encoder[0].mconv[0].conv.weight[0] = float("nan")

    model.trainer.callbacks.append(Overflow())
    with pytest.raises(TutorError, match=r"after step 4: the student's encoder\.encoder\.0.* nothing is wr"):
        model.trainer.fit(model)
    assert not [*tmp_path.rglob("*.nemo"), *tmp_path.rglob("*.ckpt")]
    with pytest.raises(TutorError, match="NaN or infinite"):
        model.save_to(str(tmp_path / "student.nemo"))
    assert not list(tmp_path.rglob("*.nemo"))


def test_a_run_without_nonsense_is_not_stopped(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file), max_epochs=1)
    model.trainer.fit(model)
    assert all(torch.isfinite(value).all() for value in state_of(model).values() if value.is_floating_point())
