# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The invariants that every loss must hold, and what each one promises besides.

Legend: `B` utterances, `T` frames, `D` width of the hint layer, `V` labels with the blank last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nemo_tutornet import config
from nemo_tutornet.functional import frame_weighting, losses
from tests.unit.functional.slow_losses import (
    BLANK,
    FRAMES,
    LABELS,
    LENGTHS,
    LOSSES,
    QUICK,
    SKD,
    WIDTH,
    Batch,
    every_loss,
    every_skd,
    fill_padding,
    frame_gradients,
    make_batch,
    scalar,
    skd_of,
    slow_rkd,
    slow_select,
    student_of,
)

# --- Invariants


@pytest.mark.parametrize("name", [name for name in LOSSES if "guided" not in name])
def test_identical_networks_give_zero_and_no_gradient(name: str) -> None:
    batch = make_batch(seed=6)
    batch = batch.with_(student_hidden=batch.teacher_hidden, student=batch.teacher)
    assert scalar(name, batch).item() == 0.0
    assert frame_gradients(name, batch).abs().max().item() < 1e-14


@pytest.mark.parametrize("frames", frame_weighting.FRAME_SELECTION)
def test_guided_ctc_of_identical_networks_is_minus_their_confidence(frames: str) -> None:
    batch = make_batch(seed=7)
    value = skd_of("guided_ctc", frames)(batch.with_(student=batch.teacher))
    for b, length in enumerate(LENGTHS):
        best = [
            batch.teacher[b, t].exp().max().item()
            for t in range(length)
            if batch.teacher[b, t].argmax() < LABELS - 1
        ]
        assert value[b].item() == pytest.approx(-sum(best), rel=1e-12, abs=0)
        assert -len(best) <= value[b].item() <= 0


@every_loss
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("garbage", [None, 0.0, math.nan, math.inf, -math.inf])
def test_padding_changes_nothing(name: str, extra: int, garbage: float | None) -> None:
    batch = make_batch(seed=8)
    padded = fill_padding(batch, extra, garbage)
    assert padded.mask.shape[1] == FRAMES + extra
    torch.testing.assert_close(LOSSES[name](padded), LOSSES[name](batch), rtol=1e-12, atol=0)
    before, after = frame_gradients(name, batch), frame_gradients(name, padded)
    torch.testing.assert_close(after[:, :FRAMES][batch.mask], before[batch.mask], rtol=1e-12, atol=1e-300)
    assert (after[~padded.mask] == 0).all(), "padding has a gradient"


@every_loss
def test_batch_permutation_changes_nothing(name: str) -> None:
    batch = make_batch(seed=9)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = Batch(*(tensor[order] for tensor in batch.tensors()), batch.lengths[order])
    value, after = LOSSES[name](batch), LOSSES[name](shuffled)
    torch.testing.assert_close(after, value[order] if value.dim() else value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SKD)
@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
def test_batch_permutation_changes_no_reduced_loss(name: str, reduction: str) -> None:
    batch, targets = make_batch(seed=10), torch.tensor([3, 0, 1, 2, 5])
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = Batch(*(tensor[order] for tensor in batch.tensors()), batch.lengths[order])
    value = losses.reduce_like_ctc(LOSSES[name](batch), targets, reduction)
    after = losses.reduce_like_ctc(LOSSES[name](shuffled), targets[order], reduction)
    torch.testing.assert_close(after, value, rtol=1e-12, atol=0)


@every_skd
def test_utterances_do_not_touch_each_other(name: str) -> None:
    batch = make_batch(seed=11)
    together = LOSSES[name](batch)
    for b in range(len(LENGTHS)):
        alone = Batch(*(tensor[b : b + 1] for tensor in batch.tensors()), batch.lengths[b : b + 1])
        torch.testing.assert_close(LOSSES[name](alone), together[b : b + 1], rtol=1e-12, atol=0)


@every_loss
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    batch = make_batch(seed=12).leaves()
    scalar(name, batch).backward()
    assert batch.teacher.grad is None
    assert batch.teacher_hidden.grad is None
    gradient = student_of(name, batch).grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_frame_weights_of_padding_do_not_count() -> None:
    batch = make_batch(seed=13)
    weights = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = slow_rkd(
        batch.student_hidden.tolist(), batch.teacher_hidden.tolist(), weights.tolist(), batch.mask.tolist()
    )
    for garbage in (0.0, 1e9, math.nan, math.inf):
        filled = torch.where(batch.mask, weights, garbage)
        value = losses.rkd(batch.student_hidden, batch.teacher_hidden, filled, batch.mask)
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_no_gradient_reaches_the_frame_weights() -> None:
    batch = make_batch(seed=13).leaves()
    weights = torch.ones(batch.mask.shape, dtype=torch.float64, requires_grad=True)
    losses.rkd(batch.student_hidden, batch.teacher_hidden, weights, batch.mask).backward()
    assert weights.grad is None


@every_loss
def test_gradient_flows_at_the_frames_that_count_and_nowhere_else(name: str) -> None:
    batch = make_batch(seed=14)
    counted = batch.mask.tolist()
    if name in SKD:
        frames = "nonblank" if "guided" in name else name.split("-")[2]
        counted = slow_select(frames, batch.teacher.tolist(), counted, 1)
    gradient = frame_gradients(name, batch)
    assert (gradient.abs().sum(dim=-1) > 0).tolist() == counted


def extreme(lengths: Sequence[int], frames: int, labels: Sequence[int], floor: float) -> Tensor:
    """Log-probabilities of a network that is certain of `labels` in turn and gives every other label
    `floor`.
    """
    log_probs = torch.full((len(lengths), frames, LABELS), floor, dtype=torch.float64)
    for t in range(frames):
        log_probs[:, t, labels[t % len(labels)]] = 0.0
    return log_probs


EDGES: dict[str, Callable[[], Batch]] = {
    "ordinary": make_batch,
    "one empty utterance": lambda: make_batch(lengths=(0, 7)),
    "nothing but empty utterances": lambda: make_batch(lengths=(0, 0)),
    "one frame": lambda: make_batch(lengths=(1,), frames=1),
    "teacher is sure it is all blank": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [BLANK], -math.inf)
    ),
    "both are sure it is all blank": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [BLANK], -math.inf),
        student=extreme(LENGTHS, FRAMES, [BLANK], -math.inf),
    ),
    "sure of different labels": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [0, BLANK], -math.inf),
        student=extreme(LENGTHS, FRAMES, [1, 0], -math.inf),
    ),
    "far but finite": lambda: make_batch().with_(
        teacher=extreme(LENGTHS, FRAMES, [0, BLANK], -6e4), student=extreme(LENGTHS, FRAMES, [1, 0], -6e4)
    ),
    "silent hidden layers": lambda: make_batch().with_(
        teacher_hidden=torch.zeros(len(LENGTHS), WIDTH, FRAMES, dtype=torch.float64)
    ),
    "large hidden layers": lambda: make_batch().with_(
        teacher_hidden=torch.full((len(LENGTHS), WIDTH, FRAMES), 6e4, dtype=torch.float64),
        student_hidden=torch.full((len(LENGTHS), WIDTH, FRAMES), -6e4, dtype=torch.float64),
    ),
}


@every_loss
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_finite_in_every_precision(name: str, edge: str, dtype: torch.dtype) -> None:
    batch = EDGES[edge]().to(dtype)
    value = LOSSES[name](batch)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(value).all()
    assert torch.isfinite(frame_gradients(name, batch)).all()


@every_loss
def test_nothing_to_learn_from_empty_utterances(name: str) -> None:
    batch = make_batch(lengths=(0, 0))
    assert (LOSSES[name](batch) == 0).all()
    assert (frame_gradients(name, batch) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_loss
def test_half_precision_is_only_in_the_inputs(name: str, dtype: torch.dtype) -> None:
    """The half-precision inputs, widened by hand, give the same value: nothing is computed in half
    precision.
    """
    batch = make_batch(seed=15).to(dtype)
    torch.testing.assert_close(LOSSES[name](batch), LOSSES[name](batch.to(torch.float32)), rtol=0, atol=0)


# --- What each one promises besides


@st.composite
def posteriors(draw: st.DrawFn, frames: int = 4) -> Tensor:
    """Log-probabilities `[1, T, V]` from flat to certain, with zeros among them."""
    sharpness = draw(st.sampled_from([0.0, 1.0, 20.0, 3000.0]))
    rows = draw(
        st.lists(
            st.lists(st.floats(-1, 1), min_size=LABELS, max_size=LABELS), min_size=frames, max_size=frames
        )
    )
    log_probs = (sharpness * torch.tensor([rows], dtype=torch.float64)).log_softmax(-1)
    return torch.where(log_probs < -700, -math.inf, log_probs)


@QUICK
@given(posteriors(), posteriors(), st.integers(0, 4))
def test_l2_is_at_most_two_a_frame(student: Tensor, teacher: Tensor, length: int) -> None:
    mask = frame_weighting.frame_mask(torch.tensor([length]), 4)
    value = losses.skd_l2(student, teacher, mask).item()
    assert 0 <= value <= 2 * length * (1 + 1e-12)


def test_l2_of_certain_networks_that_disagree_reaches_the_bound() -> None:
    batch = EDGES["sure of different labels"]()
    assert skd_of("l2", "all")(batch).tolist() == [2.0 * length for length in LENGTHS]


@QUICK
@given(posteriors(), posteriors(), st.sampled_from([0.5, 1.0, 3.0]))
def test_kl_is_not_negative(student: Tensor, teacher: Tensor, temperature: float) -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert losses.skd_kl(student, teacher, mask, temperature).item() >= -1e-9


@QUICK
@given(posteriors(), posteriors(), st.integers(0, 4))
def test_guided_ctc_lies_between_minus_the_spikes_and_zero(
    student: Tensor, teacher: Tensor, length: int
) -> None:
    mask = frame_weighting.frame_mask(torch.tensor([length]), 4)
    spikes = sum(row.argmax() != BLANK for row in teacher[0, :length])
    assert -float(spikes) * (1 + 1e-12) <= losses.skd_guided_ctc(student, teacher, mask).item() <= 0


def test_kl_pulls_a_student_back_from_far_away() -> None:
    student = torch.tensor([[[-500.0, 0.0]]], requires_grad=True)
    value = losses.skd_kl(
        student, torch.tensor([[[0.0, -math.inf]]]), torch.ones(1, 1, dtype=torch.bool)
    ).sum()
    value.backward()
    assert (
        value.item() == pytest.approx(500, rel=1e-3)
        and student.grad is not None
        and student.grad.abs().sum() > 0
    )


def test_guided_ctc_of_an_all_blank_teacher_is_zero() -> None:
    batch = EDGES["teacher is sure it is all blank"]()
    assert (skd_of("guided_ctc", "all")(batch) == 0).all()


@QUICK
@given(
    st.sampled_from(list(frame_weighting.FRAME_WEIGHTING)),
    st.lists(st.integers(0, FRAMES), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-8, 1e-3, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_frame_weights_have_mean_one_over_valid_frames(
    weighting: str, lengths: list[int], seed: int, loudness: float, dtype: torch.dtype
) -> None:
    batch = fill_padding(make_batch(lengths=lengths, seed=seed), 2, math.nan)
    batch = batch.with_(teacher_hidden=batch.teacher_hidden * loudness).to(dtype)
    weights = frame_weighting.FRAME_WEIGHTING[weighting](batch.teacher, batch.teacher_hidden, batch.mask)
    assert (weights >= 0).all()
    assert (weights[~batch.mask] == 0).all()
    for row, length in zip(weights.tolist(), lengths, strict=True):
        if length:
            assert sum(row[:length]) / length == pytest.approx(1.0, rel=1e-6)


def test_nonblank_weights_favour_the_teachers_spikes() -> None:
    teacher = extreme([2], 2, [0, BLANK], -math.inf)
    weights = frame_weighting.weigh_nonblank(
        teacher, torch.zeros(1, WIDTH, 2), torch.ones(1, 2, dtype=torch.bool)
    )
    assert (weights[0, 0] / weights[0, 1]).item() == pytest.approx(1.05 / 0.05, rel=1e-5)


@pytest.mark.parametrize("scale", [3e-23, 2e-20, 1e-19])
def test_weights_of_hidden_vectors_that_are_nearly_nothing_have_mean_one(scale: float) -> None:
    hidden = scale * torch.tensor([[[1.0, 3.0]] * 3])
    weights = frame_weighting.weigh_energy(torch.empty(0), hidden, torch.ones(1, 2, dtype=torch.bool))
    assert weights.sum().item() == pytest.approx(2, rel=1e-3)


def test_a_silent_utterance_is_weighted_uniformly() -> None:
    batch = EDGES["silent hidden layers"]()
    assert torch.equal(
        frame_weighting.weigh_energy(None, batch.teacher_hidden, batch.mask), batch.mask.double()
    )


@QUICK
@given(st.integers(0, 1000), st.integers(0, 4))
def test_frame_selections_are_nested(seed: int, around: int) -> None:
    batch = make_batch(seed=seed)
    chosen = {
        name: select(batch.teacher, batch.mask, around)
        for name, select in frame_weighting.FRAME_SELECTION.items()
    }
    assert torch.equal(chosen["all"], batch.mask)
    assert not (chosen["nonblank"] & ~chosen["symmetric"]).any()
    assert not (chosen["symmetric"] & ~batch.mask).any()
    if around == 0:
        assert torch.equal(chosen["symmetric"], chosen["nonblank"])


def test_a_spike_in_padding_brings_in_no_neighbour() -> None:
    teacher = extreme([3], 6, [BLANK, BLANK, BLANK, 0], -math.inf)
    mask = frame_weighting.frame_mask(torch.tensor([3]), 6)
    assert not frame_weighting.select_symmetric(teacher, mask, 2).any()


def test_the_tables_are_those_of_the_config() -> None:
    assert ("auto", *frame_weighting.FRAME_WEIGHTING) == config.FRAME_WEIGHTINGS
    assert tuple(losses.DIVERGENCE) == config.DIVERGENCES
    assert tuple(frame_weighting.FRAME_SELECTION) == config.FRAME_SELECTIONS
