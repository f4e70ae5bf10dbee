# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What an export takes along: nothing of the exporting machine by somebody's config, and no path of the
training one.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecodingConfig
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModelBPE, export_student
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.stock_config import STOCK_CHAR
from nemo_tutornet.nemo_io.tokenizer_files import tokenizer_of
from tests.conftest import refusal, student_config
from tests.integration.students import build, of_kind, subword, write_tokenizer

Change = Callable[[dict], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student of characters in `char/run.nemo` and one of subwords in `bpe/run.nemo`."""
    folder = tmp_path_factory.mktemp("students")
    build("quartznet", folder / "char")
    build("quartznet bpe", folder / "bpe")
    return folder


def repack(source: Path, destination: Path, change: Change) -> Path:
    """The same archive with another config."""
    with tarfile.open(source) as old, tarfile.open(destination, "w") as new:
        for member in old.getmembers():
            stream = old.extractfile(member)
            content = b"" if stream is None else stream.read()
            if member.name.endswith("model_config.yaml"):
                config = yaml.safe_load(content)
                change(config)
                content = yaml.safe_dump(config).encode()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return destination


def subword_model(tmp_path: Path, tokenizer: dict[str, Any]) -> Any:
    config = subword(of_kind("quartznet bpe", student_config(tmp_path, None)), tmp_path)
    del config["train_ds"], config["validation_ds"]
    config["tokenizer"] = tokenizer
    return TutorCTCModelBPE(OmegaConf.create({"model": config}).model).eval()


# --- Somebody's config


def of_tokenizer(*gone: str, **values: str) -> Change:
    def change(config: dict) -> None:
        config["tokenizer"].update(values)
        for key in gone:
            del config["tokenizer"][key]

    return change


def aggregate(config: dict) -> None:
    tokenizer = config["tokenizer"]
    config["tokenizer"] = {
        "type": "agg",
        "langs": {"en": {**tokenizer, "spe_tokenizer_vocab": "{here}/secret"}},
    }


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("tokenizer.spe_tokenizer_vocab", of_tokenizer(spe_tokenizer_vocab="{here}/secret")),
        ("tokenizer.vocab_path", of_tokenizer(vocab_path="secret")),  # of the working directory
        ("tokenizer.vocab_path", of_tokenizer(vocab_path="nemo:../{here}/secret")),
        ("tokenizer.vocab_path", of_tokenizer(vocab_path="${comment}")),
        ("tokenizer.vocab_path", of_tokenizer("vocab_path", dir="{here}/tokenizer")),
        ("tokenizer.vocab_path", of_tokenizer(type="WPE", vocab_path="{here}/secret")),
        ("tokenizer.langs.en.spe_tokenizer_vocab", aggregate),
    ],
)
def test_a_file_of_this_machine_is_not_packed(
    folder: Path, tmp_path: Path, key: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("of this machine")
    write_tokenizer(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)

    def here(config: dict) -> None:
        change(config)
        config["comment"] = "{here}/secret"
        config.update(yaml.safe_load(yaml.safe_dump(config).replace("{here}", str(tmp_path))))

    source = repack(folder / "bpe" / "run.nemo", tmp_path / "evil.nemo", here)
    message = refusal(export_student, source, tmp_path / "student.nemo")
    assert str(source) in message and key in message and not (tmp_path / "student.nemo").exists()


def paths_of_the_training(config: dict) -> None:
    """As NeMo wrote them before `nemo:`; the last part is the member's name."""
    config["tokenizer"] = {
        key: value.replace("nemo:", "/gone/") for key, value in config["tokenizer"].items()
    }


@pytest.mark.parametrize(
    "old", ["a stale folder that is still here", "no SentencePiece vocabulary", "no nemo:"]
)
def test_what_nemo_saved_earlier_is_exported(folder: Path, tmp_path: Path, old: str) -> None:
    change = {
        "a stale folder that is still here": of_tokenizer(dir=str(write_tokenizer(tmp_path / "tokenizer"))),
        "no SentencePiece vocabulary": of_tokenizer("spe_tokenizer_vocab", dir="/gone"),
        "no nemo:": paths_of_the_training,
    }[old]
    source = repack(folder / "bpe" / "run.nemo", tmp_path / "old.nemo", change)
    done = export_student(source, tmp_path / "student.nemo")
    config = NemoArchive(done.path).config
    assert config.tokenizer.dir == "" and config.tokenizer.model_path.startswith("nemo:")
    assert (
        tokenizer_of(done.path)[1]["vocab.txt"] == (folder / "bpe" / "tokenizer" / "vocab.txt").read_bytes()
    )


@pytest.mark.parametrize("text", ["${oc.env:MY_TOKEN}", "a ${ oc.env : MY_TOKEN}", "${${o}.env:MY_TOKEN}"])
@pytest.mark.parametrize("suffix", [".nemo", ".ckpt"])
def test_the_environment_is_not_read(
    folder: Path, tmp_path: Path, suffix: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    comments = {"o": "oc", "notes": [{"comment": text}]}
    source = tmp_path / f"evil{suffix}"
    if suffix == ".nemo":
        repack(folder / "char" / "run.nemo", source, lambda config: config.update(comments))
    else:
        hyper_parameters = OmegaConf.create({"cfg": {"target": STOCK_CHAR, **comments}})
        torch.save({"state_dict": {}, "hyper_parameters": hyper_parameters}, source)
    message = refusal(export_student, source, tmp_path / "student.nemo")
    assert text in message and "notes.0.comment" in message and "hunter2" not in message


def test_keys_of_the_config_may_be_named_in_it(folder: Path, tmp_path: Path) -> None:
    def change(config: dict) -> None:
        config["preprocessor"]["sample_rate"] = "${sample_rate}"

    source = repack(folder / "char" / "run.nemo", tmp_path / "run.nemo", change)
    done = export_student(source, tmp_path / "student.nemo")
    assert NemoArchive(done.path).config.preprocessor == {
        "sample_rate": 16000,
        **NemoArchive(done.path).config.preprocessor,
    }
    source = repack(source, tmp_path / "broken.nemo", lambda config: config.update(comment="${nowhere}"))
    assert "nowhere" in refusal(export_student, source, tmp_path / "other.nemo")


def test_what_is_checked_is_what_nemo_restores(folder: Path, tmp_path: Path) -> None:
    source = repack(
        folder / "bpe" / "run.nemo", tmp_path / "evil.nemo", lambda config: config.update(model=dict(config))
    )
    assert "section `model`" in refusal(export_student, source, tmp_path / "student.nemo")


# --- The training's machine


def test_a_sentencepiece_model_may_have_any_name(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    model = (tokenizer / "tokenizer.model").rename(tokenizer / "spe_v11.model")
    student = subword_model(tmp_path, {"dir": str(tokenizer), "type": "bpe", "model_path": str(model)})
    done = export_student(student, tmp_path / "student.nemo", verify=True)
    assert str(tmp_path).encode() not in done.path.read_bytes()


def test_an_aggregate_tokenizer_leaves_without_its_folders(tmp_path: Path) -> None:
    langs = {
        "en": write_tokenizer(tmp_path / "en"),
        "de": write_tokenizer(tmp_path / "de", "zz y\nxx w\nzy wx\nzyx w\n" * 20),
    }
    sections = {lang: {"dir": str(path), "type": "BPE"} for lang, path in langs.items()}
    student = subword_model(tmp_path, {"type": "agg", "langs": sections})
    done = export_student(student, tmp_path / "student.nemo", verify=True)
    assert str(tmp_path).encode() not in done.path.read_bytes()
    config = NemoArchive(done.path).config.tokenizer
    assert {(config.langs[lang].dir, config.langs[lang].type) for lang in langs} == {("", "bpe")}


def test_a_tokenizers_type_is_read_as_nemo_reads_it(tmp_path: Path) -> None:
    student = subword_model(tmp_path, {"dir": str(write_tokenizer(tmp_path / "tokenizer")), "type": "BPE"})
    done = export_student(student, tmp_path / "student.nemo", onnx=tmp_path / "student.onnx", verify=True)
    assert NemoArchive(done.path).config.tokenizer.type == "bpe"
    assert OnnxCTCModel(done.onnx[0].path).labels == list(student.decoder.vocabulary)
    kind, files = tokenizer_of(repack(done.path, tmp_path / "upper.nemo", of_tokenizer(type="BPE")))
    assert kind == "bpe" and set(files) == {"tokenizer.model", "vocab.txt", "tokenizer.vocab"}


@pytest.mark.parametrize("strategy", ["pyctcdecode", "greedy_batch"])
def test_a_language_model_is_not_named(folder: Path, tmp_path: Path, strategy: str) -> None:
    (tmp_path / "lm.bin").touch()
    decoding = OmegaConf.to_container(OmegaConf.structured(CTCDecodingConfig(strategy=strategy)))
    assert isinstance(decoding, dict)
    # Which NeMo 3 copies into ngram_lm_model.
    decoding["beam"].update(beam_size=4, kenlm_path=str(tmp_path / "lm.bin"))
    source = repack(
        folder / "char" / "run.nemo", tmp_path / "run.nemo", lambda config: config.update(decoding=decoding)
    )
    done = export_student(source, tmp_path / "student.nemo", verify=True)
    assert str(tmp_path).encode() not in done.path.read_bytes()
    found: str | None = NemoArchive(done.path).config.decoding.beam.kenlm_path
    assert found is None
