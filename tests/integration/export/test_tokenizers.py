# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers through every entrance: NeMo's own leave with the student, and no other file does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModelBPE, export_student
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.tokenizer_files import tokenizer_of
from tests.conftest import refusal, student_config
from tests.integration.students import of_kind, subword, write_tokenizer

Change = Callable[[dict], Any]
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd", *("##" + letter for letter in "abcd")]


def student_of(folder: Path, tokenizer: Any, **front_end: Any) -> TutorCTCModelBPE:
    config = subword(of_kind("quartznet bpe", student_config(folder, None)), folder)
    config["preprocessor"].update(front_end)
    config["encoder"]["feat_in"] = config["preprocessor"]["features"]
    del config["train_ds"], config["validation_ds"]
    config["tokenizer"] = tokenizer
    torch.manual_seed(0)
    return TutorCTCModelBPE(OmegaConf.create({"model": config}).model).eval()


def save_ckpt(model: TutorCTCModelBPE, path: Path, change: Change = lambda config: None) -> Path:
    """What Lightning writes of a model, with another config."""
    config = OmegaConf.to_container(model.hparams.cfg)
    change(config)
    hyper_parameters = OmegaConf.create({"cfg": config})
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": hyper_parameters}, path)
    return path


@pytest.fixture
def wordpieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """WordPiece models can be built: the hub, which NeMo asks for the rules, is replaced."""
    transformers = pytest.importorskip("transformers")

    def local(*_: object, vocab_file: str | None = None, **__: object) -> object:
        return transformers.BertTokenizer(vocab_file)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", staticmethod(local))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wpe", "agg"])
@pytest.mark.parametrize("suffix", [".ckpt", ".nemo", "unpacked"])
def test_nemos_own_tokenizers_leave(kind: str, suffix: str, tmp_path: Path, wordpieces: None) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    section: dict[str, Any] = {"dir": str(folder), "type": "bpe"}
    if kind == "wpe":
        (folder / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n", encoding="utf-8")
        section["type"] = "wpe"
    else:
        (tmp_path / "text.txt").write_text("aa c\nbb d\nab cd\nabc d\n" * 20, encoding="utf-8")
        model_type = "unigram" if kind == "unigram" else "bpe"
        shutil.rmtree(folder)
        create_spt_model(
            str(tmp_path / "text.txt"), 11, -1, False, model_type, str(folder), bos=True, eos=True
        )
    if kind == "agg":
        other = write_tokenizer(tmp_path / "other", "zz y\nxx w\nzy wx\nzyx w\n" * 20)
        section = {"type": "agg", "langs": {"en": section, "de": {"dir": str(other), "type": "bpe"}}}
    model = student_of(tmp_path, section)
    if suffix == ".ckpt":
        source = save_ckpt(model, tmp_path / "run.ckpt")
    else:
        source = tmp_path / "run.nemo"
        model.save_to(str(source))
        if suffix == "unpacked":
            (tmp_path / "unpacked").mkdir()
            NemoArchive(source).unpack(tmp_path / "unpacked")
            source = tmp_path / "unpacked"
    done = export_student(source, tmp_path / "student.nemo")
    assert str(tmp_path).encode() not in done.path.read_bytes()
    if kind != "agg":
        found, files = tokenizer_of(done.path)
        assert found == section["type"]
        assert files["vocab.txt"] == (folder / "vocab.txt").read_bytes()


def other_key(**keys: str) -> Change:
    return lambda config: config["tokenizer"].update(keys)


def as_wordpieces(config: dict) -> None:
    config["tokenizer"] = {"type": "wpe", "dir": "", "vocab_path": "/etc/hostname"}
    config["decoder"]["vocabulary"] = None


def aggregate(config: dict) -> None:
    own = config["tokenizer"]
    config["tokenizer"] = {"type": "agg", "langs": {"en": {**own, "vocab_path": "/etc/hostname"}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_key(vocab_path="/etc/hostname"), "tokenizer.vocab_path, which is in another folder"),
        (other_key(spe_tokenizer_vocab="/etc/hostname"), "spe_tokenizer_vocab, which is in another folder"),
        (other_key(model_path="/etc/hostname"), "which is in another folder"),
        (other_key(vocab_path="{folder}/notes.txt"), "which is not the list of tokenizer.model's pieces"),
        (other_key(spe_tokenizer_vocab="{folder}/notes.txt"), "which is not the list of tokenizer.model's"),
        (other_key(vocab_path="{folder}/link.txt"), "tokenizer.vocab_path, which is a link"),
        (other_key(dir="{other}"), "was trained with 11 labels"),
        (as_wordpieces, "was trained with 0 labels"),
        (aggregate, "tokenizer.langs.en.vocab_path, which is in another folder"),
    ],
)
def test_a_checkpoint_takes_no_other_file_along(tmp_path: Path, change: Change, words: str) -> None:
    folder, other = (
        write_tokenizer(tmp_path / "tokenizer"),
        write_tokenizer(tmp_path / "other", "zz y\nxx w\n" * 20),
    )
    (folder / "notes.txt").write_text("hunter2\n")
    (folder / "link.txt").symlink_to(folder / "vocab.txt")
    model = student_of(tmp_path, {"dir": str(folder), "type": "bpe"})

    def here(config: dict) -> None:
        change(config)
        for key, value in config["tokenizer"].items():
            if isinstance(value, str):
                config["tokenizer"][key] = value.format(folder=folder, other=other)

    source = save_ckpt(model, tmp_path / "run.ckpt", here)
    message = refusal(export_student, source, tmp_path / "student.nemo")
    assert str(source) in message and words in message and "hunter2" not in message
    assert not (tmp_path / "student.nemo").exists()
    export_student(save_ckpt(model, source), tmp_path / "student.nemo")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "tokenizer.vocab"])
def test_a_training_follows_no_link(tmp_path: Path, name: str) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    student_of(tmp_path, {"dir": str(folder), "type": "bpe"}).save_to(str(tmp_path / "run.nemo"))
    archive = NemoArchive(tmp_path / "run.nemo")
    (tmp_path / "unpacked").mkdir()
    archive.unpack(tmp_path / "unpacked")
    (member,) = [member for member in archive.members if member.endswith(f"_{name}")]
    for path in (folder / name, tmp_path / "unpacked" / member):
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    message = refusal(student_of, tmp_path, {"dir": str(folder), "type": "bpe"})
    assert f"{folder}/{name} for model.tokenizer." in message and "which is a link" in message
    message = refusal(student_of, tmp_path, str(tmp_path / "unpacked"))
    assert f"{tmp_path}/unpacked holds '{member}', a link" in message


def test_a_model_that_is_restored_needs_no_folder(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer")
    student_of(tmp_path, {"dir": str(folder), "type": "bpe"}).save_to(str(tmp_path / "run.nemo"))
    shutil.rmtree(folder)
    restored = TutorCTCModelBPE.restore_from(str(tmp_path / "run.nemo"), map_location="cpu")
    assert restored.tokenizer.vocab_size == 11


def write_table(source: Path, target: Path, labels: list[int], vocabulary: int) -> Path:
    """Replaces the network of an exported graph by one that writes `labels`, a frame each, and keeps its
    inputs and metadata.
    """
    onnx = pytest.importorskip("onnx")
    model = onnx.load(source)
    best = np.full((1, len(labels), vocabulary + 1), -20.0, np.float32)
    best[0, np.arange(len(labels)), labels] = 0.0
    for field in ("node", "initializer", "value_info"):
        model.graph.ClearField(field)
    model.graph.node.append(
        onnx.helper.make_node("Constant", [], ["logprobs"], value=onnx.numpy_helper.from_array(best))
    )
    onnx.save(model, target)
    return target


def test_wordpieces_in_sherpa_onnx_and_in_onnx_asr_are_nemos_text(tmp_path: Path, wordpieces: None) -> None:
    """Only the text is compared: a table of labels takes the network's place."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx", minversion="2.0")
    onnx_asr = pytest.importorskip("onnx_asr")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n", encoding="utf-8")
    section = {"dir": str(tmp_path / "tokenizer"), "type": "wpe"}
    model = student_of(tmp_path, section, features=80, window_size=0.025)
    model.save_to(str(tmp_path / "run.nemo"))
    export_student(
        tmp_path / "run.nemo",
        tmp_path / "student.nemo",
        onnx=tmp_path / "student.onnx",
        sherpa=True,
        onnx_asr=tmp_path / "asr",
    )
    numbers = {piece: number for number, piece in enumerate([*WORDPIECES, "blank"])}
    original = (tmp_path / "asr" / "model.onnx").rename(tmp_path / "original.onnx")
    for pieces, expected in (
        (["a", "##b", "c", "##d", "##d", "##a", "d"], "ab cda d"),
        (["a", "a", "blank", "a", "##a"], "a aa"),
        (["[UNK]", "##b", "a"], "[UNK]b a"),
    ):
        labels = [numbers[piece] for piece in pieces]
        best = torch.nn.functional.one_hot(torch.tensor([labels]), len(numbers)).float().log()
        printed = model.decoding.ctc_decoder_predictions_tensor(best, torch.tensor([len(labels)]))
        assert printed[0].text == expected
        samples = np.zeros(2 * 160 * len(labels), np.float32)
        graph = write_table(
            tmp_path / "student.sherpa.onnx", tmp_path / "table.onnx", labels, len(WORDPIECES)
        )
        recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            str(graph), str(tmp_path / "student.tokens.txt"), feature_dim=80
        )
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, samples)
        recogniser.decode_stream(stream)
        assert stream.result.text == expected
        write_table(original, tmp_path / "asr" / "model.onnx", labels, len(WORDPIECES))
        client = onnx_asr.load_model(
            "nemo-conformer-ctc", tmp_path / "asr", providers=["CPUExecutionProvider"]
        )
        assert client.recognize(samples) == expected
