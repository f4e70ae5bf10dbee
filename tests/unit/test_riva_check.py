# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The check of a `.riva` archive (examples/riva), on archives made by hand: a right one passes, each fault has its sentence."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from nemo_tutornet.tokenizers import _without_paths
from tests.integration.students import write_tokenizer

RIVA = Path(__file__).parents[2] / "examples" / "riva"
LABELS = [" ", "a", "b", "'"]
FEATURES = 8


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RIVA / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check_riva = load("check_riva")


def network(
    labels: int = len(LABELS),
    features: int = FEATURES,
    stride: int = 2,
    names: tuple[str, str] = ("audio_signal", "logprobs"),
    length: bool = False,
    batch: Any = "B",
    doc: str = "",
    scope: str = "/decoder/Conv",
) -> bytes:
    """One strided convolution to labels and blank, as an ONNX file."""
    signal = helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, features, "T"])
    lengths = helper.make_tensor_value_info("length", TensorProto.INT64, ["B"])
    out = helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["B", "U", labels + 1])
    weight = numpy_helper.from_array(np.zeros((labels + 1, features, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", [names[0], "weight"], ["hidden"], name=scope, strides=[stride], doc_string=doc),
        helper.make_node("Transpose", ["hidden"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("LogSoftmax", ["turned"], [names[1]], axis=-1),
    ]
    graph = helper.make_graph(nodes, "main", [signal, *([lengths] if length else [])], [out], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8).SerializeToString()


class Files:
    """A student and its archive in memory, right until a test changes something; `check` writes and checks them."""

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        self.folder = folder
        self.tokenizer = {} if tokenizer is None else {f"0a_{p.name}": p.read_bytes() for p in sorted(tokenizer.iterdir())}
        pieces = self.tokenizer.get("0a_vocab.txt", b"").decode().split("\n")[:-1]
        self.labels = pieces or LABELS
        bpe = "BPE" if tokenizer else ""
        self.config: dict[str, Any] = {
            "target": f"nemo.collections.asr.models.ctc{'_bpe' if bpe else ''}_models.EncDecCTCModel{bpe}",
            "preprocessor": {"features": FEATURES, "window_stride": 0.01},
            "decoder": {"num_classes": len(self.labels), "vocabulary": list(self.labels)},
            "optim": {"url": "https://example.org/some/page", "betas": [0.9, 0.98]},
        }
        if tokenizer:
            self.config["tokenizer"] = {"dir": "", "type": "bpe", "model_path": "nemo:0a_tokenizer.model"}
        self.student_config = copy.deepcopy(self.config)
        self.manifest: dict[str, Any] = {
            "artifacts": {"model_config.yaml": {"description": ""}, "model_graph.onnx": {"description": "Exported model"}},
            "metadata": {"obj_cls": f"nemo.collections.asr.models.EncDecCTCModel{bpe}", "runtime": "ONNX"},
        }
        self.archived = {**self.tokenizer, "model_graph.onnx": network(len(self.labels))}

    def write(self) -> tuple[Path, Path]:
        student, archive = self.folder / "student.nemo", self.folder / "student.riva"
        self._tar(student, "w", {"model_config.yaml": self._yaml(self.student_config), "w.ckpt": b"0", **self.tokenizer}, "./")
        self._tar(archive, "w:gz", {"model_config.yaml": self._yaml(self.config), **self.archived}, "artifacts/")
        return student, archive

    @staticmethod
    def _yaml(value: Any) -> bytes:
        return yaml.safe_dump(value, allow_unicode=True).encode()

    def _tar(self, path: Path, mode: Any, files: dict[str, bytes], prefix: str) -> None:
        named = {prefix + name: content for name, content in files.items()}
        if path.suffix == ".riva" and self.manifest:
            named["manifest.yaml"] = self._yaml(self.manifest)
        with tarfile.open(path, mode) as archive:
            for name, content in named.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def check(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr(sys, "argv", ["check_riva.py", *map(str, self.write())])
        return check_riva.main()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_files(tmp_path_factory.mktemp("tokenizer"), clean=True)


def tokenizer_files(folder: Path, clean: bool) -> Path:
    """`tokenizer.model` and `vocab.txt`; SentencePiece leaves the path of its training text in the first unless it is cleaned."""
    model = (write_tokenizer(folder) / "tokenizer.model").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    (folder / "tokenizer.model").write_bytes(_without_paths(model) if clean else model)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in check_riva._pieces(model)), encoding="utf-8")
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
    "class": (lambda f: f.manifest["metadata"].update(obj_cls="in_house.CTCModel"), "obj_cls is in_house.CTCModel"),
    "no class": (lambda f: f.manifest["metadata"].pop("obj_cls"), "obj_cls is None"),
    "class of the other kind": (
        lambda f: f.manifest["metadata"].update(obj_cls="nemo.collections.asr.models.EncDecCTCModelBPE"),
        "knows a student like this as nemo.collections.asr.models.EncDecCTCModel only",
    ),
    "target": (lambda f: f.config.update(target="in_house.CTCModel"), "model_config.yaml names the class in_house.CTCModel"),
    "labels in another order": (lambda f: f.config["decoder"]["vocabulary"].reverse(), "its 4 labels are not the student's 4"),
    "a label short": (lambda f: f.config["decoder"]["vocabulary"].pop(), "its 3 labels are not the student's 4"),
    "number of classes": (lambda f: f.config["decoder"].update(num_classes=-1), "decoder.num_classes is -1"),
    "input name": (graph(names=("input", "logprobs")), "inputs are input, not audio_signal"),
    "features": (graph(features=80), "audio_signal is float [*, 80, *] and must be float [*, 8, *]"),
    "fixed batch": (graph(batch=1), "audio_signal is float [1, 8, *]"),
    "output name": (graph(names=("audio_signal", "y")), "outputs are y, not logprobs"),
    "output width": (graph(labels=28), "logprobs is float [*, *, 29] and must be float [*, *, 5]"),
    "no graph": (lambda f: f.archived.pop("model_graph.onnx"), "holds no model_graph.onnx"),
    "no ONNX": (lambda f: f.archived.update({"model_graph.onnx": b"half a file"}), "not a readable ONNX file"),
    "no config": (lambda f: setattr(f, "config", None), "holds no readable model_config.yaml"),
    "no manifest": (lambda f: f.manifest.clear(), "holds no readable manifest.yaml"),
    "path in the config": (
        lambda f: f.config.update(train_ds={"manifest_filepath": "/data/an4/train.jsonl"}),
        "model_config.yaml shows the customer the absolute path /data/an4/train.jsonl (train_ds.manifest_filepath)",
    ),
    "path at the root": (lambda f: f.config.update(log_dir="/runs"), "absolute path /runs (log_dir)"),
    "path of Windows": (lambda f: f.config.update(log_dir="C:\\runs"), "absolute path C:"),
    "path in the manifest": (
        lambda f: f.manifest["artifacts"]["model_config.yaml"].update(description="from /home/someone/student.nemo"),
        "manifest.yaml shows the customer the absolute path /home/someone/student.nemo",
    ),
    "path in the graph": (
        graph(doc="File /home/someone/model.py, line 3"),
        "model_graph.onnx shows the customer the absolute path",
    ),
    "tutor in the config": (lambda f: f.config.update(tutor={"stages": []}), "model_config.yaml names the tutor"),
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
        (lambda f: [c["decoder"]["vocabulary"].reverse() for c in (f.config, f.student_config)], "pieces of the tokenizer"),
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


def test_faults_of_different_kinds_are_all_told(tmp_path, monkeypatch, capsys):
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
    monkeypatch.setattr(sys, "argv", ["check_riva.py", str(tmp_path / "student.nemo"), str(tmp_path / "student.riva")])
    assert check_riva.main() == 2
    _one_sentence(capsys, f"{tmp_path / name} is not a readable archive")


def test_nvidia_s_reader_must_see_the_same_manifest(tmp_path, monkeypatch, capsys):
    seen: dict[str, Any] = {"metadata": {"obj_cls": "nemo.collections.asr.models.EncDecCTCModel", "runtime": "ONNX"}}
    reader = ModuleType("eff.core")
    reader.Archive = type("Archive", (), {"restore_manifest": staticmethod(lambda restore_path: seen)})
    monkeypatch.setitem(sys.modules, "eff.core", reader)
    assert Files(tmp_path).check(monkeypatch) == 0
    capsys.readouterr()
    seen["metadata"]["runtime"] = "TorchScript"
    assert Files(tmp_path).check(monkeypatch) == 2
    _one_sentence(capsys, "eff reads another manifest")


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs riva_check.sh with an environment whose nemo2riva is `does`, a line of shell; `$out` is the file it is to write."""

    def run(*arguments: str, does: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "environment" / "bin"
        folder.mkdir(parents=True)
        requirements = [RIVA / name for name in ("requirements.txt", "requirements-no-deps.txt", "constraints.txt")]
        (folder.parent / ".installed").write_bytes(b"".join(path.read_bytes() for path in requirements))
        scripts = {"python": f'exec "{sys.executable}" "$@"', "nemo2riva": f'[ "$1$2$3" = --devicecpu--out ]; out=$4; {does}'}
        for name, line in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
            (folder / name).chmod(0o755)
        command = ["bash", str(RIVA / "riva_check.sh"), *arguments]
        variables = {**os.environ, "VENV_RIVA": str(folder.parent), **environment}
        return subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_an_archive_appears_only_when_it_is_right(tmp_path, convert):
    _, right = Files(tmp_path).write()
    made = right.rename(tmp_path / "right")
    done = convert("student.nemo", "new/student.riva", does=f'cp "{made}" "$out"')
    assert done.returncode == 0 and "student.riva is right" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["student.riva", "student.riva.log"]
    assert (tmp_path / "new" / "student.riva").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ('cp wrong "$out"', "obj_cls is in_house.CTCModel"),
        ('cp wrong "$out"; echo out of memory; exit 1', "did not convert student.nemo (exit code 1: out of memory)"),
        (":", "did not convert student.nemo (exit code 0"),
    ],
    ids=["a wrong archive and exit code 0", "an archive and exit code 1", "no archive and exit code 0"],
)
def test_the_exit_code_of_nemo2riva_is_not_believed(tmp_path, convert, does, words):
    files = Files(tmp_path)
    files.manifest["metadata"]["obj_cls"] = "in_house.CTCModel"
    files.write()[1].rename(tmp_path / "wrong")
    done = convert("student.nemo", does=does)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("student.riva*/")) and not (tmp_path / "student.riva").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the student"),
        (["absent.nemo"], "there is no file absent.nemo"),
        (["student.nemo", "student.zip"], "student.zip must end in .riva"),
    ],
)
def test_mistakes_on_the_command_line_are_told_before_anything_is_made(tmp_path, convert, arguments, words):
    (tmp_path / "student.nemo").touch()
    done = convert(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_python_3_10_it_says_what_to_do(tmp_path, convert):
    (tmp_path / "student.nemo").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "cat", "cmp"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = convert("student.nemo", PATH=str(tools), PYENV_ROOT=str(tmp_path), PYTHON310="", VENV_RIVA=str(tmp_path / "new"))
    assert done.returncode == 2 and "no Python 3.10" in done.stderr and "PYTHON310=" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "new").exists()


def _one_sentence(capsys: pytest.CaptureFixture[str], words: str) -> None:
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: student.riva: ") and line.endswith(".") and words in line
    assert not printed.out
