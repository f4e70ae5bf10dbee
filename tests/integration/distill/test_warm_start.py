# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student's decoder, composed of the teacher's and the projection."""

from __future__ import annotations

import pytest
import torch

from nemo_tutornet.distill.warm_start import DecoderWarmStart, compose_decoder
from tests.conftest import LABELS, student_config
from tests.integration.recorder import RKD, SKD, Recorder, same, state_of


def test_warm_start_composes_the_decoder_once_at_the_boundary(
    corpus, teacher_file, make_student, monkeypatch
):
    recorder = Recorder()
    model = make_student(
        student_config(corpus, teacher_file, [RKD | {"epochs": 2}, SKD]), max_epochs=3, callbacks=[recorder]
    )
    composed: list[int] = []
    apply = DecoderWarmStart.apply

    def counted(self, decoder):
        composed.append(model.trainer.global_step)
        apply(self, decoder)

    monkeypatch.setattr(DecoderWarmStart, "apply", counted)
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
    theirs, projection = model.distiller.teacher.ctc_projection(), model.distiller.projection
    hidden = torch.randn(3, 20, 7)
    weight, bias = compose_decoder(theirs, projection, None)
    expected = theirs(projection(hidden))
    assert torch.allclose(torch.nn.functional.conv1d(hidden, weight, bias), expected, atol=1e-5)
    order = (*reversed(range(len(LABELS))), len(LABELS))
    weight, bias = compose_decoder(theirs, projection, order)
    assert torch.allclose(
        torch.nn.functional.conv1d(hidden, weight, bias), expected[:, list(order)], atol=1e-5
    )


def test_without_warm_start_rkd_leaves_the_decoder_bit_identical(corpus, teacher_file, make_student):
    config = student_config(corpus, teacher_file, [RKD], rkd={"warm_start_decoder": False})
    model = make_student(config, max_epochs=2)
    before = state_of(model.decoder)
    model.trainer.fit(model)
    assert same(before, state_of(model.decoder))


def test_a_trained_decoder_is_never_overwritten(corpus, teacher_file, make_student, monkeypatch):
    stages = [SKD | {"epochs": 1}, RKD | {"epochs": 1}, SKD | {"name": "again"}]
    model = make_student(student_config(corpus, teacher_file, stages), max_epochs=3)
    monkeypatch.setattr(DecoderWarmStart, "apply", lambda *_: pytest.fail("over a trained decoder"))
    model.trainer.fit(model)
