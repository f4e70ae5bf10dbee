# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How many utterances may be damaged in a set that Lhotse reads."""

from __future__ import annotations

import multiprocessing

import pytest

from nemo_tutornet.data import damaged_lhotse
from nemo_tutornet.data.damaged_lhotse import DamagedUtterances
from tests.conftest import refusal


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("nemo.utils.logging.warning", lambda text, *_, **__: found.append(str(text)))
    return found


@pytest.mark.parametrize("rows", [99, 100, 1000])
def test_a_set_of_more_utterances_than_are_counted_is_said_to_be_one(
    rows: int, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damaged_lhotse, "MOST_ROWS", 100)
    monkeypatch.setattr(damaged_lhotse, "lhotse_rows", lambda _, __, most: iter(range(min(rows, most))))
    damaged = DamagedUtterances("train_ds", 0.02, {})
    damaged.note("0.wav", "cut off", "fix it")
    counted, limit = ("99", "99") if rows == 99 else ("at least 100", "the first 100")
    assert warnings[0].endswith(f"(damaged so far: 1 of {counted}).")
    if rows >= 100:
        damaged.note("1.wav", "cut off", "fix it")
    message = refusal(damaged.note, "2.wav", "cut off", "fix it")
    assert f", and at most 2 % of {limit} utterances may be; fix it" in message


def test_the_workers_count_the_set_once(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = multiprocessing.get_context("fork").Value("i", 0)

    def lhotse_rows(*_: object) -> range:
        counted.value += 1
        return range(1000)

    monkeypatch.setattr(damaged_lhotse, "lhotse_rows", lhotse_rows)
    damaged = DamagedUtterances("train_ds", 0.5, {})
    for name in ("0.wav", "1.wav"):
        note = damaged.note
        worker = multiprocessing.get_context("fork").Process(target=note, args=[name, "cut off", "fix it"])
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    assert counted.value == 1
