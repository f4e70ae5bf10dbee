# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student in training: stages, losses, the teacher's seclusion."""

from __future__ import annotations

import gc
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nemo.collections.asr.models import EncDecCTCModel
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel, TutorError
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import STOCK_CHAR
from tests.conftest import ACCELERATOR, LABELS, save_teacher, student_config, teacher_config, with_bad_audio
from tests.integration.recorder import RKD, SKD, Recorder, same, state_of


def test_each_stage_computes_its_losses_and_no_others(corpus, teacher_file, make_student, monkeypatch):
    recorder = Recorder()
    stages = [
        RKD | {"steps": 3},
        {"name": "ctc", "weights": {"ctc": 0.5}, "steps": 2},
        SKD | {"name": "last"},
    ]
    model = make_student(student_config(corpus, teacher_file, stages), max_epochs=2, callbacks=[recorder])
    calls = {"ctc": 0, "teacher": 0}
    ctc = model.loss.forward
    monkeypatch.setattr(
        model.loss, "forward", lambda **kw: (calls.__setitem__("ctc", calls["ctc"] + 1), ctc(**kw))[1]
    )
    model.setup("fit")
    monkeypatch.setattr(
        "nemo_tutornet.teachers.live.LiveTeacher.targets",
        _counting(type(model.distiller.teacher).targets, calls),
    )
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    terms = [{k for k in step if k in ("train_rkd", "train_skd", "train_ctc")} for step in recorder.steps]
    assert terms == [{"train_rkd"}] * 3 + [{"train_ctc"}] * 2 + [{"train_ctc", "train_skd"}] * 3
    assert calls == {"ctc": 5, "teacher": 6}
    for step in recorder.steps[5:]:
        assert step["train_loss"] == pytest.approx(step["train_ctc"] + 0.25 * step["train_skd"], rel=1e-5)
    assert all(step["train_loss"] == step["train_rkd"] for step in recorder.steps[:3])
    assert all(step["train_loss"] == pytest.approx(0.5 * step["train_ctc"]) for step in recorder.steps[3:5])


def _counting(function: Any, calls: dict[str, int]) -> Any:
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["teacher"] += 1
        return function(self, *args, **kwargs)

    return counted


def test_the_teachers_decoder_rests_when_nobody_reads_posteriors(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [RKD], rkd={"frame_weighting": "energy"})
    model = make_student(config, max_epochs=1)
    model.setup("fit")
    model.distiller.teacher.model.decoder.forward = lambda **_: pytest.fail("the teacher's decoder ran")
    model.trainer.fit(model)


def test_validation_and_transcription_do_not_run_the_teacher(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file), max_epochs=2)
    model.setup("fit")
    teacher = model.distiller.teacher.model
    encoder = teacher.encoder.forward_internal
    teacher.encoder.forward_internal = lambda *a, **kw: (
        encoder(*a, **kw) if model.training else pytest.fail("the teacher ran")
    )
    model.trainer.fit(model)
    model.trainer.validate(model, verbose=False)
    model.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)


def test_the_teacher_stays_as_the_file_has_it_and_out_of_everything(
    corpus, teacher_file, make_student, tmp_path
):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=2)
    model.trainer.fit(model)
    model.trainer.validate(model, verbose=False)
    model.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)
    model.train()
    teacher = model.distiller.teacher.model
    assert same(state_of(teacher), state_of(restore_ctc(teacher_file)))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())

    own = {id(p) for p in model.parameters()}
    assert own.isdisjoint(id(p) for p in teacher.parameters())
    optimized = {id(p) for group in model._optimizer.param_groups for p in group["params"]}
    assert optimized == own
    assert {id(p) for p in model.distiller.projection.parameters()} < optimized

    fresh = make_student(student_config(corpus, None))
    assert list(model.state_dict()) == list(fresh.state_dict())
    (last,) = tmp_path.rglob("*-last.ckpt")
    assert list(load_lightning_checkpoint(last)["state_dict"]) == list(fresh.state_dict())
    (nemo,) = tmp_path.rglob("*.nemo")
    assert str(teacher_file).encode() not in nemo.read_bytes()
    assert str(corpus).encode() not in nemo.read_bytes()
    exported = EncDecCTCModel.restore_from(str(nemo), map_location="cpu")
    assert (
        type(exported) is EncDecCTCModel and exported.cfg.target == STOCK_CHAR and "tutor" not in exported.cfg
    )
    assert list(exported.state_dict()) == list(fresh.state_dict())


def test_a_student_is_restored_and_used_without_its_teacher(corpus, teacher_file, make_student, tmp_path):
    gone = tmp_path / "gone.nemo"
    gone.write_bytes(teacher_file.read_bytes())
    model = make_student(student_config(corpus, gone), folder=tmp_path / "run", max_epochs=2)
    model.trainer.fit(model)
    gone.unlink()
    (nemo,), (last,) = tmp_path.rglob("run.nemo"), tmp_path.rglob("*-last.ckpt")
    restored = TutorCTCModel.restore_from(str(nemo), map_location="cpu")
    assert type(restored) is TutorCTCModel and restored.distiller is None
    restored.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)
    loaded = TutorCTCModel.load_from_checkpoint(str(last), map_location="cpu", weights_only=False)
    assert same(state_of(loaded), state_of(model))
    loaded.set_trainer(pl.Trainer(logger=False, accelerator="cpu"))
    with pytest.raises(TutorError, match=r"there is no file .*gone\.nemo"):
        loaded.setup("fit")


def test_without_a_tutor_section_training_is_nemos(corpus, make_student):
    config = student_config(corpus, None)
    config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
    states = []
    for model_class in (TutorCTCModel, EncDecCTCModel):
        trainer = make_student(config, max_steps=3).trainer
        torch.manual_seed(5)
        model = model_class(OmegaConf.create({"model": config}).model, trainer=trainer)
        trainer.fit(model)
        states.append(state_of(model))
    assert same(*states)


def test_the_student_sees_the_same_batches_with_and_without_a_teacher(corpus, teacher_file, make_student):
    orders = []
    for teacher in (None, teacher_file):
        model = make_student(student_config(corpus, teacher), max_epochs=1)
        torch.manual_seed(7)
        model.setup("fit")
        orders.append([batch[1].tolist() for batch in model._train_dl])
    assert orders[0] == orders[1]


def test_hint_and_guided_layers_inside_the_encoders(corpus, teacher_file, make_student):
    layers = {"hint_layer": "encoder.layers.0", "guided_layer": "encoder.encoder.1"}
    recorder = Recorder()
    model = make_student(student_config(corpus, teacher_file, rkd=layers), max_epochs=2, callbacks=[recorder])
    model.trainer.fit(model)
    assert (model.distiller.projection.in_channels, model.distiller.projection.out_channels) == (16, 24)
    assert model.distiller.match.hint.time_axis == 1 and model.distiller.match.guided.time_axis == 2
    assert "must both be the encoder's output" in model.distiller.match.no_warm_start
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in recorder.steps)


def test_auto_frame_weighting_looks_at_the_hint_layer(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file))
    model.setup("fit")
    assert model.distiller.match.frame_weighting == "nonblank"
    model = make_student(student_config(corpus, teacher_file, rkd={"hint_layer": "encoder.pre_encode.out"}))
    model.setup("fit")
    assert model.distiller.match.frame_weighting == "energy"


def test_a_teacher_with_its_labels_in_another_order(corpus, teacher_file, make_student, tmp_path):
    """Its decoder's rows are permuted along, so it must teach exactly the same."""
    shuffled = LABELS[10:] + LABELS[:10]
    place = [LABELS.index(label) for label in shuffled] + [len(LABELS)]
    other = save_teacher(teacher_config(corpus, labels=shuffled), tmp_path / "shuffled.nemo")
    model = EncDecCTCModel.restore_from(str(other), map_location="cpu")
    reference = restore_ctc(teacher_file)
    state = state_of(reference)
    for name in ("decoder.decoder_layers.0.weight", "decoder.decoder_layers.0.bias"):
        state[name] = state[name][place]
    model.load_state_dict(state)
    model.save_to(str(other))
    losses = []
    for teacher in (teacher_file, other):
        recorder = Recorder()
        config = student_config(corpus, teacher)
        config.pop("spec_augment")  # NeMo draws its masks from an unseeded generator
        student = make_student(config, max_epochs=2, callbacks=[recorder])
        torch.manual_seed(3)
        student.trainer.fit(student)
        losses.append([step["train_loss"] for step in recorder.steps])
    # A GPU's sums differ from run to run.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if ACCELERATOR == "cpu" else 1e-4)


def test_distillation_lowers_each_loss(corpus, teacher_file, make_student):
    for stage, term in ((RKD, "train_rkd"), ({"name": "skd", "weights": {"skd": 1.0}}, "train_skd")):
        recorder = Recorder()
        model = make_student(
            student_config(corpus, teacher_file, [stage], skd={"divergence": "kl"}),
            max_epochs=15,
            callbacks=[recorder],
        )
        model.trainer.limit_val_batches = 0
        model.trainer.fit(model)
        values = [step[term] for step in recorder.steps]
        assert sum(values[-8:]) < 0.8 * sum(values[:8]), (term, values)


@pytest.mark.parametrize("divergence", ["l2", "kl", "guided_ctc"])
@pytest.mark.parametrize("frames", ["all", "nonblank", "symmetric"])
def test_every_divergence_and_frame_selection_trains(corpus, teacher_file, make_student, divergence, frames):
    recorder = Recorder()
    config = student_config(corpus, teacher_file, [SKD], skd={"divergence": divergence, "frames": frames})
    model = make_student(config, max_steps=2, callbacks=[recorder])
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    assert len(recorder.steps) == 2
    assert all(abs(step["train_skd"]) < 1e6 for step in recorder.steps)


def test_matched_frames_are_what_skd_compares(corpus, teacher_file, make_student):
    """A shift makes SKD of the same student on the same batch smaller, for it includes the frame itself, and
    still trains.
    """
    values = {}
    for shift in (0, 2):
        recorder = Recorder()
        config = student_config(corpus, teacher_file, [SKD], skd={"divergence": "kl", "match_window": shift})
        model = make_student(config, max_steps=2, callbacks=[recorder])
        model.trainer.limit_val_batches = 0
        model.trainer.fit(model)
        values[shift] = recorder.steps[0]["train_skd"]
    assert values[2] < values[0]


@pytest.mark.parametrize("alignment", ["pool_student", "occurrences"])
def test_skd_without_repeated_frames_trains(alignment, corpus, teacher_file, make_student):
    recorder = Recorder()
    skd, stages = {"divergence": "kl", "alignment": alignment}, [{"name": "skd", "weights": {"skd": 1.0}}]
    model = make_student(
        student_config(corpus, teacher_file, stages, skd=skd), max_epochs=6, callbacks=[recorder]
    )
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    values = [step["train_skd"] for step in recorder.steps]
    assert all(value > 0 for value in values) and sum(values[-4:]) < sum(values[:4])


def test_what_the_schedule_makes_useless_is_reported(corpus, teacher_file, make_student, monkeypatch):
    printed: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *_, **__: printed.append(str(message)))
    stages = [RKD | {"epochs": 2}, {"name": "ctc", "weights": {"ctc": 1.0}}]
    config = student_config(corpus, teacher_file, stages, skd={"match_window": 2})
    model = make_student(config, max_epochs=-1, max_steps=3, limit_val_batches=0, accumulate_grad_batches=3)
    model.trainer.fit(model)
    for words in (
        "model.tutor.skd changes match_window, but no stage",
        "Stage 'ctc' is never reached: the stages before it take 2 of 1.5 epochs (3 steps, 2 in an epoch).",
        "The training ended in stage 'rkd'; the stages after it never began: 'ctc'.",
    ):
        assert sum(one.startswith(words) for one in printed) == 1, printed


def test_no_graph_outlives_its_step(corpus, teacher_file, make_student, tmp_path):
    """A loss that is kept would keep all activations of its batch; one of the batches is skipped."""

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            gc.collect()
            kept.append([one for one in gc.get_objects() if type(one) is torch.Tensor and one.grad_fn])

    kept: list[list[torch.Tensor]] = []
    stages = [RKD | {"steps": 2}, {"name": "both", "weights": {"ctc": 1.0, "rkd": 1.0}}]
    config = student_config(corpus, teacher_file, stages, max_nonfinite_share=0.5)
    config["train_ds"].update(manifest_filepath=with_bad_audio(corpus, tmp_path, 3), shuffle=False)
    model = make_student(config, max_epochs=2, limit_val_batches=0, callbacks=[Look()])
    model.trainer.fit(model)
    assert len(kept) == 8 and not any(kept[1:])


def test_meeting_the_teacher_changes_nothing_of_the_student(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file))
    before = state_of(model)
    model.setup("fit")
    assert same(before, state_of(model))
