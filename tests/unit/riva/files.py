# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A `.riva` archive made by hand, and its student, for the tests of examples/riva."""

from __future__ import annotations

import copy
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

RIVA = Path(__file__).parents[3] / "examples" / "riva"
LABELS = [" ", "a", "b", "'"]
FEATURES = 8


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RIVA / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


load("riva_files")  # which check_riva imports; beside the program it is found by itself
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
        helper.make_node(
            "Conv", [names[0], "weight"], ["hidden"], name=scope, strides=[stride], doc_string=doc
        ),
        helper.make_node("Transpose", ["hidden"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("LogSoftmax", ["turned"], [names[1]], axis=-1),
    ]
    graph = helper.make_graph(nodes, "main", [signal, *([lengths] if length else [])], [out], [weight])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8
    ).SerializeToString()


class Files:
    """A student and its archive in memory, right until a test changes something; `check` writes and checks
    them.
    """

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        self.folder = folder
        self.tokenizer = (
            {} if tokenizer is None else {f"0a_{p.name}": p.read_bytes() for p in sorted(tokenizer.iterdir())}
        )
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
            "artifacts": {
                "model_config.yaml": {"description": ""},
                "model_graph.onnx": {"description": "Exported model"},
            },
            "metadata": {"obj_cls": f"nemo.collections.asr.models.EncDecCTCModel{bpe}", "runtime": "ONNX"},
        }
        self.archived = {**self.tokenizer, "model_graph.onnx": network(len(self.labels))}

    def write(self) -> tuple[Path, Path]:
        student, archive = self.folder / "student.nemo", self.folder / "student.riva"
        self._tar(
            student,
            "w",
            {"model_config.yaml": self._yaml(self.student_config), "w.ckpt": b"0", **self.tokenizer},
            "./",
        )
        self._tar(
            archive, "w:gz", {"model_config.yaml": self._yaml(self.config), **self.archived}, "artifacts/"
        )
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
