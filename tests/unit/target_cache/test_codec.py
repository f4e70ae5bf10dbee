# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The codec of cached targets: what comes back, and what that does to the losses, by slow references in plain
Python.

Legend: `T` frames, `V` labels with the blank last, `D` width of the hint layer.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nemo_tutornet.commands.min_posterior import (
    CANDIDATES,
    DIVERGENCES,
    choose_min_posterior,
    reference_students,
)
from nemo_tutornet.functional import frame_weighting
from nemo_tutornet.target_cache import codec
from tests.properties import examples

pytestmark = pytest.mark.unit
QUICK = examples(60)
SEEDS = st.integers(0, 2**31)
# How much a loss may change.
TOLERANCE = 1e-3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posteriors(frames: int, labels: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    """Spiky ones `[T, V]`, mostly blank, as CTC makes them."""
    logits = sharpness * noise(frames, labels, seed=seed)
    logits[:, -1] += 4 * sharpness
    logits[::4, (seed * 7) % max(1, labels - 1)] += 6 * sharpness
    return logits.log_softmax(dim=-1)


# --- Slow references


def slow_l2(student: list[list[float]], teacher: list[list[float]]) -> float:
    return sum(
        (math.exp(s) - math.exp(t)) ** 2
        for p, q in zip(student, teacher, strict=True)
        for s, t in zip(p, q, strict=True)
    )


def slow_kl(student: list[list[float]], teacher: list[list[float]]) -> float:
    return sum(
        math.exp(t) * (t - s)
        for p, q in zip(student, teacher, strict=True)
        for s, t in zip(p, q, strict=True)
    )


def slow_guided(student: list[list[float]], teacher: list[list[float]]) -> float:
    best = [max(range(len(q)), key=q.__getitem__) for q in teacher]
    return -sum(math.exp(p[i]) for p, q, i in zip(student, teacher, best, strict=True) if i != len(q) - 1)


SLOW = {"l2": slow_l2, "kl": slow_kl, "guided_ctc": slow_guided}


def slow_rkd(student: Tensor, teacher: Tensor, weights: list[float]) -> float:
    width, frames = teacher.shape
    s, t = student.tolist(), teacher.tolist()
    return (
        sum(weights[f] * sum((t[d][f] - s[d][f]) ** 2 for d in range(width)) / width for f in range(frames))
        / frames
    )


def slow_weights(log_probs: Tensor) -> list[float]:
    raw = [1 - math.exp(row[-1]) + frame_weighting.BLANK_FLOOR for row in log_probs.tolist()]
    return [value * len(raw) / sum(raw) for value in raw]


def slow_sparse(coded: codec.SparsePosteriors, labels: int) -> list[list[float]]:
    rows, at = [], 0
    ids, values = coded.ids.tolist(), coded.values.tolist()
    for count, rest in zip(coded.counts.tolist(), coded.residual_log_mass.tolist(), strict=True):
        row = [math.exp(rest) / (labels - count) if count < labels else 0.0] * labels
        for i in range(at, at + count):
            row[ids[i]] = math.exp(values[i])
        at += count
        rows.append([p / sum(row) for p in row])
    return rows


def students(teacher: Tensor) -> list[list[list[float]]]:
    """One that knows nothing, and one a frame late and a tenth unsure."""
    uniform = torch.full_like(teacher, -math.log(teacher.shape[1]))
    late = torch.logaddexp(teacher.roll(1, 0) + math.log(0.9), uniform + math.log(0.1))
    return [uniform.double().tolist(), late.double().tolist()]


# --- Posteriors


@QUICK
@given(
    frames=st.integers(0, 12),
    labels=st.integers(1, 40),
    sharpness=st.floats(0.1, 400),
    seed=SEEDS,
    half=st.booleans(),
)
def test_whole_posteriors_come_back(
    frames: int, labels: int, sharpness: float, seed: int, half: bool
) -> None:
    exact = posteriors(frames, labels, seed, sharpness)
    coded = codec.encode_whole(exact.bfloat16() if half else exact)
    decoded = codec.decode_whole(coded)
    assert coded.dtype == torch.float16 and decoded.shape == exact.shape and decoded.isfinite().all()
    torch.testing.assert_close(decoded.exp().sum(-1), torch.ones(frames), rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded.exp(), exact.exp(), rtol=0, atol=0.05 if half else 5e-4)


@QUICK
@given(
    frames=st.integers(0, 9),
    labels=st.integers(1, 50),
    log_min_posterior=st.floats(-7, -1),
    sharpness=st.floats(0.1, 99),
    seed=SEEDS,
)
def test_sparse_posteriors_come_back(
    frames: int, labels: int, log_min_posterior: float, sharpness: float, seed: int
) -> None:
    exact, min_posterior = posteriors(frames, labels, seed, sharpness), 10**log_min_posterior
    coded = codec.encode_sparse(exact, min_posterior)
    decoded = codec.decode_sparse(coded, labels)
    assert coded.counts.dtype == coded.ids.dtype == torch.uint16 and coded.counts.sum(
        dtype=torch.long
    ) == len(coded.ids)
    assert decoded.shape == exact.shape and decoded.isfinite().all()
    torch.testing.assert_close(
        decoded.double().exp(),
        torch.tensor(slow_sparse(coded, labels)).double().view(frames, labels),
        rtol=1e-3,
        atol=1e-6,
    )
    torch.testing.assert_close(decoded.exp().sum(-1), torch.ones(frames), rtol=0, atol=1e-4)
    kept = exact >= math.log(min_posterior)
    assert (coded.counts.long() == kept.sum(-1).clamp(min=1)).all()
    torch.testing.assert_close(decoded.exp()[kept], exact.exp()[kept], rtol=0.02, atol=1e-3)


def test_an_impossible_label_is_no_infinity() -> None:
    exact = torch.tensor([[-math.inf, 0.0, -math.inf], [0.0, -math.inf, -3e5]])
    for decoded in (
        codec.decode_whole(codec.encode_whole(exact)),
        codec.decode_sparse(codec.encode_sparse(exact, 0.1), 3),
    ):
        assert decoded.isfinite().all() and torch.equal(decoded.exp(), exact.exp())


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_rounding_makes_no_other_label_the_best(winner: int) -> None:
    """In fp16 both are -0.6934: the argmax, which `guided_ctc` and `nonblank` read, would be the first of
    them.
    """
    exact = torch.full((1, 3), math.log(0.49999 / 1))
    exact[0, (winner + 1) % 3] = -20.0
    exact[0, winner] = math.log(0.50001)
    assert codec.decode_whole(codec.encode_whole(exact)).argmax() == winner
    assert codec.decode_sparse(codec.encode_sparse(exact, 1e-3), 3).argmax() == winner
    coded = codec.encode_whole(exact)[0]
    assert (coded == coded.max()).sum() == 1


@pytest.mark.parametrize("name", DIVERGENCES[0:3], ids=lambda entry: entry[0])
@pytest.mark.parametrize("labels", [29, 300])
def test_skd_keeps_its_value(name: tuple, labels: int) -> None:
    samples = [posteriors(40, labels, seed) for seed in (1, 2)]
    min_posterior = choose_min_posterior(samples)
    assert (min_posterior is None) == (labels == 29)
    for exact in samples:
        if min_posterior is None:
            decoded = codec.decode_whole(codec.encode_whole(exact))
        else:
            decoded = codec.decode_sparse(codec.encode_sparse(exact, min_posterior), labels)
        for student in students(exact):
            slow = SLOW[name[0]]
            before, after = slow(student, exact.double().tolist()), slow(student, decoded.double().tolist())
            assert before != 0 and abs(after - before) < TOLERANCE * abs(before)


def test_the_largest_good_min_posterior_is_chosen() -> None:
    samples = [posteriors(60, 300, seed) for seed in range(3)]
    chosen = {name: choose_min_posterior(samples, [(name, 1.0)]) for name, _ in DIVERGENCES}
    strict = choose_min_posterior(samples)
    assert strict == min(chosen.values())
    looser = CANDIDATES[CANDIDATES.index(strict) - 1]
    changes = []
    for student in ("uniform", "late", "unsure"):
        for name, _ in DIVERGENCES:
            sums = [0.0, 0.0]
            for exact in samples:
                log_probs = dict(reference_students(exact))[student].double().tolist()
                decoded = codec.decode_sparse(codec.encode_sparse(exact, looser), 300)
                for i, teacher in enumerate((exact, decoded)):
                    sums[i] += SLOW[name](log_probs, teacher.double().tolist())
            changes.append(abs(sums[1] - sums[0]) / abs(sums[0]))
    assert max(changes) > TOLERANCE


def test_posteriors_that_no_min_posterior_serves_stay_whole() -> None:
    # A temperature weighs the dropped posteriors.
    assert choose_min_posterior([posteriors(20, 300)], [("kl", 4.0)]) is None
    assert choose_min_posterior([noise(20, 300).log_softmax(-1)]) is None  # a teacher that is sure of nothing
    assert choose_min_posterior([posteriors(20, 128)]) is None


def test_frame_weights_keep_their_value() -> None:
    for labels, min_posterior in ((29, None), (300, 1e-4)):
        exact = posteriors(80, labels)
        if min_posterior is None:
            decoded = codec.decode_whole(codec.encode_whole(exact))
        else:
            decoded = codec.decode_sparse(codec.encode_sparse(exact, min_posterior), labels)
        torch.testing.assert_close(
            torch.tensor(slow_weights(decoded)), torch.tensor(slow_weights(exact)), rtol=1e-3, atol=1e-4
        )


# --- Hidden vectors


@QUICK
@given(
    width=st.integers(0, 9),
    frames=st.integers(0, 9),
    scale=st.floats(-25, 25),
    spread=st.floats(0, 8),
    seed=SEEDS,
)
def test_hidden_vectors_come_back(width: int, frames: int, scale: float, spread: float, seed: int) -> None:
    exact = noise(width, frames, seed=seed) * 2.0**scale
    exact = (
        exact
        * (spread * noise(width, 1, seed=seed + 1)).exp2()
        * (spread * noise(1, frames, seed=seed + 2)).exp2()
    )
    coded = codec.encode_hidden(exact)
    decoded = codec.decode_hidden(coded)
    assert (
        coded.values.dtype == torch.int8
        and coded.values.shape == (frames, width)
        and decoded.shape == exact.shape
    )
    if exact.numel():
        # Half a step of 127 of the frame's largest under the channels' gains; a frame's may waste an eighth
        # of an octave.
        gains = torch.exp2(-coded.channels.double() / 8)[:, None]
        bound = 0.5 / 127 * 2**0.125 * gains * ((exact / gains).abs().amax(dim=0) + coded.peak * 2.0**-31)
        assert ((decoded - exact).abs() <= 1.001 * bound).all()


def test_zeros_and_one_value() -> None:
    assert torch.equal(codec.decode_hidden(codec.encode_hidden(torch.zeros(3, 4))), torch.zeros(3, 4))
    one = torch.tensor([[-7.3]])
    torch.testing.assert_close(codec.decode_hidden(codec.encode_hidden(one)), one, rtol=1e-5, atol=0)
    assert torch.equal(codec.decode_hidden(codec.encode_hidden(torch.zeros(2, 0))), torch.zeros(2, 0))
    assert torch.equal(codec.decode_hidden(codec.encode_hidden(torch.full((2, 2), 1e-40))), torch.zeros(2, 2))


@pytest.mark.parametrize("level", [1.0, 0.37])
def test_rkd_keeps_its_value(level: float) -> None:
    """Layer-normalised vectors; 0.37 of their variance is what a linear map from a trained QuartzNet's
    features leaves.
    """
    exact = torch.nn.functional.layer_norm(noise(150, 64), (64,)).T.contiguous()
    student = exact + math.sqrt(level) * noise(64, 150, seed=3)
    decoded = codec.decode_hidden(codec.encode_hidden(exact))
    weights = slow_weights(posteriors(150, 29))
    before, after = slow_rkd(student, exact, weights), slow_rkd(student, decoded, weights)
    assert abs(after - before) < TOLERANCE * before


@pytest.mark.parametrize("loud", [30.0, 1000.0])
def test_a_loud_channel_or_frame_costs_the_others_nothing(loud: float) -> None:
    exact = torch.nn.functional.layer_norm(noise(150, 64), (64,)).T.contiguous()
    exact[63] *= loud
    exact[:, 149] *= loud
    decoded = codec.decode_hidden(codec.encode_hidden(exact))
    student = exact + math.sqrt(0.37) * noise(64, 150, seed=3)
    quiet = slice(0, 63), slice(0, 149)
    before, after = (slow_rkd(student[quiet], one[quiet], [1.0] * 149) for one in (exact, decoded))
    assert abs(after - before) < TOLERANCE * before


def test_a_frame_that_is_sure_of_nothing_keeps_its_best() -> None:
    coded = codec.encode_sparse(torch.full((2, 50), -math.log(50)), 0.1)
    assert coded.counts.tolist() == [1, 1] and coded.ids.tolist() == [0, 0]
