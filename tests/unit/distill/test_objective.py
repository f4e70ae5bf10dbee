# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The objective by hand: targets put on each layer's own frames, and every key of `tutor.skd` reaching its
function.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nemo_tutornet.config import ConsistencyConfig, RKDConfig, SKDConfig, TeacherConfig, TutorConfig
from nemo_tutornet.distill.losses import LOSSES, ConsistencyLoss, LossContext
from nemo_tutornet.distill.matching import LayerPair, ModelMatch
from nemo_tutornet.distill.objective import Objective, read_tutor_section
from nemo_tutornet.distill.student_capture import StudentOutputs
from nemo_tutornet.functional import frame_weighting, losses
from nemo_tutornet.functional.alignment import teacher_frames
from nemo_tutornet.functional.schedule import Stage
from nemo_tutornet.functional.skd_alignment import pool_student, skd_occurrences
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.teachers.targets import TargetRequest, TeacherTargets
from tests.conftest import refusal

LABELS, WIDTH, HINT = 5, 3, 4
LENGTHS, HEARD = torch.tensor([4, 3, 2]), torch.tensor([8, 6, 0])  # the teacher heard nothing in the third


def noise(*shape: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(
    reduction: str = "mean_batch",
    heads: bool = False,
    pairs: tuple[LayerPair, ...] = (),
    frame_mean: bool = False,
    **skd: object,
) -> Objective:
    """A student of 80 ms, guided at 40 and with a head at 20; a teacher of 40 ms with a hint layer at 10."""
    match = ModelMatch(
        student_encoder=Layer("encoder", WIDTH, 2, 80.0),
        guided=Layer("g", WIDTH, 2, 40.0),
        heads=(Layer("h", WIDTH, 2, 20.0),) if heads else (),
        teacher_encoder=Layer("encoder", HINT, 2, 40.0),
        hint=Layer("t", HINT, 2, 10.0),
        label_order=None,
        frame_weighting="nonblank",
        no_warm_start=None,
        further_pairs=pairs,
    )
    rkd = RKDConfig(reduction="frame_mean" if frame_mean else None)
    config = TutorConfig(teacher=TeacherConfig(model_path="t"), rkd=rkd, skd=SKDConfig(**skd))
    torch.manual_seed(0)
    return Objective(LossContext(config, match, (), LABELS, reduction))


def sum_of(log_probs: torch.Tensor, *_: object) -> torch.Tensor:
    return log_probs.sum()


STUDENT = StudentOutputs(
    log_probs=noise(3, 4, LABELS, seed=1).log_softmax(-1),
    lengths=LENGTHS,
    guided=noise(3, WIDTH, 8, seed=2),
    intermediate=(noise(3, WIDTH, 16, seed=3),),
    transcripts=torch.zeros(3, 2, dtype=torch.long),
    target_lengths=torch.tensor([0, 3, 1]),
    ctc_loss=sum_of,
    ctc=torch.tensor(7.0),
)
TEACHER = TeacherTargets(
    lengths=HEARD, log_probs=noise(3, 8, LABELS, seed=4).log_softmax(-1), hidden=noise(3, HINT, 32, seed=5)
)
HEARING = (HEARD > 0)[:, None]
# Of the two teacher frames under one of the student the less blank one; the last valid one where it has no
# more.
POOLED = torch.stack(
    [torch.stack([pair[pair[:, -1].argmin()] for pair in row.split(2)]) for row in TEACHER.log_probs]
)


def terms(objective: Objective, ctc: Any = sum_of, /, **weights: float) -> dict[str, torch.Tensor]:
    student = replace(STUDENT, ctc_loss=ctc, heads=tuple(objective.heads))
    return objective(Stage("s", weights), student, TEACHER)


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
def test_rkd_is_on_the_guided_layers_frames(reduction: str) -> None:
    objective = build(reduction)
    mask = frame_weighting.frame_mask(2 * LENGTHS - 1, 8) & HEARING  # the last of two may be padding
    hidden = TEACHER.hidden.unflatten(2, (8, 4)).mean(dim=3)
    weights = frame_weighting.weigh_nonblank(TEACHER.log_probs, hidden, mask)
    arguments = objective.modules["projection"](STUDENT.guided), hidden, weights, mask
    sums = losses.rkd_of_utterances(*arguments)
    expected = losses.reduce_over_time(sums, mask.sum(1), 0.04, STUDENT.target_lengths, reduction)
    torch.testing.assert_close(terms(objective, rkd=1.0)["rkd"], expected)
    mean = build(reduction, frame_mean=True)
    torch.testing.assert_close(terms(mean, rkd=1.0)["rkd"], losses.rkd(*arguments))


@pytest.mark.parametrize("frame_weighting, of_blank", [("nonblank", 1), ("energy", 0), ("uniform", 0)])
def test_rkd_aligns_of_the_posteriors_only_the_blank_and_only_to_weigh_frames(
    monkeypatch: pytest.MonkeyPatch, frame_weighting: str, of_blank: int
) -> None:
    objective = build()
    object.__setattr__(objective.losses["rkd"].context.match, "frame_weighting", frame_weighting)
    expected = terms(objective, rkd=1.0)["rkd"]
    asked = []
    whole = ModelMatch.align_blank
    monkeypatch.setattr(ModelMatch, "align_posteriors", None)
    monkeypatch.setattr(ModelMatch, "align_blank", lambda *arguments: asked.append(1) or whole(*arguments))
    assert torch.equal(terms(objective, rkd=1.0)["rkd"], expected) and len(asked) == of_blank


def test_rkd_is_the_mean_over_the_pairs_of_layers() -> None:
    """Two pairs, of which the second has other widths and frames: the mean of what each gives alone."""
    pair = LayerPair(Layer("g2", WIDTH + 1, 2, 80.0), Layer("t2", HINT + 2, 2, 40.0))
    both, guided, hint = build(pairs=(pair,)), noise(3, WIDTH + 1, 4, seed=8), noise(3, HINT + 2, 8, seed=9)
    first, second = both.losses["rkd"].modules.values()
    assert list(both.modules)[:2] == ["projection", "projection g2 to t2"]
    student, teacher = replace(STUDENT, further_guided=(guided,)), replace(TEACHER, further_hidden=(hint,))
    alone = build()
    with torch.no_grad():
        for mine, theirs in zip(alone.modules["projection"].parameters(), first.parameters(), strict=True):
            mine.copy_(theirs)
    mask = frame_weighting.frame_mask(LENGTHS, 4) & HEARING
    hidden = hint.unflatten(2, (4, 2)).mean(dim=3)
    weights = frame_weighting.weigh_nonblank(POOLED, hidden, mask)
    sums = losses.rkd_of_utterances(second(guided), hidden, weights, mask)
    expected = losses.reduce_over_time(sums, mask.sum(1), 0.08, STUDENT.target_lengths, "mean_batch")
    found = both(Stage("s", {"rkd": 1.0}), student, teacher)["rkd"]
    torch.testing.assert_close(found, (terms(alone, rkd=1.0)["rkd"] + expected) / 2)


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
@pytest.mark.parametrize("frames", ["all", "nonblank", "symmetric"])
@pytest.mark.parametrize("around, shift", [(0, 0), (1, 3), (2, 2)])
@pytest.mark.parametrize("divergence, temperature", [("kl", 2.0), ("l2", 1.0)])
def test_skd_takes_every_key(
    reduction: str, frames: str, around: int, shift: int, divergence: str, temperature: float
) -> None:
    valid = frame_weighting.frame_mask(LENGTHS, 4) & HEARING
    match = frame_weighting.match_frames(STUDENT.log_probs, POOLED, valid, shift)
    matched = STUDENT.log_probs.gather(1, match[..., None].expand_as(STUDENT.log_probs))
    chosen = frame_weighting.FRAME_SELECTION[frames](POOLED, valid, around)
    each = losses.DIVERGENCE[divergence](matched, POOLED, chosen, temperature)
    heard = frame_weighting.greedy_lengths(POOLED, valid)[0]
    assert heard > 1
    expected = losses.reduce_like_ctc(each, torch.stack([heard, torch.tensor(3), torch.tensor(1)]), reduction)
    objective = build(
        reduction,
        divergence=divergence,
        temperature=temperature,
        frames=frames,
        frames_around=around,
        match_window=shift,
    )
    torch.testing.assert_close(terms(objective, skd=1.0)["skd"], expected)


def test_a_head_is_compared_on_its_own_frames() -> None:
    asked = []

    def ctc(log_probs: torch.Tensor, lengths: torch.Tensor, *_: object) -> torch.Tensor:
        asked.append(lengths.tolist())
        return log_probs.sum()

    objective = build(heads=True)
    found = terms(objective, ctc, ctc=1.0, skd=0.5)
    assert asked == [[13, 9, 5]]  # three of four may be padding
    own = objective.heads[0](STUDENT.intermediate[0])
    mask = frame_weighting.frame_mask(4 * LENGTHS - 3, 16) & HEARING
    expected = losses.skd_l2(own, TEACHER.log_probs.repeat_interleave(2, dim=1), mask).mean()
    torch.testing.assert_close(found["inter_skd"], expected)


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "mean", "sum"])
@pytest.mark.parametrize("alignment", ["pool_student", "occurrences"])
def test_skd_without_repeated_frames(alignment: str, reduction: str) -> None:
    """The head has two frames for each of the teacher's, and each utterance its own valid frames."""
    objective = build(reduction, heads=True, divergence="kl", alignment=alignment)
    own, teacher = objective.heads[0](STUDENT.intermediate[0]), TEACHER.log_probs
    mask = frame_weighting.frame_mask(4 * LENGTHS - 3, 16) & HEARING
    index, of_teacher = teacher_frames(16, HEARD, 0.5), frame_weighting.frame_mask(HEARD, 8)
    if alignment == "occurrences":
        each = skd_occurrences(own, teacher, index, mask, of_teacher)
    else:
        pooled, found = pool_student(own, index, mask, 8)
        each = losses.skd_kl(pooled, teacher, found & of_teacher)
    heard = frame_weighting.greedy_lengths(teacher, of_teacher)[0]
    expected = losses.reduce_like_ctc(each, torch.stack([heard, torch.tensor(3), torch.tensor(1)]), reduction)
    found_terms = terms(objective, skd=1.0)
    torch.testing.assert_close(found_terms["inter_skd"], expected)
    found_terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.heads[0].parameters())


def test_heads_count_where_the_stage_has_skd_and_their_ctc_where_it_has_ctc() -> None:
    objective = build(heads=True, intermediate_weight=0.5)
    assert objective.weights(Stage("s", {"ctc": 1.0})) == {"ctc": 1.0}
    assert objective.weights(Stage("s", {"skd": 1.0})) == {"skd": 1.0, "inter_skd": 0.5}
    assert objective.weights(Stage("s", {"ctc": 1.0, "skd": 1.0})) == {
        "skd": 1.0,
        "inter_skd": 0.5,
        "inter_ctc": 0.5,
        "ctc": 1.0,
    }
    assert set(terms(objective, skd=1.0)) == {"loss", "skd", "inter_skd"}  # without CTC, none of the heads


def test_the_loss_is_the_weighted_sum() -> None:
    found = terms(build(), rkd=2.0, skd=0.5, ctc=3.0)
    expected = 2.0 * found["rkd"] + 0.5 * found["skd"] + 3.0 * 7.0
    torch.testing.assert_close(found["loss"], expected)
    assert set(found) == {"loss", "rkd", "skd", "ctc"}


@pytest.mark.parametrize(
    "weights, trained",
    [
        ({"rkd": 1.0}, False),
        ({"ctc": 1.0}, True),
        ({"skd": 1.0}, True),
        ({"pseudo": 1.0}, True),
        ({"rkd": 1.0, "skd": 0.1}, True),
        ({"ctc": 1.0, "rkd": 5.0}, True),
    ],
)
def test_what_trains_the_decoder(weights: dict[str, float], trained: bool) -> None:
    assert build().trains_decoder(Stage("s", weights)) is trained


def test_what_is_requested_of_the_teacher() -> None:
    objective = build()  # its frame weighting reads the posteriors
    assert objective.request([Stage("a", {"rkd": 1.0})]) == TargetRequest(hidden=True, posteriors=True)
    assert objective.request([Stage("a", {"skd": 1.0})]) == TargetRequest(posteriors=True)
    assert not objective.request([Stage("a", {"ctc": 1.0})])
    both = [Stage("a", {"skd": 1.0}), Stage("b", {"pseudo": 1.0, "ctc": 1.0})]
    assert objective.request(both) == TargetRequest(posteriors=True, hypotheses=True)


def test_modules_that_no_loss_of_a_stage_uses() -> None:
    objective = build(heads=True)
    assert list(objective.modules) == ["projection", "head h"]
    projection, head = objective.modules.values()
    assert objective.unused_modules(Stage("s", {"rkd": 1.0})) == [head]
    assert objective.unused_modules(Stage("s", {"ctc": 1.0, "skd": 1.0})) == [projection]
    assert objective.unused_modules(Stage("s", {"ctc": 1.0})) == [projection, head]


def test_consistency_warms_up_from_its_first_step() -> None:
    class One(ConsistencyLoss):
        def __call__(self, *_: object) -> torch.Tensor:
            return torch.tensor(1.0)

    objective = build()
    objective.losses["consistency"].context.config.consistency = ConsistencyConfig(weight=0.5, warmup=4)
    objective.losses["consistency"] = One(objective.losses["ctc"].context)
    ctc, alone = Stage("ctc", {"ctc": 1.0}), Stage("rkd", {"rkd": 1.0})

    def share(stage: Stage, steps: int) -> float:
        objective.note_step(stage, steps)
        return (float(objective(ctc, STUDENT, TEACHER)["loss"]) - 7.0) / 0.5

    objective.note_step(alone, 0)
    assert objective.consistent_since is None
    assert [share(ctc, steps) for steps in (10, 11, 14, 30)] == [0.0, 0.25, 1.0, 1.0]
    objective.note_step(alone, 31)
    assert share(ctc, 32) == 1.0 and objective.consistent_since == 10
    assert share(ctc, 2) == 0.0, "a new training that begins with this state"


def test_what_is_kept_for_the_log_has_no_graph() -> None:
    objective = build()
    terms(objective, rkd=1.0)
    assert not objective.diagnostics(Stage("s", {"rkd": 1.0}))["rkd_r2"].requires_grad


def test_a_name_that_is_no_loss_is_refused() -> None:
    for name in ("mse", "inter_skd"):
        config = {
            "tutor": {"teacher": {"model_path": "t"}, "stages": [{"name": "a", "weights": {name: 1.0}}]}
        }
        expected = f"model.tutor.stages[0].weights.{name} is not a loss; choose from rkd, skd, pseudo, ctc."
        assert refusal(read_tutor_section, config) == expected


def test_every_loss_has_its_own_name() -> None:
    assert all(loss.name == name for name, loss in LOSSES.items())


def test_losses_are_fp32_under_autocast():
    objective = build(heads=True)
    plain = terms(objective, rkd=1.0, ctc=1.0, skd=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = terms(objective, rkd=1.0, ctc=1.0, skd=1.0)
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32 and torch.equal(mixed[name], value), name
