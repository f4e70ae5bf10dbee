# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The example that reads a stream in chunks computes what the network computes on the whole utterance."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile

from nemo_tutornet.export.onnx_export import write_onnx
from tests.integration.documents.test_pages import unmarked
from tests.integration.export.test_onnx_export import EXAMPLES
from tests.integration.students import build

ROOT = Path(__file__).parents[3]
# Samples; the first has no frame, the second one, and the others no whole number of chunks or frames.
LENGTHS = (0, 100, 200, 16001, 23456, 40000)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    write_onnx(build("quartznet", folder), folder / "student.onnx", ("fp32", "int8"))
    return folder / "student.onnx"


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("transcribe_chunks")


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def sound(samples: int) -> np.ndarray:
    """Noise that is louder at its end, so that the statistics move."""
    noise = np.random.default_rng(samples).standard_normal(samples)
    return (noise * np.linspace(0.001, 0.2, samples)).astype(np.float32)


def whole(
    session: onnxruntime.InferenceSession, samples: np.ndarray, front_end: dict[str, Any]
) -> np.ndarray:
    """The best label of each frame, of the whole utterance at once."""
    signal = importlib.import_module("transcribe_onnxruntime").features(samples, front_end)
    if not signal.shape[2]:
        return np.zeros(0, np.int64)
    return np.asarray(session.run(None, {"audio_signal": signal})[0][0].argmax(axis=-1))


@pytest.mark.parametrize("chunk", [0.02, 0.13, 0.5, 10.0])
def test_with_the_receptive_field_every_frame_is_that_of_the_whole_utterance(
    chunk: float, student: Path, chunks: Any
) -> None:
    session = session_of(student)
    front_end = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor"])
    for length in LENGTHS[: None if chunk > 0.1 else 4]:
        samples = sound(length)
        expected = whole(session, samples, front_end)
        statistics = chunks.Statistics()
        log = chunks.log_mel(samples, front_end)
        statistics.add(log)
        stream = chunks.ChunkTranscriber(session, chunk, statistics=statistics, fixed=True)
        for start in range(0, length, 777):
            stream.accept(samples[start : start + 777])
        stream.finish()
        assert stream.labels == expected.tolist(), length
        # The first chunk's features are those of the beginning, unless the chunk holds the whole utterance.
        if chunk == 10.0:
            running = chunks.ChunkTranscriber(session, chunk)
            running.accept(samples)
            running.finish()
            assert running.labels == expected.tolist()
    assert len(set(expected)) > 1


def test_less_context_or_running_statistics_change_frames(student: Path, chunks: Any) -> None:
    """Otherwise the test above would show nothing."""
    session, samples = session_of(student), sound(LENGTHS[-1])
    front_end = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor"])
    expected = whole(session, samples, front_end).tolist()
    statistics = chunks.Statistics()
    statistics.add(chunks.log_mel(samples, front_end))
    for options in ({"look_ahead": 0.0}, {"left": 0.0}, {"statistics": None, "fixed": False}):
        given = {"statistics": statistics, "fixed": True, **options}
        stream = chunks.ChunkTranscriber(session, 0.2, **given)
        for start in range(0, len(samples), 1600):
            stream.accept(samples[start : start + 1600])
        stream.finish()
        assert len(stream.labels) == len(expected) and stream.labels != expected, options


def test_the_example_as_a_user_runs_it(
    student: Path, tmp_path: Path, chunks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    files = []
    for length in LENGTHS[2:5]:
        files.append(str(tmp_path / f"{length}.wav"))
        soundfile.write(files[-1], sound(length), 16000, subtype="FLOAT")
    plain = importlib.import_module("transcribe_onnxruntime")
    plain.main(str(student), files)
    expected = capsys.readouterr().out
    arguments = [str(student), *files, "--chunk", "0.3", "--statistics"]
    monkeypatch.setattr(sys, "argv", ["transcribe_chunks.py", *arguments, "utterance"])
    chunks.main()
    assert capsys.readouterr().out == expected
    for kind in ("running", "session"):
        monkeypatch.setattr(sys, "argv", ["transcribe_chunks.py", *arguments, kind])
        chunks.main()
        assert len(capsys.readouterr().out.splitlines()) == 3
    for wrong in (["--chunk", "0"], ["--look-ahead", "-1"], ["--left-context", "-1"]):
        monkeypatch.setattr(sys, "argv", ["transcribe_chunks.py", str(student), files[0], *wrong])
        with pytest.raises(SystemExit):
            chunks.main()


def test_the_receptive_field_is_in_the_metadata(student: Path, tmp_path: Path, chunks: Any) -> None:
    """5 + 2 * (5 + 5 + 12) frames on either side: kernels 11 (stride 2), 11 twice, 13 with dilation 2, and
    1.
    """
    for path in (student, student.with_suffix(".int8.onnx")):
        entries = {item.key: item.value for item in onnx.load(str(path)).metadata_props}
        assert json.loads(entries["receptive_field"]) == [49, 49]
    write_onnx(build("citrinet", tmp_path), tmp_path / "citrinet.onnx")
    with pytest.raises(SystemExit, match="no receptive field in its metadata"):
        chunks.ChunkTranscriber(session_of(tmp_path / "citrinet.onnx"), 1.0)


def test_the_command_of_the_tables(
    student: Path, corpus: Path, chunks: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    written = "".join(unmarked("docs/deployment/streaming.md", "bash"))
    (command,) = re.findall(r"python (benchmarks/.*)", written)
    script, *named = shlex.split(command)
    assert named == ["student.onnx", "valid.jsonl"]
    options = ["--chunks", "0.32", "--look-aheads", "0.16", "all"]
    monkeypatch.setattr(sys, "argv", [script, str(student), str(corpus / "valid.jsonl"), *options])
    spec = importlib.util.spec_from_file_location("streaming_benchmark", ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| 0.32 s")]
    assert len(rows) == 3 and rows[2].endswith("(2) |"), printed
    assert "receptive field: 0.49 s before and 0.49 s behind a frame" in printed
