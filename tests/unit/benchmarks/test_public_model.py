# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The language model that a public recogniser gets, and the line of its result."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit.benchmarks.results import tools

__all__ = ["tools"]  # a fixture

TEXTS = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=6
)


def read_arpa(text: str) -> tuple[dict[str, float], dict[str, float], dict[tuple[str, str], float]]:
    """Probabilities of words, their back-off weights, and probabilities of pairs."""
    single, backoff, pairs = {}, {}, {}
    first, second = text.split("\\1-grams:")[1].split("\\end\\")[0].split("\\2-grams:")
    for row in first.split("\n"):
        if row:
            value, word, *weight = row.split(" ")
            single[word], backoff[word] = 10 ** float(value), 10 ** float(weight[0]) if weight else 1.0
    for row in second.split("\n"):
        if row:
            value, *pair = row.split(" ")
            pairs[pair[0], pair[1]] = 10 ** float(value)
    counts = tuple(map(int, re.findall(r"ngram \d=(\d+)", text)))
    assert counts == (len(single), len(pairs))
    return single, backoff, pairs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_what_may_follow_a_word_sums_to_one(tools: dict[str, ModuleType], texts: list[str]) -> None:
    single, backoff, pairs = read_arpa(tools["public_model"].bigrams(texts))
    words = [word for word in single if word != "<s>"]
    for first in {first for first, _ in pairs}:
        after = sum(pairs.get((first, word), backoff[first] * single[word]) for word in words)
        assert after == pytest.approx(1.0, abs=1e-3)
    assert set(words) == {"</s>", *(word for text in texts for word in text.split())}


def test_its_line_replaces_an_older_one(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, outputs = [], []

    class Decoder:
        def __init__(self, samprate: int, loglevel: str, lm: str | None = None) -> None:
            models.append(Path(lm).read_text(encoding="utf-8") if lm else None)

        def start_utt(self) -> None: ...

        def end_utt(self) -> None: ...

        def process_raw(self, samples: bytes, full_utt: bool) -> None:
            assert full_utt and len(samples) == 2 * 16000

        def hyp(self) -> SimpleNamespace | None:
            return SimpleNamespace(hypstr=outputs.pop()) if outputs[-1] else outputs.pop()

    monkeypatch.setitem(sys.modules, "pocketsphinx", SimpleNamespace(Decoder=Decoder))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "5")
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16000, dtype=np.float32), 16000)
    rows = [{"audio_filepath": f"{name}.wav", "duration": 1.0, "text": "yes no"} for name in ("a", "b")]
    manifest = tmp_path / "set.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app, lines = typer.Typer(), tmp_path / "lines.jsonl"
    app.command()(tools["public_model"].main)

    def wers(*options: str) -> list[float]:
        done = CliRunner().invoke(app, [str(manifest), "--lines", str(lines), *options])
        assert done.exit_code == 0, done.output
        return [json.loads(line)["wer"] for line in lines.read_text().splitlines()]

    outputs[:] = ["yes no", None]
    assert wers() == [0.5]
    outputs[:] = ["yes no", "yes"]
    assert wers() == [0.25]
    outputs[:] = ["yes no", "yes no"]
    assert wers(f"--texts-of={manifest}") == [0.25, 0.0]
    assert models[:2] == [None, None] and "no </s>" in models[2]
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    refused = CliRunner().invoke(app, [str(manifest)])
    assert "pip install pocketsphinx" in f"{refused.output}{refused.exception}"
