# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher by itself: where it comes from, and what it gives."""

from __future__ import annotations

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel

from nemo_tutornet import Teacher
from nemo_tutornet.checkpoints import sha256_of
from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.teacher import restore_ctc
from tests.conftest import LABELS


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
