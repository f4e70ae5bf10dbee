# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A subword student of a subword teacher, through both stages and out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_tutornet import LiveTeacher, TutorCTCModelBPE, TutorError, export_student
from nemo_tutornet.config import TeacherConfig, parse_tutor
from nemo_tutornet.distill.matching import match_models
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE
from tests.conftest import student_config, teacher_config
from tests.integration.students import subword, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def teacher(corpus: Path, tokenizer: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = EncDecCTCModelBPE(OmegaConf.create(subword(teacher_config(corpus), tokenizer)))
    model.save_to(str(tmp_path / "teacher.nemo"))
    return tmp_path / "teacher.nemo"


def test_a_student_takes_its_teachers_tokenizer(
    corpus, tokenizer, teacher, make_student, tmp_path, monkeypatch
):
    """The student trains with it, resumes after the teacher's folder is gone, and leaves on its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    borrowing = subword(student_config(corpus, teacher), tokenizer)
    borrowing["tokenizer"] = "teacher"
    trainer = make_student(student_config(corpus, None), max_epochs=2).trainer
    student = TutorCTCModelBPE(OmegaConf.create({"model": borrowing}).model, trainer=trainer)
    trainer.fit(student)
    theirs = ASRModel.restore_from(str(teacher), map_location="cpu")
    assert (
        list(student.decoder.vocabulary) == list(theirs.decoder.vocabulary)
        and student.distiller.match.label_order is None
    )
    done = export_student(student, tmp_path / "student.nemo")
    shutil.rmtree(tmp_path / "cache")
    teacher.unlink()
    alone = ASRModel.restore_from(str(done.path), map_location="cpu")
    assert alone.tokenizer.text_to_ids("ab cd") == theirs.tokenizer.text_to_ids("ab cd")
    assert "cache" not in OmegaConf.to_yaml(NemoArchive(done.path).config)


def test_a_character_conformer_begins_with_a_subword_one(corpus, teacher, make_student, tmp_path):
    """Its encoder is the teacher's, its decoder is new, and CTC trains it: a teacher with characters."""
    mine = teacher_config(corpus)
    config = student_config(
        corpus, teacher, [{"name": "ctc", "weights": {"ctc": 1.0}}], init={"source": "teacher"}
    )
    config.update({part: mine[part] for part in ("preprocessor", "encoder", "decoder")})
    config.pop("spec_augment")
    student = make_student(config, folder=tmp_path / "run", max_epochs=1)
    fresh = student.decoder.decoder_layers[0].weight.clone()
    student.setup("fit")
    theirs = ASRModel.restore_from(str(teacher), map_location="cpu").encoder.state_dict()
    copied = student.encoder.state_dict()
    # An untrained batch norm looks as if it were folded, and gets statistics.
    weights = {name: value for name, value in theirs.items() if "batch_norm" not in name}
    assert weights and [name for name, value in weights.items() if not torch.equal(copied[name], value)] == []
    assert torch.equal(student.decoder.decoder_layers[0].weight, fresh)
    student.trainer.fit(student)
    assert not torch.equal(student.decoder.decoder_layers[0].weight, fresh)
    (written,) = (tmp_path / "run").rglob("*.nemo")
    characters = ASRModel.restore_from(str(export_student(written, tmp_path / "characters.nemo").path))
    assert list(characters.decoder.vocabulary) == list(student.decoder.vocabulary)


def test_an_undistilled_baseline_names_the_file(corpus, tokenizer, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = {**subword(student_config(corpus, None), tokenizer), "tokenizer": str(teacher)}
    model = TutorCTCModelBPE(OmegaConf.create({"model": config}).model)
    assert model.tokenizer.vocab_size == 11


@pytest.mark.parametrize(
    ("tokenizer_key", "tutor", "words"),
    [
        ("teacher", None, "model.tokenizer=teacher.nemo"),
        ("teacher", {"teacher": {"model_path": "{char}"}}, "which has characters and no tokenizer"),
        ("{char}", None, "which has characters and no tokenizer"),
        ("/no/teacher.nemo", None, "there is no file /no/teacher.nemo"),
    ],
)
def test_no_tokenizer_to_take(corpus, teacher_file, tokenizer, tokenizer_key, tutor, words):
    config = subword(student_config(corpus, None), tokenizer)
    config["tokenizer"] = tokenizer_key.format(char=teacher_file)
    if tutor is not None:
        config["tutor"] = {"teacher": {"model_path": str(teacher_file)}}
    with pytest.raises(TutorError, match=words):
        TutorCTCModelBPE(OmegaConf.create({"model": config}).model)


def test_a_subword_student_trains_and_leaves(corpus, tokenizer, make_student, tmp_path):
    torch.manual_seed(0)
    teacher = EncDecCTCModelBPE(OmegaConf.create(subword(teacher_config(corpus), tokenizer)))
    teacher.save_to(str(tmp_path / "teacher.nemo"))
    config = subword(student_config(corpus, tmp_path / "teacher.nemo"), tokenizer)
    trainer = make_student(student_config(corpus, None), folder=tmp_path / "run", max_epochs=2).trainer
    student = TutorCTCModelBPE(OmegaConf.create({"model": config}).model, trainer=trainer)
    trainer.fit(student)
    assert student.distiller.stage == 1 and student.distiller.match.no_warm_start is None

    (last,) = tmp_path.rglob("*-last.ckpt")
    (written,) = (tmp_path / "run").rglob("*.nemo")
    for source in (last, written):
        done = export_student(source, tmp_path / "student.nemo")
        assert done.target == STOCK_BPE
        restored = ASRModel.restore_from(str(done.path), map_location="cpu")
        assert type(restored) is EncDecCTCModelBPE and "tutor" not in restored.cfg
        assert str(tokenizer) not in OmegaConf.to_yaml(NemoArchive(done.path).config)
        assert restored.tokenizer.text_to_ids("ab cd") == student.tokenizer.text_to_ids("ab cd")
        assert all(
            torch.equal(a, b)
            for a, b in zip(restored.state_dict().values(), student.state_dict().values(), strict=True)
        )
        restored.transcribe([str(corpus / "valid0.wav")], batch_size=1, verbose=False)
    gone = tokenizer.rename(tmp_path / "gone")
    with pytest.raises(
        TutorError, match=rf"names its tokenizer in {tokenizer}, which is not here; export the run's \.nemo"
    ):
        export_student(last, tmp_path / "student.nemo")
    gone.rename(tokenizer)


def test_wordpieces_are_matched_by_output(corpus, tmp_path, monkeypatch):
    """NeMo lists a WordPiece model's vocabulary in an order of its own; the hub, which NeMo asks for the
    rules, is replaced.
    """
    transformers = pytest.importorskip("transformers")

    def local(*_: object, vocab_file: str | None = None, **__: object) -> object:
        return transformers.BertTokenizer(vocab_file)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", staticmethod(local))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tokenizer").mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd", *("##" + letter for letter in "abcd")]
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = subword(teacher_config(corpus), tmp_path / "tokenizer")
    config["tokenizer"]["type"] = "wpe"
    EncDecCTCModelBPE(OmegaConf.create(config)).save_to(str(tmp_path / "teacher.nemo"))
    mine = subword(student_config(corpus, tmp_path / "teacher.nemo"), tmp_path / "tokenizer")
    mine["tokenizer"] = "teacher"
    cfg = OmegaConf.create({"model": mine}).model
    student, teacher = (
        TutorCTCModelBPE(cfg),
        LiveTeacher.from_config(TeacherConfig(model_path=str(tmp_path / "teacher.nemo"))),
    )
    assert teacher.labels == pieces
    student.decoder._ConvASRDecoder__vocabulary = pieces[::-1]  # as another process may list it
    assert match_models(student, teacher, parse_tutor(cfg)).label_order is None
