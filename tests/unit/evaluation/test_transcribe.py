# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio is read in blocks: neither the memory nor the measured time depends on how much of it there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.evaluation import evaluate, transcribe
from nemo_tutornet.utils.progress import no_report

RATE = 100
DURATIONS = 5 * [3.0, 1.0, 5.0, 2.0, 4.0, 1.5, 2.5, 3.5, 4.5]
ROWS = [Utterance(Path(f"{i}.wav"), seconds, "a") for i, seconds in enumerate(DURATIONS)]
LONGEST, PASSES = 2, 3


class Recogniser:
    """Writes the length of each utterance; a second of audio takes a second."""

    sample_rate = RATE
    preprocessor = SimpleNamespace(_sample_rate=RATE)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batches: list[list[int]] = []

    def eval(self) -> None:
        pass

    def get_transcribe_config(self) -> Any:
        return SimpleNamespace()

    def transcribe(self, audio: list[np.ndarray]) -> list[str]:
        self.clock.now += sum(map(len, audio)) / RATE
        self.batches.append([len(samples) for samples in audio])
        return [str(len(samples)) for samples in audio]

    def transcribe_generator(self, audio: list[np.ndarray], config: Any) -> Iterator[list[str]]:
        for first in range(0, len(audio), config.batch_size):
            yield self.transcribe(audio[first : first + config.batch_size])


class Clock:
    """Reading an utterance takes an hour. `most` is the largest number of samples in memory."""

    now, held, most = 0.0, 0, 0

    def perf_counter(self) -> float:
        return self.now

    def read(self, row: Utterance, rate: int) -> np.ndarray:
        samples = np.zeros(int(row.duration * rate), np.float32)
        self.now += 3600
        self.held += len(samples)
        self.most = max(self.most, self.held)
        weakref.finalize(samples, self.release, len(samples))
        return samples

    def release(self, samples: int) -> None:
        self.held -= samples


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transcribe, "time", clock)
    for module in (transcribe, evaluate):
        monkeypatch.setattr(module, "read_samples", clock.read)
    return clock


def by_nemo(model: Any, done: Callable[[int], None]) -> tuple[list[str], float]:
    return transcribe.transcribe(model, ROWS, 2, PASSES, done)


def one_by_one(model: Any, done: Callable[[int], None]) -> tuple[list[str], float]:
    return evaluate._transcribe_one_by_one(model, ROWS, PASSES, "", lambda part, n, total: done(n))


@pytest.mark.parametrize("way", [by_nemo, one_by_one])
def test_blocks_change_neither_texts_nor_time(
    way: Callable[..., tuple[list[str], float]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcribe, "_TIMED_SECONDS", 1e9)
    found: list[Any] = []
    largest: list[float] = []
    for seconds in (900.0, 6.0):
        monkeypatch.setattr(transcribe, "_BLOCK_SECONDS", seconds)
        model, done = Recogniser(clock), []  # type: ignore[var-annotated]
        clock.most = 0
        texts, measured = way(model, done.append)
        assert texts == [str(int(duration * RATE)) for duration in DURATIONS]
        assert measured == pytest.approx(sum(DURATIONS)), "the fastest pass, without the reading"
        assert model.batches[0] == [DURATIONS[LONGEST] * RATE], "the warm-up"
        found.append((sorted(model.batches), sorted(done)))
        largest.append(clock.most / RATE)
        assert clock.held == 0
    assert found[0] == found[1], "the same batches, and every utterance is reported"
    # Two blocks at most: a block ends with the batch that reaches 6 s, and is freed after the next is read.
    assert largest[0] == sum(DURATIONS) > 4 * largest[1] and largest[1] < 2 * (6 + 2 * DURATIONS[LONGEST])


def test_similar_lengths_are_batched(clock: Clock) -> None:
    model = Recogniser(clock)
    transcribe.transcribe(model, ROWS, 2)
    lengths = [length for batch in model.batches[1:] for length in batch]
    assert lengths == sorted(lengths) and max(map(len, model.batches)) == 2
    assert evaluate._transcribe_one_by_one(model, ROWS, 1, "", no_report)[0][0] == "300"
