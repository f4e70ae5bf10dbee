# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's own scripts on an exported student, in a process where this package cannot be imported.

The functions that the scripts call are called in the scripts' order. With `NEMO_REPO=/path/to/NeMo`, a
checkout, the page `docs/deployment/nemo.md` is run as it is written, too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_tutornet import export_student
from nemo_tutornet.evaluation.evaluate import evaluate
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import LABELS, write_manifest
from tests.integration.conftest import FRESH
from tests.integration.students import build

KINDS = ["quartznet", "quartznet bpe"]
ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "deployment" / "nemo.md"
MEL_BINS = 64

# What transcribe_speech.py, speech_to_text_eval.py, speech_to_text_finetune.py and export.py call, and in
# which order.
SCRIPTS = """
import json, os, sys
sys.modules["nemo_tutornet"] = None
import lightning.pytorch as pl
import torch
from nemo.collections.asr.metrics.wer import word_error_rate
from nemo.collections.asr.models import ASRModel
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecodingConfig
from nemo.collections.asr.parts.utils import transcribe_utils
from nemo.collections.asr.parts.utils.eval_utils import cal_write_wer
from nemo.core import ModelPT
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf


def transcribe():
    config = OmegaConf.create({
        "model_path": "student.nemo", "pretrained_name": None, "audio_dir": None,
        "dataset_manifest": "test.jsonl",
        "output_filename": None, "append_pred": False, "pred_name_postfix": None, "presort_manifest": True,
        "decoding": OmegaConf.structured(CTCDecodingConfig),
    })
    model, name = transcribe_utils.setup_model(config, torch.device("cpu"))
    model.set_trainer(pl.Trainer(devices=1, accelerator="cpu", logger=False))
    model = model.eval().to(torch.float32)
    model.change_decoding_strategy(config.decoding)
    files, manifest = transcribe_utils.prepare_audio_data(config)
    config = transcribe_utils.compute_output_filename(config, name)
    override = model.get_transcribe_config()
    override.batch_size, override.num_workers = 2, 0
    with torch.no_grad():
        texts = model.transcribe(audio=manifest, override_config=override)
    texts = transcribe_utils.restore_transcription_order(config.dataset_manifest, texts)
    written, key = transcribe_utils.write_transcription(texts, config, name, filepaths=files)
    scored, total, _ = cal_write_wer(pred_manifest=written, pred_text_attr_name=key)
    return {"rows": [json.loads(line) for line in open(scored)], "total": total}


def evaluate(rows):
    hypotheses, references = [row["pred_text"] for row in rows], [row["text"] for row in rows]
    return word_error_rate(hypotheses=hypotheses, references=references)


def finetune():
    data = {"sample_rate": 16000, "batch_size": 4, "num_workers": 0}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                         num_sanity_val_steps=0, enable_progress_bar=False)
    exp_manager(trainer, OmegaConf.create({
        "exp_dir": "runs", "name": "finetuned", "create_tensorboard_logger": False,
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": {
            "monitor": "val_wer", "mode": "min", "save_top_k": 1, "always_save_nemo": True,
        },
        "resume_if_exists": True, "resume_ignore_no_checkpoint": True,
    }))
    model = ASRModel.restore_from(restore_path="student.nemo")
    model.set_trainer(trainer)
    train = {"manifest_filepath": "train.jsonl", "shuffle": True, "max_duration": 20, **data}
    model.setup_training_data(OmegaConf.create(train))
    valid = {"manifest_filepath": "valid.jsonl", "shuffle": False, **data}
    model.setup_multiple_validation_data(OmegaConf.create(valid))
    model.setup_optimization(OmegaConf.create({
        "name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1e-3,
        "sched": {"name": "CosineAnnealing", "warmup_steps": 100, "warmup_ratio": None, "min_lr": 5e-6},
    }))
    model.spec_augment = ASRModel.from_config_dict(OmegaConf.create({
        "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
        "freq_masks": 2, "time_masks": 10, "freq_width": 27, "time_width": 0.05,
    }))
    trainer.fit(model)
    encode = getattr(model, "tokenizer", None)
    first = model._train_dl.dataset[0][2].tolist()
    text = encode.ids_to_text(first) if encode else "".join(model.decoder.vocabulary[i] for i in first)
    return {"steps": trainer.global_step, "wer": float(trainer.callback_metrics["val_wer"]), "text": text}


def export():
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with torch.inference_mode():
        model = ModelPT.restore_from(restore_path="student.nemo", trainer=trainer)
    with torch.no_grad(), torch.inference_mode():
        model.to(device="cpu").freeze()
        model.eval()
        model.export("student.onnx", input_example=None, check_trace=True, check_tolerance=0.01,
                     onnx_opset_version=None)


for folder in sys.argv[1:]:
    os.chdir(folder)
    told = {"transcribe": transcribe()}
    told["evaluate"] = evaluate(told["transcribe"]["rows"])
    told["finetune"] = finetune()
    export()
    json.dump(told, open("told.json", "w"))
"""


def folder_with(kind: str, tmp: Path) -> Path:
    """What the page's commands name: the exported student and three manifests, with paths relative to
    them.
    """
    for name, durations in (
        ("train", [1.2, 1.5, 1.9, 1.7]),
        ("valid", [1.3, 1.6]),
        ("test", [1.1, 1.8, 1.4]),
    ):
        write_manifest(tmp, name, durations)
    run = build(kind, tmp)
    if kind == "quartznet":  # with the sections that training leaves; the other kind has none of them
        model = restore_ctc(run)
        OmegaConf.set_struct(model.cfg, False)
        for name in ("train", "validation"):
            model.cfg[f"{name}_ds"] = {
                "manifest_filepath": str(tmp / f"{name[:5]}.jsonl"),
                "labels": LABELS,
                "batch_size": 2,
            }
        model.save_to(str(run))
    export_student(run, tmp / "student.nemo")
    run.unlink()
    return tmp


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each kind a folder in which the scripts' calls have been made, in one process."""
    folders = {kind: folder_with(kind, tmp_path_factory.mktemp("nemo")) for kind in KINDS}
    command = [sys.executable, "-c", SCRIPTS, *map(str, folders.values())]
    done = subprocess.run(command, cwd=folders[KINDS[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.fixture(params=KINDS)
def stock(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    """A kind's folder, and what the scripts' calls told."""
    folder = folders[request.param]
    return folder, json.loads((folder / "told.json").read_text(encoding="utf-8"))


def test_transcribe_and_evaluate(stock):
    folder, shown = stock
    check_transcripts(folder, folder / "test_student.jsonl")
    ours = evaluate([folder / "student.nemo"], folder / "test.jsonl")[0]
    assert shown["evaluate"] == pytest.approx(ours.wer) == pytest.approx(shown["transcribe"]["total"]["wer"])


def test_finetune_keeps_the_vocabulary(stock):
    folder, shown = stock
    assert shown["finetune"]["steps"] == 2 and shown["finetune"]["wer"] >= 0
    assert (
        shown["finetune"]["text"] == json.loads((folder / "train.jsonl").read_text().splitlines()[0])["text"]
    )
    check_finetuned(folder)


def test_export(stock):
    check_graph(stock[0])


def check_transcripts(folder: Path, written: Path) -> None:
    """The rows in the manifest's order, each with what the student makes of its audio."""
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    model = restore_ctc(folder / "student.nemo")
    files = [str(folder / row["audio_filepath"]) for row in rows]
    assert files == [str(folder / f"test{i}.wav") for i in range(3)]
    texts = [output.text for output in model.transcribe(files, batch_size=3, verbose=False)]
    assert [row["pred_text"] for row in rows] == texts
    assert all("wer" in row for row in rows)


def check_finetuned(folder: Path) -> None:
    """A stock model again: the student's class and vocabulary, other weights, and exported once more without
    paths.
    """
    (written,) = (folder / "runs" / "finetuned" / "checkpoints").glob("*.nemo")
    before, after = (
        ASRModel.restore_from(str(path), map_location="cpu") for path in (folder / "student.nemo", written)
    )
    assert type(before) is type(after) and list(before.decoder.vocabulary) == list(after.decoder.vocabulary)
    assert before.cfg.get("labels") == after.cfg.get("labels")
    if "tokenizer" in before.cfg:
        assert before.tokenizer.text_to_ids("ab cd") == after.tokenizer.text_to_ids("ab cd")
    same = [
        torch.equal(a, b)
        for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    ]
    assert not all(same)
    assert NemoArchive(written).config.train_ds.manifest_filepath == "train.jsonl"
    again = export_student(written, folder / "student2.nemo")
    assert "train.jsonl" not in again.path.read_bytes().decode("latin-1")


def check_graph(folder: Path) -> None:
    """Opset 17, features in, log-probabilities out."""
    import onnx

    graph = onnx.load(str(folder / "student.onnx"))
    assert [(operators.domain, operators.version) for operators in graph.opset_import] == [("", 17)]
    ((name, shape),) = [
        (i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in graph.graph.input
    ]
    assert name == "audio_signal" and shape[1] == MEL_BINS
    ((name, shape),) = [
        (o.name, [d.dim_value for d in o.type.tensor_type.shape.dim]) for o in graph.graph.output
    ]
    labels = len(restore_ctc(folder / "student.nemo").decoder.vocabulary)
    assert name == "logprobs" and shape[2] == labels + 1


# --- The page, where NeMo's sources are


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def commands(script: str) -> list[str]:
    """The page's commands that run a script, each in one line."""
    joined = [command for block in blocks("bash") for command in block.replace("\\\n", " ").splitlines()]
    return [command for command in joined if command.startswith("python NeMo/") and script in command]


def test_the_page_names_each_script():
    counts = {
        name: len(commands(name))
        for name in ("transcribe_speech", "speech_to_text_eval", "speech_to_text_finetune", "export")
    }
    assert counts == {
        "transcribe_speech": 1,
        "speech_to_text_eval": 2,
        "speech_to_text_finetune": 1,
        "export": 1,
    }
    assert len(blocks("python")) == 1


@pytest.mark.skipif(
    "NEMO_REPO" not in os.environ,
    reason="NEMO_REPO names no checkout of NeMo, whose scripts pip does not install",
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_as_it_is_written(kind, tmp_path):
    folder = folder_with(kind, tmp_path)
    (folder / "NeMo").symlink_to(Path(os.environ["NEMO_REPO"]).resolve())
    (folder / "python").mkdir()
    (folder / "python" / "sitecustomize.py").write_text(
        'import sys\nsys.modules["nemo_tutornet"] = None\n', encoding="utf-8"
    )

    def run(*command: str) -> str:
        path = os.pathsep.join([str(Path(FRESH).parent), os.environ["PATH"]])
        environment = {**os.environ, "PYTHONPATH": str(folder / "python"), "PATH": path}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, (command, (done.stdout + done.stderr)[-3000:])
        return done.stdout + done.stderr

    assert "halted" in run(
        "python", "-c", "try:\n import nemo_tutornet\nexcept ImportError as error: print(error)"
    )
    (transcribe,) = commands("transcribe_speech")
    run("bash", "-c", transcribe)
    check_transcripts(folder, folder / "transcripts.jsonl")
    wer = 100 * evaluate([folder / "student.nemo"], folder / "test.jsonl")[0].wer
    for command in commands("speech_to_text_eval"):
        assert f"Dataset WER/CER {wer:.2f}%/" in run("bash", "-c", command)
    (finetune,) = commands("speech_to_text_finetune")
    (cpu,) = [block.strip() for block in blocks("bash") if block.startswith("trainer.devices=1 ")]
    run("bash", "-c", finetune if torch.cuda.is_available() else f"{finetune} {cpu}")
    check_finetuned(folder)
    if torch.cuda.is_available():
        (export,) = commands("scripts/export")
        run("bash", "-c", export)
        check_graph(folder)
        (folder / "student.onnx").unlink()
    run("python", "-c", blocks("python")[0])
    check_graph(folder)
