# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student in training: stages, the teacher's seclusion, checkpoints, interruption."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel, TutorError
from nemo_tutornet.checkpoints import STOCK_CHAR, load_lightning_checkpoint
from nemo_tutornet.pairing import compose_decoder, pointwise_decoder
from nemo_tutornet.teacher import restore_ctc
from tests.conftest import LABELS, save_teacher, student_config, teacher_config

RKD = {"name": "rkd", "weights": {"rkd": 1.0}}
SKD = {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}


class Recorder(Callback):
    """Keeps what each step logged, and can interrupt a run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[dict[str, float]] = []
        self.decoders: list[torch.Tensor] = []
        self._stop_after = stop_after

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        log_dict = module.log_dict

        def keep(values: dict[str, Any], **kwargs: Any) -> None:
            if "train_loss" in values:
                self.steps.append({k: float(v) for k, v in values.items() if k.startswith(("train_", "tutor_"))})
            log_dict(values, **kwargs)

        module.log_dict = keep

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.decoders.append(module.decoder.decoder_layers[0].weight.detach().clone())
        if self._stop_after is not None and len(self.steps) >= self._stop_after:
            raise KeyboardInterrupt


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_stage_computes_its_losses_and_no_others(corpus, teacher_file, make_student, monkeypatch):
    recorder = Recorder()
    stages = [RKD | {"steps": 3}, {"name": "ctc", "weights": {"ctc": 0.5}, "steps": 2}, SKD | {"name": "last"}]
    model = make_student(student_config(corpus, teacher_file, stages), max_epochs=2, callbacks=[recorder])
    calls = {"ctc": 0, "teacher": 0}
    ctc = model.loss.forward
    monkeypatch.setattr(model.loss, "forward", lambda **kw: (calls.__setitem__("ctc", calls["ctc"] + 1), ctc(**kw))[1])
    model.setup("fit")
    monkeypatch.setattr(
        "nemo_tutornet.teacher.Teacher.__call__",
        _counting(type(model.tutor.teacher).__call__, calls),
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
    model.tutor.teacher.model.decoder.forward = lambda **_: pytest.fail("the teacher's decoder ran")
    model.trainer.fit(model)


def test_validation_and_transcription_do_not_run_the_teacher(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file), max_epochs=2)
    model.setup("fit")
    teacher = model.tutor.teacher.model
    encoder = teacher.encoder.forward_internal
    teacher.encoder.forward_internal = lambda *a, **kw: encoder(*a, **kw) if model.training else pytest.fail("the teacher ran")
    model.trainer.fit(model)
    model.trainer.validate(model, verbose=False)
    model.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)


def test_the_teacher_stays_as_the_file_has_it_and_out_of_everything(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=2)
    model.trainer.fit(model)
    model.trainer.validate(model, verbose=False)
    model.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)
    model.train()
    teacher = model.tutor.teacher.model
    assert same(state_of(teacher), state_of(restore_ctc(teacher_file)))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())

    own = {id(p) for p in model.parameters()}
    assert own.isdisjoint(id(p) for p in teacher.parameters())
    optimized = {id(p) for group in model._optimizer.param_groups for p in group["params"]}
    assert optimized == own
    assert {id(p) for p in model.tutor_projection.parameters()} < optimized

    fresh = make_student(student_config(corpus, None))
    assert list(model.state_dict()) == list(fresh.state_dict())
    (last,) = tmp_path.rglob("*-last.ckpt")
    assert list(load_lightning_checkpoint(last)["state_dict"]) == list(fresh.state_dict())
    (nemo,) = tmp_path.rglob("*.nemo")
    assert str(teacher_file).encode() not in nemo.read_bytes()
    assert str(corpus).encode() not in nemo.read_bytes()
    exported = EncDecCTCModel.restore_from(str(nemo), map_location="cpu")
    assert type(exported) is EncDecCTCModel and exported.cfg.target == STOCK_CHAR and "tutor" not in exported.cfg
    assert list(exported.state_dict()) == list(fresh.state_dict())


def test_a_student_is_restored_and_used_without_its_teacher(corpus, teacher_file, make_student, tmp_path):
    gone = tmp_path / "gone.nemo"
    gone.write_bytes(teacher_file.read_bytes())
    model = make_student(student_config(corpus, gone), folder=tmp_path / "run", max_epochs=2)
    model.trainer.fit(model)
    gone.unlink()
    (nemo,), (last,) = tmp_path.rglob("run.nemo"), tmp_path.rglob("*-last.ckpt")
    restored = TutorCTCModel.restore_from(str(nemo), map_location="cpu")
    assert type(restored) is TutorCTCModel and restored.tutor is None
    restored.transcribe([str(corpus / "train0.wav")], batch_size=1, verbose=False)
    loaded = TutorCTCModel.load_from_checkpoint(str(last), map_location="cpu", weights_only=False)
    assert same(state_of(loaded), state_of(model))
    loaded.set_trainer(pl.Trainer(logger=False, accelerator="cpu"))
    with pytest.raises(TutorError, match=r"there is no file .*gone\.nemo"):
        loaded.setup("fit")


def test_warm_start_composes_the_decoder_once_at_the_boundary(corpus, teacher_file, make_student):
    recorder = Recorder()
    model = make_student(student_config(corpus, teacher_file, [RKD | {"epochs": 2}, SKD]), max_epochs=3, callbacks=[recorder])
    composed: list[int] = []
    warm_start = model._warm_start_decoder
    model._warm_start_decoder = lambda tutor: (composed.append(model.trainer.global_step), warm_start(tutor))
    model.trainer.fit(model)
    # After each RKD epoch (before validation and at its end), and once on entering SKD; never after that.
    assert composed == [4, 4, 8, 8, 8]
    first, last_of_rkd, skd = recorder.decoders[0], recorder.decoders[7], recorder.decoders[8:]
    assert torch.equal(recorder.decoders[3], first), "RKD must leave the decoder alone within an epoch"
    assert not torch.equal(recorder.decoders[4], first), "validation must see the composed decoder"
    assert all(torch.equal(recorder.decoders[i], recorder.decoders[4]) for i in (5, 6, 7))
    assert not any(torch.equal(decoder, last_of_rkd) for decoder in skd)


def test_composition_equals_the_teachers_decoder_on_the_projection(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file))
    model.setup("fit")
    theirs, projection = pointwise_decoder(model.tutor.teacher.head), model.tutor_projection
    hidden = torch.randn(3, 20, 7)
    weight, bias = compose_decoder(theirs, projection, None)
    expected = theirs(projection(hidden))
    assert torch.allclose(torch.nn.functional.conv1d(hidden, weight, bias), expected, atol=1e-5)
    order = (*reversed(range(len(LABELS))), len(LABELS))
    weight, bias = compose_decoder(theirs, projection, order)
    assert torch.allclose(torch.nn.functional.conv1d(hidden, weight, bias), expected[:, list(order)], atol=1e-5)


def test_without_warm_start_rkd_leaves_the_decoder_bit_identical(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [RKD], rkd={"warm_start_decoder": False})
    model = make_student(config, max_epochs=2)
    before = state_of(model.decoder)
    model.trainer.fit(model)
    assert same(before, state_of(model.decoder))


def test_a_trained_decoder_is_never_overwritten(corpus, teacher_file, make_student):
    stages = [SKD | {"epochs": 1}, RKD | {"epochs": 1}, SKD | {"name": "again"}]
    model = make_student(student_config(corpus, teacher_file, stages), max_epochs=3)
    model._warm_start_decoder = lambda tutor: pytest.fail("warm start over a trained decoder")
    model.trainer.fit(model)


@pytest.mark.parametrize("stop_after", [2, 6])
def test_an_interrupted_run_resumes_inside_its_stage(corpus, teacher_file, make_student, tmp_path, stop_after):
    """Epochs of 4 steps, RKD for 6 steps and then SKD; interrupted in the first or the second stage."""
    stages = [RKD | {"steps": 5}, SKD]
    saving = {"val_check_interval": 1, "max_epochs": 3}
    model = make_student(
        student_config(corpus, teacher_file, stages), folder=tmp_path, callbacks=[Recorder(stop_after)], **saving
    )
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        model.trainer.fit(model)
    (last,) = tmp_path.rglob("*-last.ckpt")
    saved = load_lightning_checkpoint(last)
    reached = saved["global_step"]
    assert 0 < reached <= stop_after
    assert saved["tutor"]["stage"] == (0 if reached <= 5 else 1)

    recorder = Recorder()
    resumed = make_student(student_config(corpus, teacher_file, stages), folder=tmp_path, callbacks=[recorder], **saving)
    seen: dict[str, Any] = {}

    class AtStart(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen["projection"] = {name: p.detach().clone() for name, p in module.tutor_projection.named_parameters()}
            seen["stage"] = module.tutor.stage
            seen["step"] = trainer.global_step

    resumed.trainer.callbacks.append(AtStart())
    composed: list[int] = []
    warm_start = resumed._warm_start_decoder
    resumed._warm_start_decoder = lambda tutor: (composed.append(resumed.trainer.global_step), warm_start(tutor))
    resumed.trainer.fit(resumed)
    assert seen["step"] == reached and seen["stage"] == saved["tutor"]["stage"]
    assert same(seen["projection"], saved["tutor"]["projection"])
    stages_run = [step["tutor_stage"] for step in recorder.steps]
    assert len(stages_run) == 12 - reached
    assert stages_run == [0.0 if step < 5 else 1.0 for step in range(reached, 12)]
    assert (5 in composed) == (reached <= 5), "the boundary's warm start happens once over both runs"
    assert all(step <= 5 for step in composed)


def test_loading_a_checkpoint_first_and_fitting_later_keeps_the_projection(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=1)
    model.trainer.fit(model)
    (last,) = tmp_path.rglob("*-last.ckpt")
    loaded = TutorCTCModel.load_from_checkpoint(str(last), map_location="cpu", weights_only=False)
    loaded.set_trainer(pl.Trainer(logger=False, accelerator="cpu"))
    loaded.setup("fit")
    assert torch.equal(loaded.tutor_projection.weight, model.tutor_projection.weight)


def test_resuming_with_other_layers_is_refused(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path, max_epochs=1)
    model.trainer.fit(model)
    other = student_config(corpus, teacher_file, rkd={"guided_layer": "encoder.encoder.0"})
    resumed = make_student(other, folder=tmp_path, max_epochs=2)
    with pytest.raises(TutorError, match=r"projection has weight of shape \[24, 20, 1\].*\[24, 16, 1\]"):
        resumed.trainer.fit(resumed)


def test_a_failed_save_leaves_the_old_file_whole(corpus, make_student, tmp_path, monkeypatch):
    model = make_student(student_config(corpus, None))
    path = tmp_path / "student.nemo"
    model.save_to(str(path))
    old = path.read_bytes()
    monkeypatch.setattr("tarfile.TarFile.add", lambda *a, **kw: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        model.save_to(str(path))
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["student.nemo"]


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
    assert (model.tutor_projection.in_channels, model.tutor_projection.out_channels) == (16, 24)
    assert model.tutor.pairing.hint.time_axis == 1 and model.tutor.pairing.guided.time_axis == 2
    assert "must both be the encoder's output" in model.tutor.pairing.no_warm_start
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in recorder.steps)


def test_auto_frame_weighting_looks_at_the_hint_layer(corpus, teacher_file, make_student):
    model = make_student(student_config(corpus, teacher_file))
    model.setup("fit")
    assert model.tutor.pairing.frame_weighting == "nonblank"
    model = make_student(student_config(corpus, teacher_file, rkd={"hint_layer": "encoder.pre_encode.out"}))
    model.setup("fit")
    assert model.tutor.pairing.frame_weighting == "energy"


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
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_distillation_lowers_each_loss(corpus, teacher_file, make_student):
    for stage, term in ((RKD, "train_rkd"), ({"name": "skd", "weights": {"skd": 1.0}}, "train_skd")):
        recorder = Recorder()
        model = make_student(
            student_config(corpus, teacher_file, [stage], skd={"divergence": "kl"}), max_epochs=15, callbacks=[recorder]
        )
        model.trainer.limit_val_batches = 0
        model.trainer.fit(model)
        values = [step[term] for step in recorder.steps]
        assert sum(values[-8:]) < 0.8 * sum(values[:8]), (term, values)


@pytest.mark.parametrize("divergence", ["l2", "kl", "guided"])
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
    """A shift makes SKD of the same student on the same batch smaller, for it includes the frame itself, and still trains."""
    values = {}
    for shift in (0, 2):
        recorder = Recorder()
        config = student_config(corpus, teacher_file, [SKD], skd={"divergence": "kl", "shift": shift})
        model = make_student(config, max_steps=2, callbacks=[recorder])
        model.trainer.limit_val_batches = 0
        model.trainer.fit(model)
        values[shift] = recorder.steps[0]["train_skd"]
    assert values[2] < values[0]


def test_interctc_of_the_student_still_counts(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [SKD])
    config["interctc"] = {"loss_weights": [0.3], "apply_at_layers": [2]}
    recorder = Recorder()
    model = make_student(config, max_steps=2, callbacks=[recorder])
    model.trainer.limit_val_batches = 0
    model.trainer.fit(model)
    assert len(recorder.steps) == 2 and all(step["train_loss"] > 0 for step in recorder.steps)
