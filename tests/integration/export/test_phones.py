# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Static int8 and fixed lengths as a user exports them, and recipes for phones where converters are there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from nemo_tutornet import TutorError
from nemo_tutornet.cli import app
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_export import write_onnx
from tests.integration.conftest import REPOSITORY
from tests.integration.students import build


@pytest.fixture(scope="module")
def quartznet(tmp_path_factory) -> Path:
    return build("quartznet", tmp_path_factory.mktemp("phones"))


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_static_int8_and_a_fixed_length_in_one_export(quartznet, corpus, tmp_path):
    arguments = ["export", str(quartznet), str(tmp_path / "s.nemo"), "--onnx", str(tmp_path / "s.onnx")]
    arguments += ["--int8", "--calibrate", str(corpus / "train.jsonl"), "--fixed-seconds", "2", "--verify"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "static int8, calibrated on" in done.output and "converters for phones" not in done.output
    for name in ("s.onnx", "s.int8.onnx"):
        graph = onnx.load(tmp_path / name).graph
        (audio,) = graph.input
        sizes = [size.dim_value for size in audio.type.tensor_type.shape.dim]
        assert sizes[0] == 1 and sizes[2] == 200
        assert all(size.dim_value for size in graph.output[0].type.tensor_type.shape.dim)
        assert metadata(tmp_path / name)["fixed_frames"] == "200"
        with pytest.raises(TutorError, match=rf"{name} reads exactly 200 frames"):
            OnnxCTCModel(tmp_path / name)
    assert metadata(tmp_path / "s.int8.onnx")["quantization"] == "static"
    assert not any("Integer" in node.op_type for node in onnx.load(tmp_path / "s.int8.onnx").graph.node)


def test_int8_without_a_manifest_is_dynamic_and_says_so(quartznet, corpus, tmp_path):
    fp32, int8 = write_onnx(quartznet, tmp_path / "s.onnx", ["fp32", "int8"])
    assert fp32.note is None and "dynamic" in int8.note and "--calibrate" in int8.note
    assert metadata(int8.path)["quantization"] == "dynamic"
    assert any("Integer" in node.op_type for node in onnx.load(int8.path).graph.node)


@pytest.mark.parametrize("kind", ["jasper", "citrinet"])
def test_static_int8_of_other_convolutional_students(kind, corpus, tmp_path):
    nemo_file = build(kind, tmp_path)
    fp32, int8 = write_onnx(
        nemo_file, tmp_path / "s.onnx", ["fp32", "int8"], calibrate=corpus / "train.jsonl"
    )
    exact, rounded = OnnxCTCModel(fp32.path), OnnxCTCModel(int8.path)
    features = exact.features(np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10)
    expected, found = exact.log_probs(features), rounded.log_probs(features)
    spread = np.sqrt(np.square(expected - expected.mean(axis=0)).mean())
    # A new Citrinet varies by less.
    assert np.sqrt(np.square(found - expected).mean()) < max(0.5 * spread, 0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calibrate", "m.jsonl"], "add --int8"),
        (["--fixed-seconds", "0"], "--fixed-seconds"),
        (["--fixed-seconds", "2", "--sherpa"], "without --sherpa"),
        (["--int8", "--calibrate", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options, words, quartznet, tmp_path):
    arguments = ["export", str(quartznet), str(tmp_path / "s.nemo"), "--onnx", str(tmp_path / "s.onnx")]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output
    assert list(tmp_path.glob("s*")) == []


def test_audio_that_cannot_be_read_is_named(quartznet, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    row = {"audio_filepath": "bad.wav", "duration": 1.0, "text": "a"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    arguments = ["export", str(quartznet), str(tmp_path / "s.nemo"), "--onnx", str(tmp_path / "s.onnx")]
    done = CliRunner().invoke(app, [*arguments, "--int8", "--calibrate", str(tmp_path / "m.jsonl")])
    assert done.exit_code == 2 and "bad.wav" in done.output, done.output


@pytest.mark.parametrize(("package", "file"), [("coremltools", "s.mlpackage"), ("litert_torch", "s.tflite")])
def test_the_recipes_for_phones(package, file, quartznet, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it is a large converter and no dependency")
    script = REPOSITORY / "examples" / "phones" / "convert.py"
    command = [sys.executable, str(script), str(quartznet), file, "--seconds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / file).exists(), done.stderr[-2000:]


def test_the_benchmark_of_graphs(quartznet, tmp_path):
    (graph,) = write_onnx(quartznet, tmp_path / "s.onnx")
    script = REPOSITORY / "benchmarks" / "onnx_speed.py"
    command = [sys.executable, str(script), str(graph.path), "--sequences", "--rounds", "1", "--seconds", "1"]
    done = subprocess.run([*command, "--profile"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of dense" in done.stdout and "depthwise" in done.stdout
