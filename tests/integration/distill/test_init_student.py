# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A student that begins with layers of its teacher."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.classes.common import Serialization
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel
from nemo_tutornet.commands.cache_targets import build_cache
from nemo_tutornet.commands.check import check_training
from nemo_tutornet.config import parse_tutor
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.distill import init_student as module
from nemo_tutornet.functional.batch_norm import is_folded
from nemo_tutornet.nemo_io.layers import Capture
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import LABELS, refusal, save_teacher, student_config, teacher_config
from tests.integration.recorder import RKD, SKD, Recorder

REMEDY = "give the student blocks and layers of the teacher's shapes, or leave model.tutor.init out."


def quartznet(corpus: Path, repeated: int, labels: list[str] = LABELS) -> dict[str, Any]:
    """A teacher like the student of `student_config`, with its second block several times."""
    config = student_config(corpus, None)
    del config["train_ds"], config["validation_ds"]
    first, second, last = config["encoder"]["jasper"]
    config["encoder"]["jasper"] = [first, *[second] * repeated, last]
    config["labels"] = config["decoder"]["vocabulary"] = labels
    config["decoder"]["num_classes"] = len(labels)
    return config


@pytest.fixture(scope="module")
def deep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(quartznet(corpus, 3), tmp_path_factory.mktemp("deep") / "deep.nemo")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What NeMo's logger is given."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda line, *_, **__: lines.append(str(line)))
    return lines


def begun(model: Any) -> Any:
    """A student whose training is set up."""
    model.setup("fit")
    return model


def encoded(model: Any, signal: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in eval mode, of the student or its teacher."""
    with torch.no_grad():
        lengths = torch.full((len(signal),), signal.shape[1])
        return model.eval()(input_signal=signal, input_signal_length=lengths)[0]


def printed(log: list[str]) -> str:
    (line,) = [line for line in log if line.startswith("The student is initialised from its teacher: ")]
    return line.removeprefix("The student is initialised from its teacher: ")


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_a_quartznet_begins_with_blocks_of_a_deeper_one(corpus, deep, make_student, log):
    recorder = Recorder()
    stages = [RKD | {"steps": 1}, SKD]
    pair = {"hint_layer": "encoder.encoder.3", "guided_layer": "encoder.encoder.2"}
    init = {"source": "teacher", "fit": False}
    config = student_config(corpus, deep, stages, init=init, rkd={"pairs": [pair]})
    config["encoder"]["jasper"].insert(1, config["encoder"]["jasper"][1])
    model = make_student(config, max_epochs=1, max_steps=2, callbacks=[recorder])
    before = random_state()
    begun(model)
    assert random_state() == before
    assert printed(log) == "blocks 0-3 <- 0, 1, 3, 4; decoder copied; 2 projections start as the identity."
    mine, theirs = model.encoder.state_dict(), model.distiller.teacher.model.encoder.state_dict()
    for name, value in mine.items():
        _, block, *rest = name.split(".")
        origin = ".".join(["encoder", str([0, 1, 3, 4][int(block)]), *rest])
        assert torch.equal(value, theirs[origin]), name
    # What the second pair compares is the output of the teacher's fourth block.
    teacher, audio = model.distiller.teacher, TrainingBatch(torch.randn(1, 16000), torch.tensor([16000]))
    with Capture(teacher.model, "encoder.encoder.3") as block:
        targets = teacher.targets(audio, TargetRequest(hidden=True))
    assert torch.equal(targets.further_hidden[0], block.tensor(2))
    assert not teacher.targets(audio, TargetRequest(posteriors=True)).further_hidden
    # The composed decoder and the copied one are the same at first.
    copied = model.decoder.decoder_layers[0].weight.clone()
    assert torch.equal(copied, model.distiller.teacher.ctc_projection().weight)
    model.distiller.warm_start.apply(model.decoder)
    torch.testing.assert_close(model.decoder.decoder_layers[0].weight, copied)
    model.trainer.fit(model)
    assert len(recorder.steps) == 2 and not torch.equal(recorder.decoders[1], recorder.decoders[0])
    assert len([line for line in log if "initialised" in line]) == 1, (
        "fit() after setup() copies nothing again"
    )


def test_a_conformer_begins_with_every_other_layer(corpus, make_student, tmp_path, log):
    labels = LABELS[::-1]  # the student's labels in another order
    teacher = teacher_config(corpus, labels)
    teacher["encoder"].update(n_layers=3, dropout=0.0, dropout_att=0.0, subsampling="dw_striding")
    path = save_teacher(teacher, tmp_path / "teacher.nemo")
    recorder = Recorder()
    config = student_config(corpus, path, [SKD], init={"source": "teacher"})
    mine = copy.deepcopy(teacher)
    mine["encoder"]["n_layers"] = 2
    mine["preprocessor"]["window_size"] = 0.02
    mine["decoder"]["vocabulary"] = LABELS
    config.update(preprocessor=mine["preprocessor"], encoder=mine["encoder"], decoder=mine["decoder"])
    config.pop("spec_augment")
    model = make_student(config, max_epochs=1, max_steps=2, callbacks=[recorder])
    model.trainer.fit(model)
    assert printed(log) == "layers 0-1 <- 0, 2; decoder copied, its rows in the student's order."
    assert (
        "model.tutor.init copies layers of a teacher with another front end (window in ms 20.0 against "
        "25.0), so the copied first layers see other features than they were trained on; give "
        "model.preprocessor the teacher's values."
    ) in log
    assert len(recorder.steps) == 2
    # In eval mode the student says what its teacher says without its second layer.
    fresh = begun(make_student(config))
    reduced = fresh.distiller.teacher.model
    del reduced.encoder.layers[1]
    reduced.preprocessor = fresh.preprocessor
    signal = torch.randn(2, 16000)
    order = [*reversed(range(len(labels))), len(labels)]
    torch.testing.assert_close(encoded(fresh, signal), encoded(reduced, signal)[..., order])


def test_layers_are_chosen_and_folded_batch_norm_is_unfolded(corpus, make_student, tmp_path, log):
    save_teacher(quartznet(corpus, 2), tmp_path / "teacher.nemo")
    teacher = EncDecCTCModel.restore_from(str(tmp_path / "teacher.nemo"), map_location="cpu").eval()
    for norm in [part for part in teacher.modules() if isinstance(part, torch.nn.BatchNorm1d)]:
        norm.reset_parameters()
        torch.nn.init.normal_(norm.bias, std=0.3)
    teacher.save_to(str(tmp_path / "teacher.nemo"))
    config = student_config(
        corpus, tmp_path / "teacher.nemo", init={"source": "teacher", "layers": [0, 2, 1, 3]}
    )
    config["encoder"]["jasper"] = quartznet(corpus, 2)["encoder"]["jasper"]
    before = random_state()
    model = make_student(config)
    torch.manual_seed(0)
    state = random_state()
    begun(model)
    assert random_state() == state != before
    assert printed(log).startswith("blocks 0-3 <- 0, 2, 1, 3; 6 batch norms un-folded; decoder copied;")
    original = model.distiller.teacher.model
    assert is_folded(original.encoder.encoder[1].mconv[2]), "the teacher itself stays as it was"
    blocks = original.encoder.encoder
    blocks[1], blocks[2] = blocks[2], blocks[1]
    signal = torch.randn(2, 16000)
    torch.testing.assert_close(encoded(model, signal), encoded(original, signal), atol=1e-4, rtol=1e-4)
    norms = [part for part in model.encoder.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert len(norms) == 6 and not any(map(is_folded, norms))
    # The first one's statistics are those of its input on the training set.
    heard = []
    handle = norms[0].register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    for batch in model._train_dl:
        for signal, length in zip(batch[0], batch[1], strict=True):
            encoded(model, signal[None, :length])
    handle.remove()
    values = torch.cat([value[0] for value in heard], dim=1)
    torch.testing.assert_close(norms[0].running_mean, values.mean(1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norms[0].running_var, values.var(1, correction=0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("folded", [False, True], ids=["statistics", "folded"])
def test_blocks_are_fitted_to_those_they_stand_for(corpus, make_student, tmp_path, log, folded):
    """On held-out audio the student's encoder is nearer to its teacher's than the bare copy is."""
    save_teacher(quartznet(corpus, 3), tmp_path / "teacher.nemo")
    teacher = EncDecCTCModel.restore_from(str(tmp_path / "teacher.nemo"), map_location="cpu").eval()
    torch.manual_seed(1)
    for norm in [part for part in teacher.modules() if isinstance(part, torch.nn.BatchNorm1d)]:
        if folded:
            norm.reset_parameters()
        else:
            torch.nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.3)
    teacher.save_to(str(tmp_path / "teacher.nemo"))
    pair = {"hint_layer": "encoder.encoder.3", "guided_layer": "encoder.encoder.1"}
    found, signal = {}, torch.randn(2, 16000, generator=torch.Generator().manual_seed(2))
    for fit in (False, True):
        init = {"source": "teacher", "fit": fit}
        config = student_config(
            corpus, tmp_path / "teacher.nemo", [RKD | {"steps": 1}, SKD], init=init, rkd={"pairs": [pair]}
        )
        model = make_student(config)
        torch.manual_seed(0)
        state = random_state()
        begun(model)
        assert random_state() == state and model.encoder.training
        with Capture(model, "encoder") as mine, Capture(model.distiller.teacher.model, "encoder") as theirs:
            encoded(model, signal), encoded(model.distiller.teacher.model, signal)
        error = (mine.tensor(2) - theirs.tensor(2)).square().mean()
        found[fit] = float(error / theirs.tensor(2).var())
        model.train()
    assert found[True] < 0.7 * found[False]
    fitted = "3 blocks fitted to the outputs of the teacher's blocks 0, 3, 4"
    # Fitted, the second block's output is that of the teacher's fourth, so their projection is the identity.
    assert printed(log[-4:]) == (
        f"blocks 0-2 <- 0, 1, 4; {fitted}; decoder copied; 2 projections start as the identity."
    )
    norms = [part for part in model.encoder.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert not any(map(is_folded, norms))
    # The statistics of the batch norms are those of the student's own inputs, without padding.
    heard, model.preprocessor.featurizer.pad_to = [], 0
    norms[-1].register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    for batch in model._train_dl:
        for one, length in zip(batch[0], batch[1], strict=True):
            encoded(model, one[None, :length])
    values = torch.cat([value[0] for value in heard], dim=1)
    torch.testing.assert_close(norms[-1].running_mean, values.mean(1), atol=1e-3, rtol=1e-2)


def test_weights_that_are_there_are_kept(corpus, deep, make_student, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nemo_tutornet.models.init_student", lambda *_: pytest.fail("weights are overwritten")
    )
    config = student_config(corpus, deep, [SKD], init="teacher")
    resumed = make_student(config)
    resumed.trainer.ckpt_path = "last.ckpt"  # as exp_manager does it for a run that it resumes
    assert begun(resumed).distiller is not None
    resumed.save_to(str(tmp_path / "student.nemo"))
    whole = OmegaConf.create({"model": config}).model
    restored = TutorCTCModel.restore_from(
        str(tmp_path / "student.nemo"), override_config_path=whole, map_location="cpu"
    )
    restored.setup_training_data(whole.train_ds)
    restored.set_trainer(make_student(config).trainer)
    assert begun(restored).distiller is not None


def test_a_cached_teacher_needs_its_file_for_the_copy(
    corpus, deep, teacher_file, make_student, tmp_path, log, monkeypatch
):
    config = student_config(corpus, deep, [SKD])
    whole = OmegaConf.create({"model": config, "trainer": {"accelerator": "cpu", "devices": 1}})
    build_cache(whole, tmp_path / "cache", progress=False)
    config["tutor"].update(
        init="teacher", teacher={"cache": str(tmp_path / "cache"), "model_path": str(deep)}
    )
    model = begun(make_student(config))
    fitted = "3 blocks fitted to the outputs of the teacher's blocks 0, 3, 4"
    assert printed(log) == f"blocks 0-2 <- 0, 1, 4; {fitted}; decoder copied."
    with torch.no_grad():
        first = (
            EncDecCTCModel.restore_from(str(deep), map_location="cpu").encoder.encoder[4].mconv[0].conv.weight
        )
    assert torch.equal(model.encoder.encoder[2].mconv[0].conv.weight, first)
    # The name of a pretrained model is looked up here only, so here its file is compared.
    monkeypatch.setattr(module, "locate", lambda _: teacher_file)
    message = refusal(module.teacher_model, model.distiller.teacher, model.distiller.config)
    assert message.startswith(
        f"model.tutor.teacher.cache was built with another teacher than {teacher_file} (sha256 "
    ) and message.endswith("give the file of that teacher, or build the cache again.")


def test_what_does_not_fit_is_refused(corpus, deep, teacher_file):
    def message(teacher: Path, change: Any = None, **init: Any) -> str:
        config = student_config(corpus, teacher, init={"source": "teacher", **init})
        if change is not None:
            change(config["encoder"]["jasper"])
        student = SimpleNamespace(encoder=Serialization.from_config_dict(OmegaConf.create(config["encoder"])))
        return refusal(
            module.init_student, student, SimpleNamespace(config=parse_tutor(config), teacher=models[teacher])
        )

    models = {
        path: SimpleNamespace(model=EncDecCTCModel.restore_from(str(path), map_location="cpu"))
        for path in (deep, teacher_file)
    }

    assert message(teacher_file) == (
        "model.tutor.init: the student's encoder is a ConvASREncoder and the teacher's a ConformerEncoder, "
        "which have no layers in common; take a teacher of the student's family, or leave model.tutor.init "
        "out."
    )
    assert message(deep, lambda blocks: blocks[0].update(kernel=[13])) == (
        "model.tutor.init: the first blocks differ: mconv.0.conv.weight is [64, 1, 13] in the student and "
        f"[64, 1, 11] in the teacher; {REMEDY}"
    )
    assert message(deep, lambda blocks: blocks[1].update(dilation=[2])).endswith(
        f"in the nearest, 1, mconv.0.conv.dilation is [2] in the student and [1] in the teacher; {REMEDY}"
    )
    assert message(deep, layers=[0, 1]) == (
        f"model.tutor.init.layers: 2 blocks are named, but the student has 3; {REMEDY}"
    )


def test_check_says_what_is_copied_and_what_is_not(corpus, make_student, tmp_path):
    path = save_teacher(quartznet(corpus, 1, [*LABELS[:-1], "-"]), tmp_path / "teacher.nemo")
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    config = OmegaConf.create(
        {"model": student_config(corpus, path, [RKD], init="teacher"), "trainer": trainer}
    )
    assert (
        check_training(config, batches=1)
        .matches["init"]
        .startswith(
            "blocks 0-2 <- 0, 1, 2; decoder not copied: the label sets differ: the student has 11 labels"
        )
    )
    config.init_from_nemo_model = "other.nemo"
    assert refusal(check_training, config).startswith(
        "model.tutor.init and init_from_nemo_model are both set"
    )
    config.init_from_nemo_model = None
    other = student_config(corpus, path, [RKD], init="teacher")
    model = make_student(other)
    before = model.decoder.decoder_layers[0].weight.detach().clone()
    begun(model)
    assert torch.equal(model.decoder.decoder_layers[0].weight, before)


def test_nemos_own_ways_to_initialise_a_model_are_refused(corpus, deep, make_student):
    model = make_student(student_config(corpus, deep, init="teacher"))
    for key in ("init_from_nemo_model", "init_from_ptl_ckpt", "init_from_pretrained_model"):
        assert refusal(model.maybe_init_from_pretrained_checkpoint, OmegaConf.create({key: "other"})) == (
            f"model.tutor.init and {key} are both set, and each would overwrite the other's weights; leave "
            "one of them out."
        )
    model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({}))
