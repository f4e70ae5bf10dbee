# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher by itself: where it comes from, and what it gives."""

from __future__ import annotations

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel

from nemo_tutornet import Teacher, TutorError, export_student
from nemo_tutornet.checkpoints import sha256_of
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.teacher import restore_ctc
from tests.conftest import LABELS, student_config
from tests.integration import teachers


def test_a_pretrained_name_goes_through_nemos_own_loading(teacher_file, monkeypatch):
    """Only NeMo's download is replaced; no hub is reachable in tests."""
    asked = []

    def downloaded(cls, model_name, refresh_cache=False):
        asked.append(model_name)
        return EncDecCTCModel, str(teacher_file)

    monkeypatch.setattr(ASRModel, "_get_ngc_pretrained_model_info", classmethod(downloaded))
    config = TeacherConfig(model_path="stt_en_conformer_ctc_small", sha256=sha256_of(teacher_file))
    assert Teacher.from_config(config).labels == LABELS
    assert asked == ["stt_en_conformer_ctc_small"]


def test_targets_are_the_models_own_outputs(teacher_file):
    teacher, model = Teacher.from_config(TeacherConfig(model_path=str(teacher_file))), restore_ctc(teacher_file)
    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = teacher(signal, lengths, hidden=True, posteriors=True)
    with torch.no_grad():
        log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
    assert torch.equal(targets.log_probs, log_probs) and torch.equal(targets.lengths, frames)
    assert targets.hidden.shape == (2, 24, log_probs.shape[1]) and not targets.hidden.requires_grad
    rest = teacher(signal, lengths, hidden=False, posteriors=False)
    assert rest.hidden is None and rest.log_probs is None
    bf16 = Teacher(model, precision="bf16")(signal, lengths, hidden=True, posteriors=True)
    assert 0 < (bf16.hidden.float() - targets.hidden).abs().max() < 0.2


def test_a_teacher_that_left_eval_mode_is_not_used(teacher_file):
    teacher = Teacher.from_config(TeacherConfig(model_path=str(teacher_file)))
    teacher.model.train()
    with pytest.raises(RuntimeError, match="eval mode"):
        teacher(torch.zeros(1, 16000), torch.tensor([16000]), hidden=True, posteriors=True)


# --- Hybrids and transducers ------------------------------------------------------------------------------------------------

RKD = [{"name": "rkd", "epochs": 2, "weights": {"rkd": 1.0}}]


def test_a_hybrid_teaches_through_its_ctc_head(corpus, make_student, tmp_path):
    """In another label order too: both losses train, the decoder is composed, the student leaves."""
    path = teachers.save("hybrid", corpus, tmp_path / "hybrid.nemo", LABELS[::-1])
    model, teacher = restore_ctc(path), Teacher.from_config(TeacherConfig(model_path=str(path)))
    assert teacher.labels == LABELS[::-1]
    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = teacher(signal, lengths, hidden=True, posteriors=True)
    with torch.no_grad():
        encoded, frames = model(input_signal=signal, input_signal_length=lengths)
        assert torch.equal(targets.log_probs, model.ctc_decoder(encoder_output=encoded))
    assert torch.equal(targets.hidden, encoded) and torch.equal(targets.lengths, frames)

    student = make_student(student_config(corpus, path))
    student.trainer.fit(student)
    assert student.tutor.pairing.frame_weighting == "nonblank" and student.tutor.pairing.no_warm_start is None
    logged = student.trainer.logged_metrics
    assert torch.isfinite(logged["train_skd"]) and torch.isfinite(logged["train_ctc"])
    assert export_student(student, tmp_path / "student.nemo").labels == len(LABELS)


def test_a_transducer_teaches_by_its_encoder(corpus, make_student, tmp_path):
    path = teachers.save("transducer", corpus, tmp_path / "transducer.nemo")
    student = make_student(student_config(corpus, path, stages=RKD))
    student.trainer.fit(student)
    pairing = student.tutor.pairing
    assert pairing.frame_weighting == "uniform" and "the teacher is a transducer" in pairing.no_warm_start
    assert torch.isfinite(student.trainer.logged_metrics["train_rkd"])
    for config, words in (
        (student_config(corpus, path), "SKD compares posteriors, but the teacher is a transducer"),
        (student_config(corpus, path, stages=RKD, rkd={"frame_weighting": "nonblank"}), "take energy or uniform"),
    ):
        refused = make_student(config)
        with pytest.raises(TutorError, match=words):
            refused.trainer.fit(refused)
