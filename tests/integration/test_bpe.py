# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A subword student of a subword teacher, through both stages and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModelBPE, export_student
from nemo_tutornet.checkpoints import STOCK_BPE, read_nemo_config
from tests.conftest import student_config, teacher_config
from tests.integration.students import subword, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_a_subword_student_trains_and_leaves(corpus, tokenizer, make_student, tmp_path):
    torch.manual_seed(0)
    teacher = EncDecCTCModelBPE(OmegaConf.create(subword(teacher_config(corpus), tokenizer)))
    teacher.save_to(str(tmp_path / "teacher.nemo"))
    config = subword(student_config(corpus, tmp_path / "teacher.nemo"), tokenizer)
    trainer = make_student(student_config(corpus, None), folder=tmp_path / "run", max_epochs=2).trainer
    student = TutorCTCModelBPE(OmegaConf.create({"model": config}).model, trainer=trainer)
    trainer.fit(student)
    assert student.tutor.stage == 1 and student.tutor.pairing.no_warm_start is None

    (last,) = tmp_path.rglob("*-last.ckpt")
    (written,) = (tmp_path / "run").rglob("*.nemo")
    for source in (last, written):
        done = export_student(source, tmp_path / "student.nemo")
        assert done.target == STOCK_BPE
        restored = ASRModel.restore_from(str(done.path), map_location="cpu")
        assert type(restored) is EncDecCTCModelBPE and "tutor" not in restored.cfg
        assert str(tokenizer) not in OmegaConf.to_yaml(read_nemo_config(done.path))
        assert restored.tokenizer.text_to_ids("ab cd") == student.tokenizer.text_to_ids("ab cd")
        assert all(torch.equal(a, b) for a, b in zip(restored.state_dict().values(), student.state_dict().values(), strict=True))
        restored.transcribe([str(corpus / "valid0.wav")], batch_size=1, verbose=False)
