# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/compat.py` with this NeMo on both sides; `make compat-check` is what has the other one."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nemo_tutornet import export_student
from tests.integration.students import build

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "compat.py"
LOST = "decoder.decoder_layers.0.bias"


@pytest.fixture(scope="module")
def compat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compat", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compat"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compat")
    return export_student(build("citrinet bpe", folder), folder / "student.nemo").path


def test_a_student_is_the_same_on_both_sides(compat, student, tmp_path):
    result = compat.compare(student, Path(sys.executable), ["A", "B"], tmp_path)
    assert result.failures == []
    assert result.cells["restore"].endswith(".EncDecCTCModelBPE")
    assert result.cells["log-probabilities"].startswith("largest difference from the source 0.0e+00")


def test_a_damaged_student_gives_a_sentence_for_each_side(compat, student, tmp_path):
    damaged = tmp_path / "damaged.nemo"
    with tarfile.open(student) as source, tarfile.open(damaged, "w") as copy:
        for member in source.getmembers():
            stream = source.extractfile(member)
            content = stream.read() if stream is not None else b""
            if member.name.endswith("model_weights.ckpt"):
                state = torch.load(io.BytesIO(content), weights_only=True)
                del state[LOST]
                torch.save(state, buffer := io.BytesIO())
                content = buffer.getvalue()
            member.size = len(content)
            copy.addfile(member, io.BytesIO(content))
    result = compat.compare(damaged, Path(sys.executable), ["A", "B"], tmp_path)
    assert all(
        sentence.startswith(f"{damaged}: NeMo {side}: ")
        for sentence, side in zip(result.failures, "AB", strict=True)
    )
    assert all(LOST in sentence and sentence.endswith(".") for sentence in result.failures)


def test_wordpieces_have_an_order_whatever_nemo_lists_them_in(compat):
    """NeMo lists a WordPiece model's vocabulary as its tokenizer's dictionary is, which differs from process
    to process.
    """
    pieces = {"b": 1, "##c": 2, "a": 0}
    front = SimpleNamespace(_sample_rate=16000)
    decoder, tokenizer = SimpleNamespace(vocabulary=list(pieces)), SimpleNamespace(get_vocab=lambda: pieces)
    model = SimpleNamespace(
        parameters=list, decoder=decoder, preprocessor=front, tokenizer=SimpleNamespace(tokenizer=tokenizer)
    )
    facts = {
        "class_name": "types.SimpleNamespace",
        "parameters": 0,
        "vocabulary": ["a", "b", "##c"],
        "sample_rate": 16000,
    }
    assert compat._differences(model, facts, "A", "B") == []
    (printed,) = compat._differences(model, {**facts, "vocabulary": ["a", "##c", "b"]}, "A", "B")
    assert printed.startswith("its vocabulary is ['a', 'b', '##c'] in A")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--python", sys.executable], "can import nemo_tutornet, so it proves nothing"),
        (["--python", "/no/python"], "there is no /no/python"),
        (["/no/student.nemo"], "there is no file /no/student.nemo"),
    ],
)
def test_mistakes_are_reported_before_anything_is_made(arguments, words, tmp_path):
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
