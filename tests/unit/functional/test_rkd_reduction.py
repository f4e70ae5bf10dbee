# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""RKD as a sum over time: its reference, and the balance of the losses for short and long utterances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nemo_tutornet.functional import frame_weighting, losses
from tests.unit.functional.slow_losses import (
    make_batch,
    rkd_sums_of,
    slow_reduce_over_time,
    slow_rkd_sums,
    slow_weights,
)

REDUCTIONS = ["mean_batch", "mean_volume", "mean", "sum"]
HIDDEN, HINT, LABELS, SECONDS = 6, 5, 5, 0.02


@pytest.mark.parametrize("weighting", frame_weighting.FRAME_WEIGHTING)
def test_the_sums_agree_with_loops(weighting: str) -> None:
    batch = make_batch(seed=3)
    hidden, mask = batch.teacher_hidden.tolist(), batch.mask.tolist()
    weights = slow_weights(weighting, batch.teacher.tolist(), hidden, mask)
    expected = slow_rkd_sums(batch.student_hidden.tolist(), hidden, weights, mask)
    assert rkd_sums_of(weighting)(batch).tolist() == pytest.approx(expected, rel=1e-12, abs=0)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e3), st.integers(0, 400), st.integers(0, 40)), min_size=1, max_size=6
    ),
    seconds=st.sampled_from([0.02, 0.04, 0.08]),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_the_reduction_agrees_with_loops(
    rows: list[tuple[float, int, int]], seconds: float, reduction: str
) -> None:
    sums, frames, labels = (list(column) for column in zip(*rows, strict=True))
    found = losses.reduce_over_time(
        torch.tensor(sums, dtype=torch.float64),
        torch.tensor(frames),
        seconds,
        torch.tensor(labels),
        reduction,
    )
    expected = slow_reduce_over_time(sums, frames, seconds, labels, reduction)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_frame_mean_is_the_sums_over_all_frames() -> None:
    batch = make_batch(seed=4)
    weights = torch.ones_like(batch.mask, dtype=torch.float64)
    arguments = batch.student_hidden, batch.teacher_hidden, weights, batch.mask
    mean = losses.rkd_of_utterances(*arguments).sum() / batch.mask.sum()
    torch.testing.assert_close(losses.rkd(*arguments), mean, rtol=1e-12, atol=0)


def r2_of(student: Tensor, teacher: Tensor, weights: Tensor, mask: Tensor) -> float:
    errors = losses.rkd_of_utterances(student, teacher, weights, mask)
    return losses.explained_variance(errors, teacher, weights, mask).item()


@pytest.mark.parametrize("weighting", frame_weighting.FRAME_WEIGHTING)
def test_the_explained_variance_agrees_with_loops(weighting: str) -> None:
    batch = make_batch(seed=5)
    hidden, guided, mask = batch.teacher_hidden, batch.student_hidden, batch.mask
    weights = frame_weighting.FRAME_WEIGHTING[weighting](batch.teacher, hidden, mask)
    error = variance = 0.0
    for d in range(hidden.shape[1]):
        valid = [
            (weights[b, t].item(), hidden[b, d, t].item(), guided[b, d, t].item()) for b, t in mask.nonzero()
        ]
        mean = sum(w * h for w, h, _ in valid) / sum(w for w, _, _ in valid)
        error += sum(w * (h - f) ** 2 for w, h, f in valid)
        variance += sum(w * (h - mean) ** 2 for w, h, _ in valid)
    assert r2_of(guided, hidden, weights, mask) == pytest.approx(1 - error / variance, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0, 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_a_student_that_shrinks_to_the_mean(share: float, scale: float, shift: float, seed: int) -> None:
    """1 - (1 - share)^2, whatever the scale of the hint layer and wherever its mean is."""
    batch = make_batch(seed=seed)
    hidden, mask, weights = batch.teacher_hidden, batch.mask, torch.ones_like(batch.mask, dtype=torch.float64)
    mean = (hidden * mask[:, None]).sum(dim=(0, 2)) / mask.sum()
    shrunk = mean[:, None] + share * (hidden - mean[:, None])
    hidden, shrunk = (torch.where(mask[:, None], scale * one + shift, torch.nan) for one in (hidden, shrunk))
    assert r2_of(shrunk, hidden, weights, mask) == pytest.approx(1 - (1 - share) ** 2, abs=1e-6)


def test_a_constant_hint_layer_explains_nothing() -> None:
    hidden, mask = torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    assert r2_of(hidden + 1, hidden, torch.ones(2, 4), mask) == 0.0
    assert r2_of(hidden, hidden, torch.zeros(2, 4), ~mask) == 0.0


class Student(torch.nn.Module):
    """A student without context, so that an utterance twice in a row has its frames twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Conv1d(HIDDEN, HIDDEN, 1).double()
        with torch.no_grad():  # half trained: CTC places most labels where they are
            self.encoder.weight.add_(torch.eye(HIDDEN)[:, :, None])
        self.projection = torch.nn.Conv1d(HIDDEN, HINT, 1).double()
        self.decoder = torch.nn.Conv1d(HIDDEN, LABELS, 1).double()
        with torch.no_grad():
            self.decoder.weight.add_(torch.eye(LABELS, HIDDEN)[:, :, None])


def utterances(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, list[list[int]]]:
    """Features, hint layer and posteriors of the teacher `[B, ., T]`, lengths, and transcripts.

    The features say the label for three frames of ten, and blank for the others.
    """
    generator = torch.Generator().manual_seed(1)
    size = max(lengths)

    def noise(width: int) -> Tensor:
        return torch.randn(len(lengths), width, size, generator=generator, dtype=torch.float64)

    transcripts = [[1 + i % (LABELS - 2) for i in range(length // 10)] for length in lengths]
    features = 0.5 * noise(HIDDEN)
    features[:, LABELS - 1] += 2
    for b, text in enumerate(transcripts):
        for i, label in enumerate(text):
            features[b, label, 10 * i + 3 : 10 * i + 6] += 4
    return features, noise(HINT), noise(LABELS), torch.tensor(lengths), transcripts


def twice(values: Tensor, lengths: Tensor) -> Tensor:
    """Each utterance twice in a row."""
    out = values.new_zeros(*values.shape[:2], 2 * values.shape[2])
    for b, n in enumerate(lengths.tolist()):
        out[b, :, : 2 * n] = torch.cat([values[b, :, :n], values[b, :, :n]], dim=1)
    return out


def gradient_norms(
    features: Tensor,
    hint: Tensor,
    logits: Tensor,
    lengths: Tensor,
    transcripts: list[list[int]],
    reduction: str,
) -> dict[str, float]:
    """Norm of the gradient that each term alone gives the encoder."""
    mask = frame_weighting.frame_mask(lengths, features.shape[2])
    targets = torch.tensor([len(text) for text in transcripts])
    teacher = logits.transpose(1, 2).log_softmax(-1)
    norms = {}
    for term in ("ctc", "skd", "rkd", "frame_mean"):
        student = Student()
        hidden = student.encoder(features)
        log_probs = student.decoder(hidden).transpose(1, 2).log_softmax(-1)
        if term == "ctc":
            labels = torch.tensor([label for text in transcripts for label in text])
            each = F.ctc_loss(
                log_probs.transpose(0, 1), labels, lengths, targets, blank=LABELS - 1, reduction="none"
            )
            loss = losses.reduce_like_ctc(each, targets, reduction)
        elif term == "skd":
            loss = losses.reduce_like_ctc(losses.skd_kl(log_probs, teacher, mask), targets, reduction)
        else:
            weights = frame_weighting.weigh_energy(None, hint, mask)
            sums = losses.rkd_of_utterances(student.projection(hidden), hint, weights, mask)
            loss = losses.reduce_over_time(sums, mask.sum(1), SECONDS, targets, reduction)
            loss = (
                losses.rkd(student.projection(hidden), hint, weights, mask) if term == "frame_mean" else loss
            )
        loss.backward()
        gradient = student.encoder.weight.grad
        assert gradient is not None
        norms[term] = gradient.norm().item()
    return norms


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_doubling_every_utterance_leaves_the_balance(reduction: str) -> None:
    """The ratio of the terms' gradients changes by at most 5 %; that of the frame mean halves with a sum."""
    features, hint, logits, lengths, transcripts = utterances([100, 140, 60])
    once = gradient_norms(features, hint, logits, lengths, transcripts, reduction)
    doubled = [twice(values, lengths) for values in (features, hint, logits)]
    both = gradient_norms(*doubled, 2 * lengths, [2 * text for text in transcripts], reduction)
    growth = {term: both[term] / once[term] for term in once}
    for term in ("ctc", "skd"):
        assert growth["rkd"] / growth[term] == pytest.approx(1, abs=0.05), growth
    if reduction == "mean_batch":
        assert growth["frame_mean"] / growth["ctc"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("frame", [0.01, 0.02, 0.04])
def test_the_frame_rate_does_not_count(frame: float) -> None:
    """An error that lasts as long costs as much on frames of any length."""
    frames = round(2.0 / frame)
    hidden = torch.zeros(1, HINT, frames)
    mask = torch.ones(1, frames, dtype=torch.bool)
    sums = losses.rkd_of_utterances(hidden + 2, hidden, torch.ones(1, frames), mask)
    value = losses.reduce_over_time(sums, mask.sum(1), frame, torch.tensor([7]), "mean_batch")
    assert value.item() == pytest.approx(4.0 * 2.0, rel=1e-6)


def test_the_default_weights_are_those_that_were_chosen_for_the_frame_mean() -> None:
    """On utterances of AN4's mean length, 2.7 s, within a percent."""
    from nemo_tutornet.config import TutorConfig

    rkd, ctc = TutorConfig().stages
    assert rkd.weights["rkd"] == pytest.approx(1 / 2.7, rel=0.01)
    assert ctc.weights["rkd"] / ctc.weights["ctc"] == pytest.approx(5 / 2.7, rel=0.01)


def test_finite_for_a_batch_without_a_valid_frame() -> None:
    sums = torch.zeros(2, requires_grad=True)
    for reduction in REDUCTIONS:
        value = losses.reduce_over_time(sums, torch.zeros(2), 0.02, torch.zeros(2), reduction)
        value.backward()
        assert value.item() == 0 and sums.grad is not None and math.isfinite(sums.grad.sum().item())
