# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher by itself: where it comes from, and what it gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel
from nemo.utils.app_state import AppState
from omegaconf import OmegaConf

from nemo_tutornet import LiveTeacher, TutorError, export_student
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.functional.fft_depthwise import FourierConv1d
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import LABELS, save_teacher, student_config, teacher_config
from tests.integration import students, teacher_models


def test_a_pretrained_name_goes_through_nemos_own_loading(teacher_file, monkeypatch):
    """Only NeMo's download is replaced; no hub is reachable in tests."""
    asked = []

    def downloaded(cls, model_name, refresh_cache=False):
        asked.append(model_name)
        return EncDecCTCModel, str(teacher_file)

    monkeypatch.setattr(ASRModel, "_get_ngc_pretrained_model_info", classmethod(downloaded))
    config = TeacherConfig(model_path="stt_en_conformer_ctc_small", sha256=sha256_of(teacher_file))
    assert LiveTeacher.from_config(config).labels == LABELS
    assert asked == ["stt_en_conformer_ctc_small"]


@pytest.mark.parametrize(("major", "precision"), [(7, "fp32"), (8, "bf16")])
def test_bf16_only_where_the_gpu_has_it(teacher_file, monkeypatch, major, precision):
    """On an older one (T4, V100) torch emulates it, and says that it is supported."""
    teacher = LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert teacher.precision_on(torch.device("cuda")) == precision


def test_targets_are_the_models_own_outputs(teacher_file):
    teacher, model = (
        LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file))),
        restore_ctc(teacher_file),
    )
    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True))
    with torch.no_grad():
        log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
    assert torch.equal(targets.log_probs, log_probs) and torch.equal(targets.lengths, frames)
    assert targets.hidden.shape == (2, 24, log_probs.shape[1]) and not targets.hidden.requires_grad
    rest = teacher.targets(TrainingBatch(signal, lengths), TargetRequest())
    assert rest.hidden is None and rest.log_probs is None
    bf16 = LiveTeacher(model, precision="bf16").targets(
        TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True)
    )
    assert 0 < (bf16.hidden.float() - targets.hidden).abs().max() < 0.2


def test_long_depthwise_convolutions_go_through_the_fourier_transform(corpus):
    """On a CPU; the targets are the model's up to rounding."""
    config = student_config(corpus, None)
    config["encoder"]["jasper"][1]["kernel"] = [33]
    teacher = build(config, None)
    convolution = teacher.model.encoder.encoder[1].mconv[0].conv
    assert type(convolution) is FourierConv1d
    plain = EncDecCTCModel(OmegaConf.create(config)).eval()
    plain.load_state_dict(teacher.model.state_dict())
    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(posteriors=True))
    with torch.no_grad():
        log_probs = plain(input_signal=signal, input_signal_length=lengths)[0]
    torch.testing.assert_close(targets.log_probs, log_probs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part", ["", "preprocessor", "encoder", "decoder"])
def test_a_teacher_that_left_eval_mode_is_not_used(teacher_file, part):
    teacher = LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file)))
    teacher.model.get_submodule(part).train()
    with pytest.raises(RuntimeError, match="eval mode"):
        teacher.targets(
            TrainingBatch(torch.zeros(1, 16000), torch.tensor([16000])),
            TargetRequest(hidden=True, posteriors=True),
        )


@pytest.mark.parametrize("layer", [None, "inside"])
@pytest.mark.parametrize("kind", ["conformer", "quartznet"])
def test_a_teacher_waits_for_no_other_rank(teacher_file, tmp_path, request, kind, layer):
    """NeMo's encoders ask all ranks for their longest batch in each forward; a frozen one need not."""
    file = teacher_file if kind == "conformer" else students.build(kind, tmp_path)
    layer = layer and {"conformer": "encoder.layers.0", "quartznet": "encoder.encoder.0"}[kind]
    signal, lengths = torch.randn(1, 20000), torch.tensor([20000])
    expected = LiveTeacher(restore_ctc(file), hint_layer=layer).targets(
        TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True)
    )
    request.getfixturevalue("many_ranks")
    with pytest.raises(RuntimeError, match="No backend"):
        restore_ctc(file)(input_signal=signal, input_signal_length=lengths)
    teacher = LiveTeacher(restore_ctc(file), hint_layer=layer)
    found = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True))
    assert torch.equal(found.hidden, expected.hidden) and torch.equal(found.log_probs, expected.log_probs)
    stopped = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True))
    assert torch.equal(stopped.hidden, expected.hidden)
    assert torch.distributed.is_initialized(), "everybody else still sees the ranks"


def test_a_student_meets_its_teacher_without_the_other_ranks(corpus, teacher_file, make_student, request):
    """Its layers are measured in `setup`, when it is still on the CPU, whatever it will train on."""
    config = student_config(corpus, teacher_file, rkd={"guided_layer": "encoder.encoder.1"})
    config["tutor"]["skd"] = {"intermediate_layers": ["encoder.encoder.0"]}
    expected, student = make_student(config), make_student(config)
    expected.setup("fit")
    request.getfixturevalue("many_ranks")
    student.setup("fit")
    assert student.distiller.match == expected.distiller.match


def test_a_conformer_teaches_a_conformer(corpus, teacher_file, make_student):
    """NeMo's Conformers share an activation with each other; a student in train mode must not take its
    teacher's there.
    """
    config = teacher_config(corpus) | {
        name: student_config(corpus, teacher_file)[name] for name in ("train_ds", "tutor")
    }
    student = make_student(config, max_epochs=2, limit_val_batches=0)
    student.setup("fit")
    assert not any(module.training for module in student.train().distiller.teacher.model.modules())
    student.trainer.fit(student)
    assert torch.isfinite(student.trainer.logged_metrics["train_skd"])


# --- Hybrids and transducers

RKD = [{"name": "rkd", "epochs": 2, "weights": {"rkd": 1.0}}]


def test_a_hybrid_teaches_through_its_ctc_head(corpus, make_student, tmp_path):
    """In another label order too: both losses train, the decoder is composed, the student leaves."""
    path = teacher_models.save("hybrid", corpus, tmp_path / "hybrid.nemo", LABELS[::-1])
    model, teacher = restore_ctc(path), LiveTeacher.from_config(TeacherConfig(model_path=str(path)))
    assert teacher.labels == LABELS[::-1]
    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True))
    with torch.no_grad():
        encoded, frames = model(input_signal=signal, input_signal_length=lengths)
        assert torch.equal(targets.log_probs, model.ctc_decoder(encoder_output=encoded))
    assert torch.equal(targets.hidden, encoded) and torch.equal(targets.lengths, frames)

    student = make_student(student_config(corpus, path))
    student.trainer.fit(student)
    assert (
        student.distiller.match.frame_weighting == "nonblank"
        and student.distiller.match.no_warm_start is None
    )
    logged = student.trainer.logged_metrics
    assert torch.isfinite(logged["train_skd"]) and torch.isfinite(logged["train_ctc"])
    assert export_student(student, tmp_path / "student.nemo").labels == len(LABELS)


def test_a_transducer_teaches_by_its_encoder(corpus, make_student, tmp_path):
    path = teacher_models.save("transducer", corpus, tmp_path / "transducer.nemo")
    student = make_student(student_config(corpus, path, stages=RKD))
    student.trainer.fit(student)
    pairing = student.distiller.match
    assert pairing.frame_weighting == "uniform" and "the teacher has no CTC head" in pairing.no_warm_start
    assert torch.isfinite(student.trainer.logged_metrics["train_rkd"])
    for config, words in (
        (student_config(corpus, path), "SKD compares posteriors, but the teacher has no CTC head"),
        (
            student_config(corpus, path, stages=RKD, rkd={"frame_weighting": "nonblank"}),
            "take energy or uniform",
        ),
    ):
        refused = make_student(config)
        with pytest.raises(TutorError, match=words):
            refused.trainer.fit(refused)


# --- No further than the hint layer

FAST = {"subsampling": "dw_striding", "subsampling_factor": 8}
REDUCED = {"reduction": "pooling", "reduction_position": 1, "reduction_factor": 2}


def conformer(corpus, **encoder):
    config = teacher_config(corpus)
    config["encoder"] |= {"n_layers": 4, **encoder}
    return config


def citrinet(corpus):
    return students.of_kind("citrinet", student_config(corpus, None))


def build(config, hint_layer, **teacher):
    torch.manual_seed(0)
    for name in ("train_ds", "validation_ds"):
        config.pop(name, None)
    return LiveTeacher(EncDecCTCModel(OmegaConf.create(config)), hint_layer=hint_layer, **teacher)


def blocks_of(teacher):
    encoder = teacher.model.encoder
    return encoder.layers if hasattr(encoder, "layers") else encoder.encoder


def layers_that_run(teacher):
    """Names of the encoder's layers and `decoder`, in the order in which they run; filled while the teacher
    is used.
    """
    ran = []
    for name, module in [*enumerate(blocks_of(teacher)), ("decoder", teacher.model.decoder)]:
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize(
    "make, encoder, hint, last",
    [
        (conformer, {}, "encoder.layers.1", 1),
        (conformer, {}, "encoder.layers.1.norm_out", 0),  # within layer 1, which so never ends
        (conformer, FAST, "encoder.layers.2", 2),
        (conformer, {"subsampling_factor": 1, "subsampling": "striding"}, "encoder.layers.0", 0),
        (conformer, REDUCED, "encoder.layers.2", 2),
        (conformer, REDUCED, "encoder.layers.0", 3),  # the lengths are known behind it only
        (citrinet, {}, "encoder.encoder.4", 4),
        (citrinet, {}, "encoder.encoder.2", 5),  # a stride comes behind it
    ],
)
def test_the_encoder_stops_behind_the_hint_layer_when_nothing_else_is_read(corpus, make, encoder, hint, last):
    """And gives what the whole encoder gives, lengths and dtypes included; where it could not, it does not
    stop.
    """
    teacher = build(make(corpus, **encoder), hint)
    ran = layers_that_run(teacher)
    for precision in ("fp32", "bf16"):
        teacher._precision = precision
        for base in (2000, 7000, 16000):
            lengths = torch.arange(0, 2400, 80) + base + 1
            signal = torch.randn(len(lengths), int(lengths.max()))
            ran.clear()
            alone = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True))
            assert ran == list(range(last + 1)), ran
            whole = teacher.targets(
                TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True)
            )
            assert torch.equal(alone.lengths, whole.lengths) and alone.lengths.dtype == whole.lengths.dtype
            assert torch.equal(alone.hidden, whole.hidden) and alone.hidden.dtype == whole.hidden.dtype
            assert alone.log_probs is None and ran[-1] == "decoder"
    hooks = sum(len(module._forward_hooks) for module in teacher.model.encoder.modules())
    assert hooks == len(blocks_of(teacher)), "the test's own, nothing is left behind"


def test_an_encoder_that_is_wanted_whole_has_no_short_way(corpus):
    assert (
        build(conformer(corpus), None)._early_exit is None
        and build(conformer(corpus), "encoder")._early_exit is None
    )


def test_a_layer_that_runs_several_times_is_no_end(corpus):
    """NeMo's convolutional encoders share one activation; what counts of it is its last output, as in a whole
    run.
    """
    teacher = build(student_config(corpus, None), "encoder.encoder.0.mout.0")
    assert teacher._early_exit is None
    signal, lengths = torch.randn(2, 16000), torch.tensor([16000, 9000])
    whole = teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True))
    assert torch.equal(
        teacher.targets(TrainingBatch(signal, lengths), TargetRequest(hidden=True)).hidden, whole.hidden
    )


def test_a_stage_of_rkd_alone_stops_there_and_the_next_one_does_not(corpus, make_student, tmp_path):
    path = save_teacher(conformer(corpus), tmp_path / "teacher.nemo")
    losses = []
    for short in (True, False):
        rkd = {"hint_layer": "encoder.layers.1", "frame_weighting": "energy"}
        config = student_config(corpus, path, rkd=rkd)
        del config["spec_augment"]  # it draws from a generator that nobody can seed
        student = make_student(config, max_epochs=2, limit_val_batches=0)
        student.setup("fit")
        if not short:
            student.distiller.teacher._early_exit = None
        ran = layers_that_run(student.distiller.teacher)
        student.trainer.fit(student)
        batches = len(student.trainer.train_dataloader)
        later = 1 if short else 2  # epochs in which the layers behind run
        assert [ran.count(name) for name in (0, 1, 2, 3, "decoder")] == [2 * batches] * 2 + [
            later * batches
        ] * 2 + [batches]
        losses.append(student.trainer.logged_metrics["train_loss"])
    assert losses[0] == losses[1]


def test_a_sha256_in_capitals(teacher_file):
    LiveTeacher.from_config(
        TeacherConfig(model_path=str(teacher_file), sha256=sha256_of(teacher_file).upper())
    )


def test_the_teacher_follows_the_student_to_its_device(teacher_file):
    teacher = LiveTeacher.from_config(TeacherConfig(model_path=str(teacher_file)))
    teacher.move_to(torch.device("meta"))
    assert {parameter.device.type for parameter in teacher.model.parameters()} == {"meta"}


def test_encoders_of_other_lengths_are_refused(corpus, teacher_file, make_student, monkeypatch):
    monkeypatch.setattr(LiveTeacher, "frames_of", lambda self, seconds: 3)
    with pytest.raises(TutorError, match="such encoders cannot be aligned in time"):
        make_student(student_config(corpus, teacher_file)).setup("fit")


def test_a_teacher_restored_in_between_leaves_the_restore_in_progress(teacher_file):
    state = AppState()
    before = (state._model_restore_path, state._nemo_file_folder, list(state._all_model_restore_paths))
    state._model_restore_path, state._nemo_file_folder = "mine.nemo", "folder"
    try:
        restore_ctc(teacher_file)
        found = (state._model_restore_path, state._nemo_file_folder, list(state._all_model_restore_paths))
        assert found == ("mine.nemo", "folder", before[2])
    finally:
        state._model_restore_path, state._nemo_file_folder = before[:2]
