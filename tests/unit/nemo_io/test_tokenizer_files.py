# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A config names its tokenizer's files, and NeMo packs them: nothing but a tokenizer gets through."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.sentencepiece_model import pieces_of
from nemo_tutornet.nemo_io.tokenizer_files import (
    check_archive_tokenizer,
    check_checkpoint_tokenizer,
    check_tokenizer_files,
    check_tokenizer_section,
    tokenizer_of,
)
from tests.conftest import refusal
from tests.integration.students import write_tokenizer
from tests.unit.nemo_io.test_archive import write_tar

RUN = Path("run.ckpt")
WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd", *("##" + letter for letter in "abcd")]
TEXT = "aa c\nbb d\nab cd\nabc d 12\n" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A SentencePiece tokenizer's folder, with NeMo's three files."""
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A WordPiece tokenizer's folder."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n", encoding="utf-8")
    return tmp_path / "words"


def labels_in(folder: Path) -> list[str]:
    """As SentencePiece itself lists them."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [model.id_to_piece(i) for i in range(model.vocab_size())]


def checkpoint(section: dict[str, Any], labels: list[str] | None) -> DictConfig:
    return OmegaConf.create({"tokenizer": section, "decoder": {"vocabulary": labels}})


def pieces_of_model(folder: Path) -> list[str]:
    pieces = pieces_of((folder / "tokenizer.model").read_bytes())
    assert pieces is not None
    return [piece.text for piece in pieces]


def test_pieces_are_sentencepieces_own(folder: Path) -> None:
    assert pieces_of_model(folder) == labels_in(folder)
    assert pieces_of(b"") is None and pieces_of(b"\xff\xff no protobuf") is None and pieces_of(b"abc") is None


OPTIONS = [
    {},
    {"bos": True, "eos": True, "pad": True},
    {"user_defined_symbols": ["<en>", "ab"], "control_symbols": ["<x>"]},
    {"byte_fallback": True, "vocab_size": 280},
    {"tokenizer_type": "unigram", "vocab_size": 12},
    {"tokenizer_type": "char"},
    {"tokenizer_type": "word", "vocab_size": 8, "split_by_whitespace": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_nemos_own_script_writes_passes(tmp_path: Path, options: dict[str, Any]) -> None:
    """`create_spt_model` is what NeMo's process_asr_text_tokenizer.py calls."""
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    more = {"vocab_size": 16, "sample_size": -1, "do_lower_case": False, "tokenizer_type": "bpe", **options}
    create_spt_model(str(tmp_path / "text.txt"), output_dir=str(tmp_path / "spe"), **more)
    section = {"dir": str(tmp_path / "spe"), "type": "bpe"}
    check_tokenizer_section(OmegaConf.create({"tokenizer": section}))
    check_checkpoint_tokenizer(checkpoint(section, labels_in(tmp_path / "spe")), RUN)


def test_pieces_as_they_are_pass_too(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(labels_in(folder)), encoding="utf-8")
    check_tokenizer_section(OmegaConf.create({"tokenizer": {"dir": str(folder), "type": "BPE"}}))
    (folder / "tokenizer.vocab").unlink()  # older ones have none
    check_tokenizer_section(OmegaConf.create({"tokenizer": {"dir": str(folder), "type": "BPE"}}))


def replaced(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return apply


def linked(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return apply


def other_file(name: str, write: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        write(folder / name)

    return apply


WRONG = [
    (linked("tokenizer.model"), "tokenizer.model_path", "a link"),
    (linked("vocab.txt"), "tokenizer.vocab_path", "a link"),
    (linked("tokenizer.vocab"), "tokenizer.spe_tokenizer_vocab", "a link"),
    (other_file("vocab.txt", os.mkfifo), "tokenizer.vocab_path", "no regular file"),
    (other_file("vocab.txt", Path.mkdir), "tokenizer.vocab_path", "no regular file"),
    (
        other_file("tokenizer.model", lambda p: p.write_bytes(b"x")),
        "tokenizer.model_path",
        "no SentencePiece",
    ),
    (other_file("vocab.txt", lambda p: p.write_bytes(b"\xff\n")), "tokenizer.vocab_path", "(line 1)"),
    (other_file("vocab.txt", lambda p: p.write_bytes(b"")), "tokenizer.vocab_path", "(line 1)"),
    (other_file("vocab.txt", lambda p: None), "tokenizer.vocab_path", "not here"),
    (replaced("vocab.txt", lambda text: text + "localhost\n"), "tokenizer.vocab_path", "pieces (line 9)"),
    (
        replaced("vocab.txt", lambda text: text[text.index("\n") + 1 :]),
        "tokenizer.vocab_path",
        "pieces (line",
    ),
    (
        replaced("vocab.txt", lambda text: text[: text.rindex("##")]),
        "tokenizer.vocab_path",
        "pieces (line 8)",
    ),
    (
        replaced("tokenizer.vocab", lambda text: text + "more\t-9\n"),
        "spe_tokenizer_vocab",
        "pieces (line 12)",
    ),
    (replaced("tokenizer.vocab", lambda text: text.replace("\t", " ")), "spe_tokenizer_vocab", "(line 1)"),
    (
        replaced("tokenizer.vocab", lambda text: text.replace("-7", "secret")),
        "spe_tokenizer_vocab",
        "(line 11)",
    ),
]


@pytest.mark.parametrize(
    ("break_it", "key", "words"), WRONG, ids=[f"{key}: {words}" for _, key, words in WRONG]
)
def test_what_is_no_tokenizer_is_refused(
    folder: Path, break_it: Callable[[Path], None], key: str, words: str
) -> None:
    labels = labels_in(folder)
    break_it(folder)
    section = {"dir": str(folder), "type": "bpe"}
    for message in (
        refusal(check_tokenizer_section, OmegaConf.create({"tokenizer": section})),
        refusal(check_checkpoint_tokenizer, checkpoint(section, labels), RUN),
        refusal(
            check_tokenizer_section,
            OmegaConf.create({"tokenizer": {"type": "agg", "langs": {"en": section}}}),
        ),
        refusal(
            check_checkpoint_tokenizer, checkpoint({"type": "agg", "langs": {"en": section}}, labels), RUN
        ),
    ):
        assert str(folder) in message and key.split(".")[-1] in message and words in message


@pytest.mark.parametrize("key", ["vocab_path", "spe_tokenizer_vocab", "model_path"])
@pytest.mark.parametrize("secret", ["/etc/hostname", "{folder}/../secret.txt", "secret.txt"])
def test_no_other_file_is_named(folder: Path, key: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "secret.txt").write_text("hunter2\n")
    monkeypatch.chdir(folder.parent)
    section = {"dir": str(folder), "type": "bpe", key: secret.format(folder=folder)}
    message = refusal(check_checkpoint_tokenizer, checkpoint(section, labels_in(folder)), RUN)
    assert "in another folder" in message and "hunter2" not in message
    assert "in another folder" in refusal(check_tokenizer_section, OmegaConf.create({"tokenizer": section}))


def test_another_folder_is_not_taken_from(folder: Path, tmp_path: Path) -> None:
    """Even a file that would do: the tokenizer is one folder."""
    shutil.copy(folder / "vocab.txt", tmp_path / "vocab.txt")
    section = {"dir": str(folder), "type": "bpe", "vocab_path": str(tmp_path / "vocab.txt")}
    assert "in another folder" in refusal(
        check_checkpoint_tokenizer, checkpoint(section, labels_in(folder)), RUN
    )


def test_a_checkpoint_has_its_own_tokenizer(folder: Path, tmp_path: Path) -> None:
    section = {"dir": str(folder), "type": "bpe"}
    other = write_tokenizer(tmp_path / "other", "zz y\nxx w\nzy wx\nzyx w\n" * 20)
    check_checkpoint_tokenizer(checkpoint(section, labels_in(folder)), RUN)
    for labels in (labels_in(other), labels_in(folder)[::-1], labels_in(folder)[:-1], [], None):
        message = refusal(check_checkpoint_tokenizer, checkpoint(section, labels), RUN)
        assert f"{RUN} was trained with" in message and "decoder.vocabulary" in message
    both = {"type": "agg", "langs": {"en": section, "de": {"dir": str(other), "type": "bpe"}}}
    check_checkpoint_tokenizer(checkpoint(both, labels_in(folder) + labels_in(other)), RUN)
    assert "was trained with" in refusal(
        check_checkpoint_tokenizer, checkpoint(both, labels_in(other) + labels_in(folder)), RUN
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    section = {"dir": str(tmp_path / "gone"), "type": "bpe"}
    message = refusal(check_checkpoint_tokenizer, checkpoint(section, ["a"]), RUN)
    assert f"{RUN} names its tokenizer in {tmp_path / 'gone'}, which is not here; export the run's" in message


# --- WordPiece
# --------------------------------------------------------------------------------------------------------


def test_a_wordpiece_vocabulary_passes(words: Path) -> None:
    section = {"dir": str(words), "type": "wpe"}
    check_tokenizer_section(OmegaConf.create({"tokenizer": section}))
    check_checkpoint_tokenizer(checkpoint(section, WORDPIECES[::-1]), RUN)
    check_checkpoint_tokenizer(checkpoint(section, [*WORDPIECES, "<pad>"]), RUN)  # which transformers adds
    for labels in ([], WORDPIECES[1:], [*WORDPIECES, "word"], None):
        assert "was trained with" in refusal(check_checkpoint_tokenizer, checkpoint(section, labels), RUN)


@pytest.mark.parametrize(
    ("content", "words_"),
    [
        (b"a\nuser: x\n", "line 2"),
        (b"a\n\nb\n", "line 2"),
        (b"a\tb\n", "line 1"),
        (b"\xff\n", "line 1"),
        (b"a\n" + b"b" * 300, "line 2"),
        (b"a\na\n", "twice"),
        (b"", "line 1"),
    ],
)
def test_what_is_no_wordpiece_vocabulary_is_refused(words: Path, content: bytes, words_: str) -> None:
    (words / "vocab.txt").write_bytes(content)
    section = {"dir": str(words), "type": "WPE"}
    for message in (
        refusal(check_tokenizer_section, OmegaConf.create({"tokenizer": section})),
        refusal(check_checkpoint_tokenizer, checkpoint(section, WORDPIECES), RUN),
        refusal(check_tokenizer_files, "wpe", {"vocab.txt": content}, "the cache"),
    ):
        assert words_ in message and "tokenizer.vocab_path" in message


def test_a_plausible_file_of_this_machine_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("localhost\n")
    section = {"dir": "", "type": "wpe", "vocab_path": str(tmp_path / "hostname")}
    for labels in ([], None, WORDPIECES):
        assert "was trained with" in refusal(check_checkpoint_tokenizer, checkpoint(section, labels), RUN)


# --- Archives
# ---------------------------------------------------------------------------------------------------------


def archive(path: Path, folder: Path, **section: Any) -> NemoArchive:
    """A `.nemo` of the files in a folder, under the names that NeMo gives them."""
    names = {
        "model_path": "tokenizer.model",
        "vocab_path": "vocab.txt",
        "spe_tokenizer_vocab": "tokenizer.vocab",
    }
    present = {key: name for key, name in names.items() if (folder / name).is_file()}
    shown = {"dir": "", "type": "bpe", **{key: f"nemo:ab_{name}" for key, name in present.items()}, **section}
    config = OmegaConf.to_yaml(OmegaConf.create({"tokenizer": shown})).encode()
    files = [(f"./ab_{name}", (folder / name).read_bytes()) for name in present.values()]
    return NemoArchive(write_tar(path, ("./model_config.yaml", config), *files))


def test_an_archives_tokenizer_is_read(folder: Path, words: Path, tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.nemo", folder)
    check_archive_tokenizer(whole, packed=True)
    names = ("tokenizer.model", "vocab.txt", "tokenizer.vocab")
    expected = {name: (folder / name).read_bytes() for name in names}
    assert tokenizer_of(whole) == tokenizer_of(whole.path) == ("bpe", expected)
    old = archive(tmp_path / "old.nemo", folder, vocab_path="/gone/ab_vocab.txt")  # before `nemo:`
    assert tokenizer_of(old) == ("bpe", expected)
    pieces = archive(tmp_path / "w.nemo", words, type="wpe")
    assert tokenizer_of(pieces) == ("wpe", {"vocab.txt": (words / "vocab.txt").read_bytes()})


def test_a_file_of_this_machine_is_not_an_archives(folder: Path, tmp_path: Path) -> None:
    for key in ("model_path", "vocab_path", "spe_tokenizer_vocab"):
        for path in ("/etc/hostname", f"nemo:..{folder}/vocab.txt", str(folder / "vocab.txt")):
            evil = archive(tmp_path / "evil.nemo", folder, **{key: path})
            assert f"{path} for tokenizer.{key}, a file of this machine" in refusal(tokenizer_of, evil)
            assert f"tokenizer.{key}" in refusal(check_archive_tokenizer, evil, True)
            if key == "model_path":  # what NeMo reads where nothing is saved
                assert f"tokenizer.{key}" in refusal(check_archive_tokenizer, evil)
            else:
                check_archive_tokenizer(evil)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.vocab", "tokenizer.model"])
def test_an_archives_tokenizer_is_one(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(b"something else\n")
    other = archive(tmp_path / "a.nemo", folder)
    assert str(other.path) in refusal(tokenizer_of, other) and name in refusal(tokenizer_of, other)
    assert name in refusal(check_archive_tokenizer, other, True)


def test_an_archive_without_a_named_file_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = archive(tmp_path / "a.nemo", folder, vocab_path="nemo:other.txt")
    assert "does not hold its tokenizer's files (other.txt); take a whole one." in refusal(
        tokenizer_of, broken
    )
    none = NemoArchive(
        write_tar(tmp_path / "b.nemo", ("./model_config.yaml", b"tokenizer: {type: bpe, dir: ''}\n"))
    )
    assert "(none is named)" in refusal(tokenizer_of, none)
    unread = NemoArchive(write_tar(tmp_path / "c.nemo", ("./model_config.yaml", b"tokenizer: ${nowhere}\n")))
    assert "section tokenizer that cannot be read" in refusal(check_archive_tokenizer, unread)
