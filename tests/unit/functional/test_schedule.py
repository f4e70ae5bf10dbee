# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Which stage counts at which point of training."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_tutornet.config import StageConfig, TeacherConfig, TutorConfig
from nemo_tutornet.functional.schedule import Schedule, Stage, progress, steps_per_epoch
from tests.conftest import refusal
from tests.properties import examples

QUICK = examples(100)


def stage(name: str, length: float | None = None, **weights: float) -> Stage:
    return Stage(name, weights or {"ctc": 1.0}, length)


def stages_of(lengths: list[int], last: int | None) -> list[Stage]:
    return [stage(f"s{i}", length) for i, length in enumerate([*lengths, last])]


@QUICK
@given(
    st.lists(st.integers(1, 9), max_size=4),
    st.none() | st.integers(1, 9),
    st.sampled_from(["epochs", "steps"]),
)
def test_index_agrees_with_the_stages_written_out(lengths: list[int], last: int | None, unit: str) -> None:
    schedule = Schedule(stages_of(lengths, last), unit)
    written = [i for i, length in enumerate(lengths) for _ in range(length)]
    written += [len(lengths)] * ((last or 0) + 5)  # the last one runs on, with or without a length
    other = 10_000  # the other unit's count never matters
    for position, expected in enumerate(written):
        found = schedule.index(position, other) if unit == "epochs" else schedule.index(other, position)
        assert found == expected


@pytest.mark.parametrize("epoch, expected", [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (500, 2)])
def test_boundaries_in_epochs(epoch: int, expected: int) -> None:
    schedule = Schedule([stage("a", 2), stage("b", 3), stage("c")])
    assert schedule.unit == "epochs"
    assert schedule.index(epoch, step=0) == expected


@pytest.mark.parametrize("step, expected", [(0, 0), (99, 0), (100, 1), (149, 1), (150, 2), (10**9, 2)])
def test_boundaries_in_steps(step: int, expected: int) -> None:
    schedule = Schedule([stage("a", 100), stage("b", 50), stage("c")], "steps")
    assert schedule.index(epoch=0, step=step) == expected


@pytest.mark.parametrize(
    "share, expected", [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (1.0, 2)]
)
def test_boundaries_in_shares(share: float, expected: int) -> None:
    schedule = Schedule([stage("a", 0.25), stage("b", 0.5), stage("c")], "share")
    assert schedule.index(10_000, 10_000, share) == expected


@QUICK
@given(st.integers(1, 40), st.integers(1, 30), st.floats(0.01, 0.99))
def test_a_share_takes_as_many_steps_in_epochs_as_in_steps(epochs: int, batches: int, length: float) -> None:
    schedule = Schedule([stage("a", length), stage("b")], "share")
    taken = {"epochs": 0, "steps": 0}
    for step in range(epochs * batches):
        by_epochs = progress(step // batches + step % batches / batches, step, epochs, -1)
        by_steps = progress(step // batches, step, None, epochs * batches)
        taken["epochs"] += schedule.index(0, 0, by_epochs or 0.0) == 0
        taken["steps"] += schedule.index(0, 0, by_steps or 0.0) == 0
    assert abs(taken["epochs"] - taken["steps"]) <= 1  # rounding of the two quotients
    assert abs(taken["steps"] - length * epochs * batches) <= 1


@pytest.mark.parametrize(
    "epochs, steps, max_epochs, max_steps, expected",
    [
        (3, 30, 12, -1, 0.25),
        (0, 0, 0, 40, 0.0),
        (3, 30, None, 40, 0.75),
        (3, 30, -1, 40, 0.75),
        (3, 30, 12, 40, 0.75),  # the steps end first
        (9, 30, 12, 400, 0.75),  # the epochs do
        (0, 0, 12, 40, 0.0),
        (13, 30, 12, -1, 1.0),
        (3, 30, -1, -1, None),
        (3, 30, None, None, None),
    ],
)
def test_progress_is_towards_the_nearer_limit(
    epochs: float, steps: int, max_epochs: int | None, max_steps: int | None, expected: float | None
) -> None:
    assert progress(epochs, steps, max_epochs, max_steps) == expected


@pytest.mark.parametrize("length", [None, 1, 7])
def test_a_single_stage_never_ends(length: int | None) -> None:
    for unit in ("epochs", "steps", "share"):
        assert {Schedule([stage("only", length)], unit).index(n, n, n / 20) for n in range(20)} == {0}


def test_resuming_in_the_middle_needs_the_position_only() -> None:
    def fresh() -> Schedule:
        return Schedule([stage("a", 3), stage("b", 4), stage("c")])

    used = fresh()
    straight = [used.index(epoch, 10 * epoch) for epoch in range(12)]
    assert straight == [fresh().index(epoch, 10 * epoch) for epoch in range(12)]
    assert straight[::-1] == [used.index(epoch, 10 * epoch) for epoch in reversed(range(12))]


@pytest.mark.parametrize("stages", [[], [stage("a"), stage("b", 1)], [stage("a", 1), stage("b"), stage("c")]])
def test_an_impossible_schedule_is_refused(stages: list[Stage]) -> None:
    with pytest.raises(ValueError, match="stage"):
        Schedule(stages)


def test_the_schedule_keeps_its_own_stages() -> None:
    given_stages = [stage("a", 1), stage("b")]
    schedule = Schedule(given_stages)
    given_stages.clear()
    assert [s.name for s in schedule.stages] == ["a", "b"]
    with pytest.raises(FrozenInstanceError):
        schedule.stages[0].name = "x"  # type: ignore[misc]


# --- From the config


def config_stage(
    name: str, epochs: int | None = None, steps: int | None = None, **weights: float
) -> StageConfig:
    return StageConfig(name=name, weights=weights, epochs=epochs, steps=steps)


def test_the_default_schedule_keeps_rkd_beside_ctc() -> None:
    schedule = Schedule.from_config(TutorConfig(teacher=TeacherConfig(model_path="t.nemo")).stages)
    assert schedule.unit == "share"
    assert [(s.name, dict(s.weights), s.length) for s in schedule.stages] == [
        ("rkd", {"rkd": 0.37}, 0.25),
        ("ctc", {"ctc": 1.0, "rkd": 1.85}, None),
    ]
    assert [schedule.index(0, 0, share) for share in (0.0, 0.24, 0.25, 0.9)] == [0, 0, 1, 1]


def test_steps_in_the_config_make_a_schedule_of_steps() -> None:
    schedule = Schedule.from_config([config_stage("a", steps=30, rkd=1.0), config_stage("b", ctc=1.0)])
    assert schedule.unit == "steps"
    assert [s.length for s in schedule.stages] == [30, None]
    assert (schedule.index(99, 29), schedule.index(0, 30)) == (0, 1)


def test_steps_of_the_last_stage_alone_make_a_schedule_of_steps() -> None:
    schedule = Schedule.from_config([config_stage("a", steps=30, ctc=1.0)])
    assert (schedule.unit, schedule.stages[0].length) == ("steps", 30)


def test_a_last_stage_with_a_length_runs_on() -> None:
    schedule = Schedule.from_config(
        [config_stage("a", epochs=1, rkd=1.0), config_stage("b", epochs=2, ctc=1.0)]
    )
    assert [schedule.index(epoch, 0) for epoch in range(6)] == [0, 1, 1, 1, 1, 1]


def test_a_weight_of_zero_is_no_loss() -> None:
    (only,) = Schedule.from_config([config_stage("a", ctc=1.0, skd=0.0)]).stages
    assert only.uses("ctc") and not only.uses("skd") and not only.uses("rkd")
    assert dict(only.weights) == {"ctc": 1.0}


# --- Resuming


@pytest.mark.parametrize(
    "names, expected", [("abc", 1), ("b", 0), ("bc", 0), ("xabc", 2), ("cba", 1), ("axb", 2)]
)
def test_a_resumed_run_is_in_the_stage_of_the_same_name(names: str, expected: int) -> None:
    schedule = Schedule([stage(name, 1) for name in names])
    assert schedule.resumed("b") == expected and schedule.resumed(None) is None


def test_a_stage_that_is_gone_is_named() -> None:
    schedule = Schedule([stage("a", 1), stage("b")])
    assert refusal(schedule.resumed, "rkd") == (
        "the checkpoint was saved in stage 'rkd', but model.tutor.stages has only 'a', 'b'; "
        "resume with the stages that the run began with, or begin a new run."
    )


# --- The training's limits


@pytest.mark.parametrize(
    "unit, lengths, limits, never",
    [
        (
            "epochs",
            [5, None],
            (5, -1),
            ["Stage 'b' is never reached: the stages before it take 5 of 5 epochs."],
        ),
        ("epochs", [5, None], (6, -1), []),
        ("epochs", [5, None], (-1, 3), []),  # how many epochs three steps are nobody knows here
        (
            "epochs",
            [5, 2, None],
            (5, None),
            ["Stage 'b' is never", "Stage 'c' is never reached: the stages before it take 7 of 5"],
        ),
        (
            "steps",
            [10, None],
            (None, 10),
            ["Stage 'b' is never reached: the stages before it take 10 of 10 steps."],
        ),
        ("steps", [10, None], (1, -1), []),
        ("share", [0.25, None], (1, -1), []),
        ("share", [0.25, None], (-1, 100), []),
    ],
)
def test_a_stage_that_is_never_reached_is_reported(
    unit: str, lengths: list, limits: tuple, never: list[str]
) -> None:
    printed = Schedule([stage("abc"[i], length) for i, length in enumerate(lengths)], unit).unreached(*limits)
    assert len(printed) == len(never) and all(
        one.startswith(words) for one, words in zip(printed, never, strict=True)
    )


@pytest.mark.parametrize("limits", [(-1, -1), (None, None), (None, -1)])
def test_a_share_of_an_endless_training_is_refused(limits: tuple) -> None:
    assert "neither trainer.max_epochs nor trainer.max_steps" in refusal(
        Schedule([stage("a", 0.25), stage("b")], "share").check, *limits
    )
    endless = Schedule([stage("a", 5), stage("b")])
    endless.check(*limits)
    assert endless.unreached(*limits, epoch_steps=10) == []


@pytest.mark.parametrize(
    "unit, length, limits, batches, accumulated, words",
    [
        ("steps", 20000, (100, -1), 50, 1, "20000 of 5000 steps (100 epochs of 50 steps)"),
        ("steps", 4999, (100, -1), 50, 1, None),
        ("steps", 300, (100, -1), 10, 4, "300 of 300 steps (100 epochs of 3 steps)"),  # 4 + 4 + 2 batches
        ("steps", 20000, (100, -1), float("inf"), 1, None),  # a stream
        ("steps", 600, (100, 500), 50, 1, "600 of 500 steps"),
        ("steps", 600, (10, 5000), 50, 1, "600 of 500 steps (10 epochs of 50 steps)"),
        ("epochs", 5, (-1, 250), 50, 1, "5 of 5 epochs (250 steps, 50 in an epoch)"),
        ("epochs", 5, (None, 120), 50, 1, "5 of 2.4 epochs (120 steps, 50 in an epoch)"),
        ("epochs", 5, (-1, 251), 50, 1, None),
        ("share", 0.5, (1, 1), 50, 1, None),
    ],
)
def test_a_limit_in_the_other_unit_counts_where_an_epochs_length_is_known(
    unit: str, length: float, limits: tuple, batches: float, accumulated: int, words: str | None
) -> None:
    schedule = Schedule([stage("a", length), stage("b")], unit)
    printed = schedule.unreached(*limits, steps_per_epoch(batches, accumulated))
    expected = f"Stage 'b' is never reached: the stages before it take {words}."
    assert printed == ([] if words is None else [expected])
