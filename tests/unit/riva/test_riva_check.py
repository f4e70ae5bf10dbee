# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The check of a `.riva` archive (examples/riva), on archives made by hand: a right one passes, each fault
has its sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nemo_tutornet.export.scrub import _without_paths
from tests.integration.students import write_tokenizer
from tests.unit.riva.files import FEATURES, Files, check_riva, network


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_files(tmp_path_factory.mktemp("tokenizer"), clean=True)


def tokenizer_files(folder: Path, clean: bool) -> Path:
    """`tokenizer.model` and `vocab.txt`; SentencePiece leaves the path of its training text in the first
    unless it is cleaned.
    """
    model = (write_tokenizer(folder) / "tokenizer.model").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    (folder / "tokenizer.model").write_bytes(_without_paths(model) if clean else model)
    (folder / "vocab.txt").write_text(
        "".join(f"{piece}\n" for piece in check_riva._pieces(model)), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(("stride", "length", "step"), [(2, False, 20), (4, True, 40), (8, True, 80)])
def test_a_right_archive_passes_and_shows_its_frame_rate(tmp_path, monkeypatch, capsys, stride, length, step):
    files = Files(tmp_path)
    files.archived["model_graph.onnx"] = network(stride=stride, length=length)
    assert files.check(monkeypatch) == 0
    said = capsys.readouterr().out
    for words in (
        "student.riva is right",
        "obj_cls   nemo.collections.asr.models.EncDecCTCModel\n",
        "4 characters",
        f"audio_signal float [*, {FEATURES}, *]",
        "logprobs float [*, *, 5]",
        f"--ms_per_timestep={step}\n",
    ):
        assert words in said
    assert ("length int64 [*]" in said) is length


def test_the_frame_rate_of_a_front_end_given_in_samples(tmp_path, monkeypatch, capsys):
    files = Files(tmp_path)
    files.student_config["preprocessor"].update(sample_rate=8000, window_stride=None, n_window_stride=120)
    assert files.check(monkeypatch) == 0 and "--ms_per_timestep=30\n" in capsys.readouterr().out


def test_a_right_archive_of_a_bpe_student_passes(tmp_path, monkeypatch, capsys, tokenizer):
    assert Files(tmp_path, tokenizer).check(monkeypatch) == 0
    said = capsys.readouterr().out
    assert "EncDecCTCModelBPE\n" in said and "11 pieces" in said


def graph(**changes: Any) -> Callable[[Files], None]:
    return lambda files: files.archived.update({"model_graph.onnx": network(**changes)})


FAULTS: dict[str, tuple[Callable[[Files], Any], str]] = {
    "class": (
        lambda f: f.manifest["metadata"].update(obj_cls="in_house.CTCModel"),
        "obj_cls is in_house.CTCModel",
    ),
    "no class": (lambda f: f.manifest["metadata"].pop("obj_cls"), "obj_cls is None"),
    "class of the other kind": (
        lambda f: f.manifest["metadata"].update(obj_cls="nemo.collections.asr.models.EncDecCTCModelBPE"),
        "knows a student like this as nemo.collections.asr.models.EncDecCTCModel only",
    ),
    "target": (
        lambda f: f.config.update(target="in_house.CTCModel"),
        "model_config.yaml names the class in_house.CTCModel",
    ),
    "labels in another order": (
        lambda f: f.config["decoder"]["vocabulary"].reverse(),
        "its 4 labels are not the student's 4",
    ),
    "a label short": (
        lambda f: f.config["decoder"]["vocabulary"].pop(),
        "its 3 labels are not the student's 4",
    ),
    "number of classes": (lambda f: f.config["decoder"].update(num_classes=-1), "decoder.num_classes is -1"),
    "input name": (graph(names=("input", "logprobs")), "inputs are input, not audio_signal"),
    "features": (graph(features=80), "audio_signal is float [*, 80, *] and must be float [*, 8, *]"),
    "fixed batch": (graph(batch=1), "audio_signal is float [1, 8, *]"),
    "output name": (graph(names=("audio_signal", "y")), "outputs are y, not logprobs"),
    "output width": (graph(labels=28), "logprobs is float [*, *, 29] and must be float [*, *, 5]"),
    "no graph": (lambda f: f.archived.pop("model_graph.onnx"), "holds no model_graph.onnx"),
    "no ONNX": (
        lambda f: f.archived.update({"model_graph.onnx": b"half a file"}),
        "not a readable ONNX file",
    ),
    "no config": (lambda f: setattr(f, "config", None), "holds no readable model_config.yaml"),
    "no manifest": (lambda f: f.manifest.clear(), "holds no readable manifest.yaml"),
    "path in the config": (
        lambda f: f.config.update(train_ds={"manifest_filepath": "/data/an4/train.jsonl"}),
        "model_config.yaml shows the customer the absolute path /data/an4/train.jsonl "
        "(train_ds.manifest_filepath)",
    ),
    "path at the root": (lambda f: f.config.update(log_dir="/runs"), "absolute path /runs (log_dir)"),
    "path of Windows": (lambda f: f.config.update(log_dir="C:\\runs"), "absolute path C:"),
    "path in the manifest": (
        lambda f: f.manifest["artifacts"]["model_config.yaml"].update(
            description="from /home/someone/student.nemo"
        ),
        "manifest.yaml shows the customer the absolute path /home/someone/student.nemo",
    ),
    "path in the graph": (
        graph(doc="File /home/someone/model.py, line 3"),
        "model_graph.onnx shows the customer the absolute path",
    ),
    "tutor in the config": (
        lambda f: f.config.update(tutor={"stages": []}),
        "model_config.yaml names the tutor",
    ),
    "tutor in the graph": (graph(scope="/tutor/Conv"), "model_graph.onnx names the tutor"),
    "graph that does not run": (graph(stride=0), "does not run in ONNX Runtime"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_sentence(tmp_path, monkeypatch, capsys, fault):
    change, words = FAULTS[fault]
    files = Files(tmp_path)
    change(files)
    assert files.check(monkeypatch) == 2
    _one_sentence(capsys, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.archived.pop("0a_tokenizer.model"), "0a_tokenizer.model is missing in the archive"),
        (lambda f: f.archived.update({"0a_vocab.txt": b"?"}), "0a_vocab.txt differs in the archive"),
        (
            lambda f: [c["decoder"]["vocabulary"].reverse() for c in (f.config, f.student_config)],
            "pieces of the tokenizer",
        ),
        (
            lambda f: [d.update({"0a_n.txt": b"\x20/home/me/text.txt"}) for d in (f.tokenizer, f.archived)],
            "path /home/me/text.txt",
        ),
    ],
    ids=["missing", "differs", "other pieces", "path"],
)
def test_each_fault_of_a_tokenizer_has_its_sentence(tmp_path, monkeypatch, capsys, tokenizer, change, words):
    files = Files(tmp_path, tokenizer)
    change(files)
    assert files.check(monkeypatch) == 2
    _one_sentence(capsys, words)


def test_a_tokenizer_trained_from_a_file_shows_its_path(tmp_path, monkeypatch, capsys):
    folder = tokenizer_files(tmp_path / "tokenizer", clean=False)
    assert Files(tmp_path, folder).check(monkeypatch) == 2
    _one_sentence(capsys, f"0a_tokenizer.model shows the customer the absolute path {folder}/text.txt")


def test_faults_of_different_kinds_are_all_reported(tmp_path, monkeypatch, capsys):
    files = Files(tmp_path)
    files.manifest["metadata"]["obj_cls"] = "in_house.CTCModel"
    files.archived.pop("model_graph.onnx")
    assert files.check(monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "obj_cls" in lines[0] and "model_graph.onnx" in lines[1]


@pytest.mark.parametrize("name", ["student.nemo", "student.riva"])
@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_unreadable_files_have_their_sentence(tmp_path, monkeypatch, capsys, name, damage):
    for path in Files(tmp_path).write():
        if path.name == name and damage == "absent":
            path.unlink()
        elif path.name == name:
            path.write_bytes(path.read_bytes()[:400])
    monkeypatch.setattr(
        sys, "argv", ["check_riva.py", str(tmp_path / "student.nemo"), str(tmp_path / "student.riva")]
    )
    assert check_riva.main() == 2
    _one_sentence(capsys, f"{tmp_path / name} is not a readable archive")


def test_nvidia_s_reader_must_see_the_same_manifest(tmp_path, monkeypatch, capsys):
    seen: dict[str, Any] = {
        "metadata": {"obj_cls": "nemo.collections.asr.models.EncDecCTCModel", "runtime": "ONNX"}
    }
    reader = ModuleType("eff.core")
    reader.Archive = type("Archive", (), {"restore_manifest": staticmethod(lambda restore_path: seen)})
    monkeypatch.setitem(sys.modules, "eff.core", reader)
    assert Files(tmp_path).check(monkeypatch) == 0
    capsys.readouterr()
    seen["metadata"]["runtime"] = "TorchScript"
    assert Files(tmp_path).check(monkeypatch) == 2
    _one_sentence(capsys, "eff reads another manifest")


def _one_sentence(capsys: pytest.CaptureFixture[str], words: str) -> None:
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: student.riva: ") and line.endswith(".") and words in line
    assert not printed.out
