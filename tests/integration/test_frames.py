# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A student whose frames are longer than its teacher's: refused by default, pooled when asked for."""

from __future__ import annotations

import pytest
import torch

from nemo_tutornet import TutorError
from tests.conftest import student_config
from tests.integration.students import of_kind


def test_a_slower_student_is_refused_by_default(corpus, teacher_file, make_student):
    student = make_student(of_kind("citrinet", student_config(corpus, teacher_file)))
    with pytest.raises(TutorError, match=r"lasts 80 ms, longer than the teacher's 40 ms .* set model.tutor.pool_frames to true"):
        student.trainer.fit(student)


def test_a_slower_student_learns_from_pooled_frames(corpus, teacher_file, make_student):
    student = make_student(of_kind("citrinet", student_config(corpus, teacher_file, pool_frames=True)))
    student.trainer.fit(student)
    pairing, logged = student.tutor.pairing, student.trainer.logged_metrics
    assert (pairing.student_encoder.shift, pairing.teacher_encoder.shift) == (80.0, 40.0)
    assert torch.isfinite(logged["train_skd"]) and logged["train_skd"] > 0

    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = student.tutor.teacher(signal, lengths, hidden=True, posteriors=True)
    log_probs, frames, _ = student.eval()(input_signal=signal, input_signal_length=lengths)
    posteriors = pairing.posteriors(targets.log_probs, targets.lengths, log_probs.shape[1], pairing.student_encoder)
    hidden = pairing.hidden(targets.hidden, targets.lengths, log_probs.shape[1])
    assert posteriors.shape == log_probs.shape and hidden.shape == (2, 24, log_probs.shape[1])
    for b in range(2):
        for s in range(int(frames[b]) - 1):
            pair = targets.log_probs[b, 2 * s : 2 * s + 2]
            assert torch.equal(posteriors[b, s], pair[pair[:, -1].argmin()])
            assert torch.allclose(hidden[b, :, s], targets.hidden[b, :, 2 * s : 2 * s + 2].mean(dim=1), atol=1e-6)
