# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The proof of a student's graphs: what they compute, and what they and the facts tell a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from omegaconf import OmegaConf

from nemo_tutornet import export_student
from nemo_tutornet.export.onnx_metadata import PRECISIONS
from tests.conftest import LABELS, student_config
from tests.integration.export.verification import failures, verified
from tests.integration.students import build, subword


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student.nemo` and its graphs, `student.onnx`, `student.fp16.onnx` and `student.int8.onnx`."""
    folder = tmp_path_factory.mktemp("exported")
    run = build("quartznet", folder)
    return export_student(
        run, folder / "student.nemo", onnx=folder / "student.onnx", precisions=PRECISIONS
    ).path


def tell(**entries: str) -> Callable[[onnx.ModelProto], None]:
    """Gives a graph other metadata."""

    def change(proto: onnx.ModelProto) -> None:
        for entry in proto.metadata_props:
            entry.value = entries.get(entry.key, entry.value)

    return change


def weigh(change: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    """Changes the weights of a graph; scales, zero points and shapes are too short to be some."""

    def change_all(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            weights = onnx.numpy_helper.to_array(tensor)
            if weights.size > 20:
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(change(weights).astype(weights.dtype), tensor.name)
                )

    return change_all


def rename(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.input[:] = ["features" if i == "audio_signal" else i for i in node.input]
    proto.graph.input[0].name = "features"


def fix_length(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1000


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        (
            "",
            rename,
            "graph: opset 17, features -> logprobs; NeMo's clients feed audio_signal (and length) and read "
            "logprobs",
        ),
        ("", tell(labels=json.dumps(LABELS[::-1])), "labels: its metadata has other labels than the student"),
        ("", tell(labels="a b c"), "labels: its metadata has other labels than the student"),
        ("", fix_length, "agrees: ONNX Runtime cannot run it: "),
        # A thousandth is far more than rounding and would never show in a transcript.
        ("", weigh(lambda weights: weights * 1.001), "agrees: largest difference from PyTorch"),
        ("", weigh(lambda weights: weights * float("nan")), "agrees: largest difference from PyTorch inf"),
        (
            ".fp16",
            weigh(lambda weights: weights * float("nan")),
            "agrees: root mean square difference from PyTorch inf",
        ),
        (".fp16", weigh(lambda weights: weights * 0), "agrees: root mean square difference from PyTorch"),
        (".int8", weigh(lambda weights: weights * 0), "agrees: root mean square difference from PyTorch"),
        ("", tell(precision="int8"), "metadata: wrong in it: precision"),
        (".int8", tell(precision="fp32"), "metadata: wrong in it: precision"),
        (
            "",
            tell(preprocessor="{}", subsampling_factor="4"),
            "metadata: wrong in it: preprocessor, subsampling_factor",
        ),
        (
            "",
            tell(blank_id="0", tokenizer="wpe", ms_per_frame="80"),
            "metadata: wrong in it: blank_id, tokenizer, ms_per_frame",
        ),
    ],
)
def test_graphs_that_are_not_the_students(
    precision: str,
    change: Callable[[onnx.ModelProto], None],
    words: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto = onnx.load(exported.with_suffix(f"{precision}.onnx"))
    change(proto)
    onnx.save(proto, tmp_path / "changed.onnx")
    (found,) = failures(exported, monkeypatch, [tmp_path / "changed.onnx"])
    assert found.startswith(f"changed.onnx: {words}")


def test_a_graph_that_is_cut(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.onnx").write_bytes(exported.with_suffix(".onnx").read_bytes()[:-2000])
    (found,) = failures(exported, monkeypatch, [tmp_path / "cut.onnx"])
    assert found.startswith("cut.onnx: opens: ONNX Runtime cannot open it")


def test_milliseconds_of_a_hop_that_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo.collections.asr.models import EncDecCTCModel

    config = student_config(tmp_path, None)
    del config["train_ds"], config["validation_ds"]
    config["sample_rate"] = config["preprocessor"]["sample_rate"] = 22050  # 220 samples are 9.977 ms
    EncDecCTCModel(OmegaConf.create(config)).save_to(str(tmp_path / "run.nemo"))
    done = export_student(tmp_path / "run.nemo", tmp_path / "student.nemo", onnx=tmp_path / "student.onnx")
    verification = verified(done.path, monkeypatch, [tmp_path / "student.onnx"])
    assert verification.facts["frame_ms"] == 19.955
    assert next(check for check in verification.checks if check.name == "student.onnx: metadata").passed


def test_wordpieces_are_listed_by_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo lists them in an order of its own; the hub, which NeMo asks for the rules, is replaced."""
    transformers = pytest.importorskip("transformers")
    from nemo.collections.asr.models import EncDecCTCModelBPE

    class Reversed(transformers.BertTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return dict(reversed(super().get_vocab().items()))

    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        staticmethod(lambda *_, vocab_file=None, **__: Reversed(vocab_file)),
    )
    (tmp_path / "tokenizer").mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd", *("##" + letter for letter in "abcd")]
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = subword(student_config(tmp_path, None), tmp_path / "tokenizer")
    del config["train_ds"], config["validation_ds"]
    config["tokenizer"]["type"] = "wpe"
    EncDecCTCModelBPE(OmegaConf.create(config)).save_to(str(tmp_path / "run.nemo"))
    done = export_student(tmp_path / "run.nemo", tmp_path / "student.nemo", onnx=tmp_path / "student.onnx")
    verification = verified(done.path, monkeypatch, [tmp_path / "student.onnx"])
    assert verification.facts["vocabulary"] == pieces and verification.facts["tokenizer"] == "wpe"
    assert [check.name for check in verification.checks if not check.passed] == ["no plugin"]
