# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder for onnx-asr, run by onnx-asr itself, and the model card, whose code is run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet import TutorError, export_student
from nemo_tutornet.cli import app
from nemo_tutornet.export.onnx_asr_folder import write_onnx_asr
from nemo_tutornet.export.verify import verify_received
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.integration.clients import largest
from tests.integration.students import build

onnx_asr = pytest.importorskip("onnx_asr")
DEPLOYABLE = {"features": 80, "window_size": 0.025}
SAMPLES = [16000, 12345, 8000, 20000, 3999, 400, 160, 48000]


def noise() -> list[np.ndarray]:
    return [np.random.default_rng(n).standard_normal(n).astype(np.float32) / 10 for n in SAMPLES]


def load(folder: Path, **options: Any) -> Any:
    return onnx_asr.load_model("nemo-conformer-ctc", folder, providers=["CPUExecutionProvider"], **options)


@pytest.mark.parametrize("kind", ["quartznet", "citrinet bpe", "conformer"])
def test_it_computes_what_nemo_computes(kind: str, tmp_path: Path) -> None:
    run = build(kind, tmp_path, **DEPLOYABLE)
    graphs = write_onnx_asr(run, tmp_path / "asr", ["fp32", "int8"])
    assert [graph.path.name for graph in graphs] == ["model.onnx", "model.int8.onnx"]
    model, client = restore_ctc(run).eval(), load(tmp_path / "asr")
    assert largest(model, client.asr, noise()) <= 1e-4
    assert largest(model, client.asr, noise(), batch=4) <= 1e-4
    assert client.recognize(noise()) == [client.recognize(samples) for samples in noise()]
    assert client.recognize(np.zeros(100, np.float32)) == ""
    assert isinstance(load(tmp_path / "asr", quantization="int8").recognize(noise()[0]), str)


def test_its_texts_are_nemos(tmp_path: Path) -> None:
    for i, kind in enumerate(("quartznet", "quartznet bpe")):
        run = build(kind, tmp_path / str(i), **DEPLOYABLE)
        write_onnx_asr(run, tmp_path / str(i) / "asr")
        files = []
        for n, samples in enumerate(noise()[:4]):
            files.append(str(tmp_path / f"{n}.wav"))
            soundfile.write(files[-1], samples, 16000)
        model = restore_ctc(run)
        OmegaConf.set_struct(model.cfg, False)
        model.cfg.validation_ds = {}
        expected = [found.text.split() for found in model.transcribe(files, batch_size=4, verbose=False)]
        assert [text.split() for text in load(tmp_path / str(i) / "asr").recognize(files)] == expected
        assert any(expected)


@pytest.mark.parametrize(
    ("kind", "front_end", "words"),
    [
        ("quartznet", {}, "features=64, a window of 20 ms.*front_end=deployable"),
        ("streaming bpe", {"normalize": "per_feature"}, "another number of frames"),
    ],
)
def test_what_it_cannot_run_exactly_is_refused(
    kind: str, front_end: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(TutorError, match=words):
        export_student(
            build(kind, tmp_path, **front_end), tmp_path / "student.nemo", onnx_asr=tmp_path / "asr"
        )
    assert not (tmp_path / "student.nemo").exists() and not (tmp_path / "asr").exists()


def test_a_proved_folder_its_card_and_its_damages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user does it: the command with everything, its card's code, the check of what was received."""
    run = build("quartznet", tmp_path, **DEPLOYABLE)
    monkeypatch.chdir(tmp_path)
    row = {
        "model": "student.nemo",
        "runtime": "nemo",
        "utterances": 98,
        "wer": 0.25,
        "wer_low": 0.2,
        "wer_high": 0.3,
        "cer": 0.1,
        "parameters": sum(p.numel() for p in restore_ctc(run).parameters()),
    }
    Path("an4.json").write_text(json.dumps([row]), encoding="utf-8")
    facts = "--language en --license cc-by-4.0 --base-model nvidia/teacher --datasets an4 --metrics an4.json"
    command = (
        "export run.nemo student.nemo --onnx student.onnx --sherpa --onnx-asr asr --verify --card README.md"
    )
    done = CliRunner().invoke(app, [*command.split(), *facts.split()])
    assert done.exit_code == 0, done.output
    assert "asr/model.onnx: fp32" in done.output and "README.md: model card." in done.output
    assert sorted(path.name for path in Path("asr").iterdir()) == ["config.json", "model.onnx", "vocab.txt"]
    shown = json.loads(Path("student.json").read_text(encoding="utf-8"))
    assert {"asr/model.onnx: agrees", "asr: onnx-asr", "asr: files"} <= {c["name"] for c in shown["checks"]}
    assert [entry["name"] for entry in shown["folders"]["asr"]] == ["config.json", "model.onnx", "vocab.txt"]
    assert "README.md" not in json.dumps(shown["files"])

    card = ModelCard.load("README.md")
    assert card.data.eval_results is not None and card.data.eval_results[0].metric_value == 25.0
    soundfile.write("audio.wav", noise()[0], 16000)
    shown: list[str] = []
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 3 and all(any(w in b for b in blocks) for w in ("onnx_asr", "sherpa_onnx", "nemo"))
    for block in blocks:
        if "sherpa_onnx" in block:
            pytest.importorskip("sherpa_onnx", minversion="2.0")
        exec(block, {"print": lambda text: shown.append(" ".join(text.split()))})
    assert shown[0] == shown[1] and shown[0]

    assert verify_received(tmp_path / "student.nemo", onnx_asr=tmp_path / "asr").passed
    for more in (["--card", "asr/README.md"], []):  # into the folder, and kept there
        again = CliRunner().invoke(app, ["export", "run.nemo", "student.nemo", "--onnx-asr", "asr", *more])
        assert again.exit_code == 0, again.output
    assert 'load_model("nemo-conformer-ctc", "asr")' in Path("asr", "README.md").read_text(encoding="utf-8")
    assert not Path("student.json").exists()  # an export without a verification removes it
    vocabulary = Path("asr", "vocab.txt").read_text(encoding="utf-8")
    Path("asr", "vocab.txt").write_text(vocabulary.replace("a 1\nb 2", "b 1\na 2"), encoding="utf-8")
    wrong = verify_received(tmp_path / "student.nemo", onnx_asr=tmp_path / "asr")
    assert "vocab.txt has other labels than the student" in wrong.failures
    Path("asr", "vocab.txt").write_text(vocabulary, encoding="utf-8")
    config = json.loads(Path("asr", "config.json").read_text(encoding="utf-8"))
    Path("asr", "config.json").write_text(json.dumps({**config, "subsampling_factor": 4}), encoding="utf-8")
    wrong = verify_received(tmp_path / "student.nemo", onnx_asr=tmp_path / "asr")
    assert "wrong in config.json: subsampling_factor" in wrong.failures

    Path("asr", "notes.txt").write_text("mine", encoding="utf-8")
    refused = CliRunner().invoke(app, ["export", "run.nemo", "other.nemo", "--onnx-asr", "asr"])
    assert refused.exit_code != 0 and "notes.txt" in refused.output and not os.path.exists("other.nemo")
    refused = CliRunner().invoke(app, ["export", "run.nemo", "new/other.nemo", "--onnx-asr", "new"])
    assert refused.exit_code != 0 and "lies in new" in refused.output and not os.path.exists("new")
    refused = CliRunner().invoke(app, ["export", "run.nemo", "other.nemo", "--license", "mit"])
    assert refused.exit_code != 0 and "--card README.md" in refused.output
