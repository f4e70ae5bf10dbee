# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How long frames are: measured exactly, refused by default where they are longer than the teacher's, pooled
when asked for.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor, ConformerEncoder, ConvASREncoder
from torch import nn

from nemo_tutornet import TutorError
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.nemo_io.layers import ENCODER, encode_silence, hop_of, measure
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import student_config
from tests.integration.students import of_kind


def encoder_of(kind: str) -> nn.Module:
    if kind == "QuartzNet":
        block = {
            "filters": 8,
            "repeat": 1,
            "kernel": [11],
            "stride": [2],
            "dilation": [1],
            "dropout": 0.0,
            "residual": False,
        }
        return ConvASREncoder(feat_in=64, activation="relu", conv_mask=True, jasper=[block])
    subsampling, factor = ("striding", 4) if kind == "Conformer" else ("dw_striding", 8)
    return ConformerEncoder(
        feat_in=64,
        n_layers=1,
        d_model=16,
        subsampling=subsampling,
        subsampling_factor=factor,
        n_heads=2,
        conv_kernel_size=5,
        subsampling_conv_channels=8,
    )


@pytest.mark.parametrize(
    ("rate", "stride"), [(16000, 0.01), (16000, 0.0125), (16000, 0.015), (22050, 0.01), (8000, 0.02)]
)
@pytest.mark.parametrize(("kind", "factor"), [("QuartzNet", 2), ("Conformer", 4), ("FastConformer", 8)])
@pytest.mark.parametrize("pad_to", [0, 16])
def test_a_frame_lasts_as_many_hops_of_the_front_end_as_the_encoder_joins(rate, stride, kind, factor, pad_to):
    """Whatever the hop: a shift that is off by 2 % puts the end of 16 s of audio 0.3 s away from what the
    teacher says of it.
    """
    model = nn.Module()
    model.preprocessor = AudioToMelSpectrogramPreprocessor(
        sample_rate=rate,
        window_size=0.025,
        window_stride=stride,
        n_fft=1024,
        features=64,
        dither=0.0,
        pad_to=pad_to,
    )
    model.encoder = encoder_of(kind)
    layer = measure(model.eval(), ENCODER, partial(encode_silence, model), hop=hop_of(model))
    assert layer.frame_ms == round(1000 * factor * int(stride * rate) / rate, 3)


def test_a_slower_student_is_refused_by_default(corpus, teacher_file, make_student):
    student = make_student(of_kind("citrinet", student_config(corpus, teacher_file)))
    with pytest.raises(
        TutorError,
        match=r"lasts 80 ms, longer than the teacher's 40 ms .* set model.tutor.pool_frames to true",
    ):
        student.trainer.fit(student)


def test_a_slower_student_learns_from_pooled_frames(corpus, teacher_file, make_student):
    student = make_student(of_kind("citrinet", student_config(corpus, teacher_file, pool_frames=True)))
    student.trainer.fit(student)
    pairing, logged = student.distiller.match, student.trainer.logged_metrics
    assert (pairing.student_encoder.frame_ms, pairing.teacher_encoder.frame_ms) == (80.0, 40.0)
    assert torch.isfinite(logged["train_skd"]) and logged["train_skd"] > 0

    signal, lengths = torch.randn(2, 20000), torch.tensor([20000, 13000])
    targets = student.distiller.teacher.targets(
        TrainingBatch(signal, lengths), TargetRequest(hidden=True, posteriors=True)
    )
    log_probs, frames, _ = student.eval()(input_signal=signal, input_signal_length=lengths)
    posteriors = pairing.align_posteriors(
        targets.log_probs, targets.lengths, log_probs.shape[1], pairing.student_encoder
    )
    hidden = pairing.align_hidden(targets.hidden, targets.lengths, log_probs.shape[1])
    assert posteriors.shape == log_probs.shape and hidden.shape == (2, 24, log_probs.shape[1])
    for b in range(2):
        for s in range(int(frames[b]) - 1):
            pair = targets.log_probs[b, 2 * s : 2 * s + 2]
            assert torch.equal(posteriors[b, s], pair[pair[:, -1].argmin()])
            assert torch.allclose(
                hidden[b, :, s], targets.hidden[b, :, 2 * s : 2 * s + 2].mean(dim=1), atol=1e-6
            )
