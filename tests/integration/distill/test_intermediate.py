# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Inter-KD: heads inside the student, which train with it and do not leave with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModel

from nemo_tutornet import TutorError
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.functional import frame_weighting, losses
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from tests.conftest import LABELS, student_config
from tests.integration.recorder import Recorder
from tests.integration.students import of_kind

LAYERS = ["encoder.encoder.0", "encoder.encoder.1"]
SKD = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]
THREE = [
    {"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}},
    {"name": "ctc", "epochs": 1, "weights": {"ctc": 1.0}},
    {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}},
]


def head_parameters(model: Any) -> list[torch.nn.Parameter]:
    return [p for head in model.distiller.objective.heads for p in head.parameters()]


def heads_of(model):
    return {
        path: [p.detach().clone() for p in head.parameters()]
        for path, head in zip(LAYERS, model.distiller.objective.heads, strict=True)
    }


def same(a, b):
    return all(torch.equal(x, y) for path in LAYERS for x, y in zip(a[path], b[path], strict=True))


def test_each_heads_losses_are_those_of_its_own_posteriors(corpus, teacher_file, make_student):
    config = student_config(
        corpus,
        teacher_file,
        SKD,
        skd={"divergence": "kl", "intermediate_layers": LAYERS, "intermediate_weight": 0.5},
    )
    config.pop("spec_augment")
    model = make_student(config)
    model.setup("fit")
    distiller, batch = model.distiller, next(iter(model._train_dl))
    named = TrainingBatch.from_nemo(batch)
    stage = distiller.schedule.stages[0]
    targets = distiller.teacher_targets(stage, named)
    seen = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda m, a, out, path=path: seen.update({path: out[0][-1]})
        )
        for path in LAYERS
    ]
    with distiller.capture(model, named) as student:
        log_probs, lengths, _ = model(input_signal=batch[0], input_signal_length=batch[1])
        ctc_loss = student.ctc_loss(log_probs, lengths, batch[2], batch[3])
        terms = distiller.losses(stage, student, targets, ctc_loss)
    total = terms.pop("loss")
    for handle in handles:
        handle.remove()
    assert set(terms) == {"ctc", "skd", "inter_ctc", "inter_skd"}

    ctc, skd = [], []
    ctc_of = torch.nn.CTCLoss(blank=len(LABELS), reduction="none", zero_infinity=True)
    posteriors = distiller.match.align_posteriors(
        targets.log_probs, targets.lengths, log_probs.shape[1], distiller.match.student_encoder
    )
    mask = frame_weighting.frame_mask(lengths, log_probs.shape[1])
    for path, head in zip(LAYERS, model.distiller.objective.heads, strict=True):
        own = torch.einsum("vd,bdt->btv", head.weight[..., 0], seen[path]) + head.bias
        own = own.log_softmax(dim=-1)
        ctc.append(float(ctc_of(own.transpose(0, 1), batch[2], lengths, batch[3]).mean()))
        skd.append(float(losses.skd_kl(own, posteriors, mask).mean()))
    logs = {f"train_{name}": float(value) for name, value in terms.items()}
    assert logs["train_inter_ctc"] == pytest.approx(sum(ctc) / 2, rel=1e-5)
    assert logs["train_inter_skd"] == pytest.approx(sum(skd) / 2, rel=1e-5)
    expected = (
        logs["train_ctc"]
        + 0.25 * logs["train_skd"]
        + 0.5 * (logs["train_inter_ctc"] + 0.25 * logs["train_inter_skd"])
    )
    assert float(total) == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head_parameters(model))
    assert model.encoder.encoder[0].mconv[0].conv.weight.grad.abs().sum() > 0


def test_heads_move_in_their_stage_and_rest_in_the_others(corpus, teacher_file, make_student, tmp_path):
    recorder, heads = Recorder(), []
    config = student_config(corpus, teacher_file, THREE, skd={"intermediate_layers": LAYERS})
    model = make_student(config, max_epochs=3, callbacks=[recorder], folder=tmp_path)
    recorder.on_train_epoch_end = lambda trainer, module: heads.append(heads_of(module))
    recorder.on_train_start = lambda trainer, module: heads.append(heads_of(module))
    model.trainer.fit(model)
    assert same(heads[0], heads[1]) and same(heads[1], heads[2]) and not same(heads[2], heads[3])
    logged = [{name for name in step if name.startswith("train_")} for step in recorder.steps]
    assert logged[0] == {"train_loss", "train_rkd", "train_rkd_r2"}
    assert logged[4] == {"train_loss", "train_ctc"}
    assert logged[8] == {"train_loss", "train_ctc", "train_skd", "train_inter_ctc", "train_inter_skd"}
    optimized = {id(p) for group in model._optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in head_parameters(model)} < optimized

    # What leaves is the stock student; what stays in the `.ckpt` comes back.
    stock = EncDecCTCModel.restore_from(str(next(tmp_path.rglob("run.nemo"))), map_location="cpu")
    assert stock.state_dict().keys() == model.state_dict().keys() and not any(
        "head" in key for key in stock.state_dict()
    )
    (last,) = tmp_path.rglob("*-last.ckpt")
    saved = load_lightning_checkpoint(last)
    assert set(saved["tutor"]) == {
        "projection",
        "stage",
        "decoder_trained",
        "decoder_is_random",
        "consistent_since",
        "teachers",
        *(f"head {path}" for path in LAYERS),
    }
    resumed = make_student(config, max_epochs=4, folder=tmp_path)
    begun = []
    resumed.on_train_start = lambda: begun.append(heads_of(resumed))
    resumed.trainer.fit(resumed)
    assert same(begun[0], heads[3])


def test_resuming_with_another_layer_is_refused(corpus, teacher_file, make_student, tmp_path):
    model = make_student(
        student_config(corpus, teacher_file, SKD, skd={"intermediate_layers": LAYERS[:1]}),
        max_epochs=1,
        folder=tmp_path,
    )
    model.trainer.fit(model)
    other = make_student(
        student_config(corpus, teacher_file, SKD, skd={"intermediate_layers": LAYERS}),
        max_epochs=2,
        folder=tmp_path,
    )
    with pytest.raises(TutorError, match=r"the checkpoint's head encoder\.encoder\.1 is not there"):
        other.trainer.fit(other)


def test_a_head_on_frames_of_another_rate(corpus, teacher_file, make_student):
    """Inside a Citrinet frames are 20 and 40 ms long before they are 80."""
    config = of_kind("citrinet", student_config(corpus, teacher_file, SKD, pool_frames=True))
    config["tutor"]["skd"] = {"intermediate_layers": ["encoder.encoder.1", "encoder.encoder.2"]}
    recorder = Recorder()
    model = make_student(config, max_epochs=1, callbacks=[recorder])
    model.trainer.fit(model)
    assert [layer.frame_ms for layer in model.distiller.match.heads] == [20.0, 40.0]
    assert all(
        0 < step["train_inter_skd"] < 1e4 and 0 < step["train_inter_ctc"] < 1e4 for step in recorder.steps
    )


def test_a_layer_that_does_not_exist(corpus, teacher_file, make_student):
    model = make_student(
        student_config(corpus, teacher_file, SKD, skd={"intermediate_layers": ["encoder.encoder.7"]})
    )
    with pytest.raises(
        TutorError,
        match=r"^model\.tutor\.skd\.intermediate_layers\[0\]: there is no layer 'encoder\.encoder\.7'",
    ):
        model.setup("fit")
