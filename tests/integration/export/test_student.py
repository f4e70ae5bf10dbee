# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student that leaves, its evaluation, and the command line around both."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from lightning.pytorch.callbacks import Callback
from typer.testing import CliRunner

from nemo_tutornet import TutorError, export_student
from nemo_tutornet.cli import app
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import STOCK_CHAR
from tests.conftest import student_config
from tests.integration.conftest import FRESH
from tests.integration.students import build

STOCK_PROCESS = """
import json, sys
sys.modules["nemo_tutornet"] = None
import numpy, soundfile, torch
from nemo.collections.asr.models import ASRModel
model = ASRModel.restore_from(sys.argv[1], map_location="cpu").eval()
signal = torch.tensor(soundfile.read(sys.argv[2], dtype="float32")[0])[None]
with torch.no_grad():
    log_probs = model(input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]]))[0]
numpy.save(sys.argv[3], log_probs.numpy())
print("RESULT", json.dumps({
    "class": type(model).__module__ + "." + type(model).__name__, "target": model.cfg.target,
    "tutor": "tutor" in model.cfg,
    "keys": list(model.state_dict()),
    "text": model.transcribe([sys.argv[2]], batch_size=1, verbose=False)[0].text,
}))
"""


class StopIn(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self._step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(corpus, teacher_file, make_student, tmp_path_factory) -> dict[str, Any]:
    """For either stage, a run that was interrupted in it: its `last.ckpt`, and the model's state at that
    checkpoint.
    """
    runs = {}
    for stage, step in (("rkd", 3), ("skd", 7)):
        folder = tmp_path_factory.mktemp(stage)
        model = make_student(
            student_config(corpus, teacher_file),
            folder=folder,
            max_epochs=3,
            val_check_interval=1,
            callbacks=[StopIn(step)],
        )
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            model.trainer.fit(model)
        (runs[stage],) = folder.rglob("*-last.ckpt")
    return runs


@pytest.mark.parametrize("stage", ["rkd", "skd"])
def test_an_interrupted_run_leaves_as_a_stock_student(interrupted, corpus, make_student, tmp_path, stage):
    source = interrupted[stage]
    before = source.read_bytes()
    done = export_student(source, tmp_path / "out" / "student.nemo")
    assert source.read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["student.nemo"]
    assert done.target == STOCK_CHAR
    content = done.path.read_bytes()
    assert b"tutor" not in content and str(corpus).encode() not in content

    audio, result = corpus / "valid0.wav", tmp_path / "log_probs.npy"
    process = subprocess.run(
        [sys.executable, "-c", STOCK_PROCESS, str(done.path), str(audio), str(result)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    printed = json.loads(next(line for line in process.stdout.splitlines() if line.startswith("RESULT "))[7:])
    assert printed["class"] == printed["target"] == STOCK_CHAR and printed["tutor"] is False

    student = make_student(student_config(corpus, None))
    assert printed["keys"] == list(student.state_dict())
    student.load_state_dict(load_lightning_checkpoint(source)["state_dict"])
    signal = torch.tensor(soundfile.read(audio, dtype="float32")[0])[None]
    with torch.no_grad():
        expected = student.eval()(input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]]))[0]
    assert np.abs(expected.numpy() - np.load(result)).max() <= 1e-5


def test_the_training_model_is_untouched_by_an_export_of_its_nemo(corpus, make_student, tmp_path):
    model = make_student(student_config(corpus, None))
    model.save_to(str(tmp_path / "run.nemo"))
    export_student(tmp_path / "run.nemo", tmp_path / "student.nemo")
    again = restore_ctc(tmp_path / "student.nemo")
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert again.cfg.train_ds.manifest_filepath is None and again.cfg.train_ds.batch_size == 2


def test_an_exported_student_can_be_trained_on_by_nemo(corpus, make_student, tmp_path):
    model = make_student(student_config(corpus, None))
    model.save_to(str(tmp_path / "run.nemo"))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "v1.nemo").write_bytes(b"an older one")
    # A link is replaced as a file is; what it pointed to stays.
    (tmp_path / "student.nemo").symlink_to("store/v1.nemo")
    student = restore_ctc(export_student(tmp_path / "run.nemo", tmp_path / "student.nemo").path)
    assert (
        not (tmp_path / "student.nemo").is_symlink()
        and (tmp_path / "store" / "v1.nemo").read_bytes() == b"an older one"
    )
    data = student.cfg.train_ds
    data.manifest_filepath = str(corpus / "train.jsonl")
    student.setup_training_data(data)
    assert len(student._train_dl) == 4


def test_a_student_of_another_language_leaves_with_its_labels(corpus, make_student, tmp_path):
    """NeMo's own way to it leaves the old ones in the config's `labels`."""
    model = make_student(student_config(corpus, None))
    labels = [*model.decoder.vocabulary, "é", "ü"]
    model.change_vocabulary(labels)
    model.save_to(str(tmp_path / "run.nemo"))
    export_student(tmp_path / "run.nemo", tmp_path / "student.nemo", verify=True)
    assert (tmp_path / "student.json").is_file()
    # Without a verification, the summary of the student before would describe another file.
    done = export_student(tmp_path / "run.nemo", tmp_path / "student.nemo")
    assert done.note is not None and "student.json described the student that was there before" in done.note
    assert not (tmp_path / "student.json").exists()
    assert restore_ctc(tmp_path / "student.nemo").cfg.labels == labels


@pytest.mark.parametrize("damage", ["missing", "surplus", "truncated", "foreign", "folder", "suffix", "full"])
def test_what_cannot_be_exported_leaves_nothing_behind(interrupted, tmp_path, damage, monkeypatch):
    source, destination = tmp_path / "run.ckpt", tmp_path / "out" / "student.nemo"
    checkpoint = load_lightning_checkpoint(interrupted["skd"])
    words = ""
    if damage == "missing":
        checkpoint["state_dict"].pop("decoder.decoder_layers.0.bias")
        words = "decoder.decoder_layers.0.bias"
    elif damage == "surplus":
        checkpoint["state_dict"]["teacher.weight"] = torch.zeros(1)
        words = "teacher.weight"
    elif damage == "foreign":
        checkpoint.pop("hyper_parameters")
        words = "not a checkpoint of a NeMo model"
    torch.save(checkpoint, source)
    if damage == "truncated":
        source.write_bytes(source.read_bytes()[:5000])
        words = "not a readable checkpoint"
    elif damage == "folder":
        destination.mkdir(parents=True)
        words = "is a folder"
    elif damage == "suffix":
        destination, words = destination.with_suffix(".zip"), "must end in .nemo"
    elif damage == "full":
        monkeypatch.setattr(
            "tarfile.TarFile.add",
            lambda *a, **kw: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        words = "No space left on device"
    with pytest.raises(TutorError, match=words):
        export_student(source, destination)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != source]


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_in_the_way_of_one_file_keeps_all_as_they_were(corpus, make_student, tmp_path, beside):
    make_student(student_config(corpus, None)).save_to(str(tmp_path / "run.nemo"))
    graph = tmp_path / "student.onnx" if beside else tmp_path / "onnx" / "student.onnx"
    graph.parent.mkdir(exist_ok=True)
    files = [tmp_path / "student.nemo", graph, graph.with_suffix(".fp16.onnx")]
    for path in files:
        path.write_bytes(b"old")
    graph.with_suffix(".sherpa.onnx").mkdir()
    with pytest.raises(TutorError, match=r"student\.sherpa\.onnx is a folder\); nothing was changed there"):
        export_student(tmp_path / "run.nemo", files[0], onnx=graph, precisions=("fp32", "fp16"), sherpa=True)
    assert [path.read_bytes() for path in files] == [b"old"] * 3


def test_a_refusal_names_the_users_file(corpus, make_student, tmp_path):
    config = student_config(corpus, None)
    config["preprocessor"]["n_fft"] = 1024
    model = make_student(config)
    model.save_to(str(tmp_path / "run.nemo"))
    for source, named in ((tmp_path / "run.nemo", tmp_path / "run.nemo"), (model, tmp_path / "student.nemo")):
        with pytest.raises(TutorError, match=rf"^{named} has n_fft=1024, which sherpa-onnx does not support"):
            export_student(source, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", sherpa=True)


def test_the_random_numbers_of_a_training_go_on(corpus, make_student, tmp_path):
    model = make_student(student_config(corpus, None)).train()
    before = torch.get_rng_state()
    export_student(
        model, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", precisions=("fp32", "int8")
    )
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TutorError):
        export_student(tmp_path / "no.nemo", tmp_path / "student.nemo")
    assert torch.equal(torch.get_rng_state(), before)


def test_one_rank_exports_while_the_others_train_on(corpus, make_student, tmp_path, many_ranks):
    model = make_student(student_config(corpus, None)).train()
    export_student(model, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", verify=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "student.nemo", "student.onnx"]


# --- The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "/no/run.ckpt", "/tmp/x.nemo"], "there is no file /no/run.ckpt"),
        (["export", "/no/run.nemo", "/tmp/x.nemo"], "there is no file /no/run.nemo"),
        (["evaluate", "/no/a.nemo", "--manifest", "/no/m.jsonl"], "there is no file /no/a.nemo"),
        (["demo", "--corpus", "/no/corpus", "--output", "{tmp}"], "which is no folder"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words, tmp_path):
    result = CliRunner().invoke(app, [a.format(tmp=tmp_path) for a in arguments])
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output


def test_help_does_not_import_torch():
    code = """
import sys
from nemo_tutornet.cli import app
try:
    app(["--help"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([FRESH, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False") and "evaluate" in done.stdout


def test_a_checkpoint_is_exported_with_its_proof(corpus, teacher_file, make_student, tmp_path):
    model = make_student(student_config(corpus, teacher_file), folder=tmp_path / "run", max_epochs=1)
    model.trainer.fit(model)
    (last,) = tmp_path.rglob("*-last.ckpt")
    assert export_student(last, tmp_path / "student.nemo", verify=True).verification.passed


def test_a_card_has_the_error_rates_of_its_own_student(corpus, tmp_path, monkeypatch):
    """As on the page of the model card: evaluate the exported file, then export again with the card."""
    monkeypatch.chdir(tmp_path)
    for folder in ("distilled", "undistilled"):
        build("quartznet", tmp_path / folder)
    other = restore_ctc(tmp_path / "undistilled" / "run.nemo")
    with torch.no_grad():
        other.decoder.decoder_layers[0].bias[1] += 100  # it writes one letter
    other.save_to(str(tmp_path / "undistilled" / "run.nemo"))

    def call(words: str) -> Any:
        return CliRunner().invoke(app, words.split())

    assert call("export distilled/run.nemo student.nemo").exit_code == 0
    models = "undistilled/run.nemo distilled/run.nemo student.nemo"
    printed = call(f"evaluate {models} --manifest {corpus / 'valid.jsonl'} --json").stdout
    undistilled, run, student = json.loads(printed)
    assert run["weights_sha256"] == student["weights_sha256"] != undistilled["weights_sha256"]
    assert student["cer"] != undistilled["cer"] and student["parameters"] == undistilled["parameters"]
    (tmp_path / "all.json").write_text(printed, encoding="utf-8")
    done = call("export distilled/run.nemo student.nemo --card README.md --metrics all.json")
    assert done.exit_code == 0, done.output
    card = ModelCard.load("README.md")
    assert [row.metric_value for row in card.data.eval_results] == [
        round(100 * student[metric], 2) for metric in ("wer", "cer")
    ]
    assert card.text.count("| valid | nemo |") == 1
    (tmp_path / "one.json").write_text(json.dumps([student]), encoding="utf-8")
    done = call("export undistilled/run.nemo student.nemo --card README.md --metrics one.json")
    assert done.exit_code == 2 and "with other weights than this student" in done.output
