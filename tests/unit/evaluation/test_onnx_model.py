# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels become the text that NeMo's own decoding makes of them, in the package and in the example that does
without NeMo.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.evaluate import _nemo_of
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.nemo_io.label_text import join_labels
from tests.conftest import LABELS
from tests.unit.export.test_onnx_export import METADATA, graph, write

EXAMPLE = Path(__file__).parents[3] / "examples" / "onnx" / "transcribe_onnxruntime.py"
# Marks that are special in a regular expression; a no-break space, which NeMo takes for one too; labels that
# look special.
ODD = [" ", "\u00a0", "a", "b", *"[]^-\\.,?'", "[.]", "<!>", "##;", "a:"]


def nemo_decoding(labels: list[str], strategy: str = "greedy_batch") -> Any:
    from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecoding, CTCDecodingConfig
    from omegaconf import OmegaConf

    return CTCDecoding(OmegaConf.structured(CTCDecodingConfig(strategy=strategy)), labels)


def nemo_subword_decoding(tokenizer: Any) -> Any:
    from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecoding, CTCBPEDecodingConfig
    from omegaconf import OmegaConf

    tokenizer.tokenizer.vocab_size = len(tokenizer.vocab)  # as NeMo's models do it
    return CTCBPEDecoding(OmegaConf.structured(CTCBPEDecodingConfig()), tokenizer)


def nemo_punctuation(labels: list[str]) -> set[str]:
    from nemo.collections.asr.parts.utils.tokenizer_utils import extract_punctuation_from_vocab

    return extract_punctuation_from_vocab(labels)


@pytest.fixture(scope="module")
def page() -> Any:
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of_page(page: Any, labels: list[str], ids: list[int], tokenizer: str) -> str:
    apart = [i for one in ids for i in (one, len(labels))]  # blanks, or repeats would be merged
    return page.text(np.eye(len(labels) + 1)[apart].reshape(-1, len(labels) + 1), labels, tokenizer)


@pytest.mark.parametrize("labels", [LABELS, LABELS[:-1], ODD], ids=["stock", "without punctuation", "odd"])
def test_characters_become_the_text_that_nemo_makes_of_them(page, labels):
    decoding, punctuation = nemo_decoding(labels), nemo_punctuation(labels)

    @given(st.lists(st.sampled_from(range(len(labels)))))
    @example([1, 0, len(labels) - 1, 0, 0, len(labels) - 1, 2])
    def check(ids: list[int]) -> None:
        expected = decoding.decode_tokens_to_str_with_strip_punctuation(ids)
        assert join_labels([labels[i] for i in ids], "char", punctuation) == expected
        assert text_of_page(page, labels, ids, "char") == expected

    check()


@pytest.fixture(
    scope="module", params=["a , b . 'c d'e\n", "aa c\nbb d\nab cd\nabc d\n"], ids=["punctuation", "none"]
)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """NeMo's tokenizer with a SentencePiece model that spells letters it has not learnt as bytes."""
    import sentencepiece
    from nemo.collections.common.tokenizers import SentencePieceTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(request.param * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "m"),
        vocab_size=275,
        model_type="bpe",
        minloglevel=2,
        byte_fallback=True,
        hard_vocab_limit=False,
    )
    return SentencePieceTokenizer(str(folder / "m.model"))


def as_bytes(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


def test_pieces_become_the_text_that_nemo_makes_of_them(page, tokenizer):
    decoding, pieces = nemo_subword_decoding(tokenizer), tokenizer.vocab
    punctuation = nemo_punctuation(pieces)
    whole = [piece for piece in pieces if not piece.startswith("<0x")]
    letters = st.characters(exclude_categories=["Cs"]).map(as_bytes)

    @given(
        st.lists(
            st.sampled_from(whole).map(lambda piece: [piece]) | letters | letters.map(lambda run: run[:-1])
        )
    )
    @example([["<unk>"], as_bytes("\u00e9"), ["\u2581", "<s>"], as_bytes("\u2581 \n'")])
    @example(
        [as_bytes("\u20ac")[:2], ["\u2581a"], as_bytes("\U0001f600")[1:], ["<0xED>", "<0xA0>", "<0x80>"]]
    )
    def check(drawn: list[list[str]]) -> None:
        labels = list(chain.from_iterable(drawn))
        expected = decoding.decode_tokens_to_str_with_strip_punctuation(
            [pieces.index(label) for label in labels]
        )
        assert join_labels(labels, "bpe", punctuation) == expected

    check()
    ids = tokenizer.text_to_ids("ab \u00e9'd c\u00fcb")
    assert "<0xC3>" in tokenizer.ids_to_tokens(ids)
    assert text_of_page(page, pieces, ids, "bpe") == decoding.decode_tokens_to_str_with_strip_punctuation(ids)


@pytest.mark.parametrize("strategy", ["greedy", "greedy_batch"])
def test_the_best_path_is_spelt_as_nemo_spells_it(tmp_path, page, strategy):
    labels = [" ", "a", "b", "'", ",", "."]
    metadata = dataclasses.replace(METADATA, labels=labels, front_end={**METADATA.front_end, "features": 7})
    recogniser = OnnxCTCModel(write(tmp_path / "student.onnx", graph(features=7), metadata.as_strings()))
    log_probs = torch.randn(40, 200, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    shown = nemo_decoding(labels, strategy).ctc_decoder_predictions_tensor(log_probs, torch.full((40,), 200))
    expected = [hypothesis.text for hypothesis in shown]
    assert any(" '" in text for text in expected), "of two spaces one stays"
    assert [recogniser.decode(row.numpy()) for row in log_probs] == expected
    assert [page.text(row.numpy(), labels, "char") for row in log_probs] == expected


def test_word_pieces_lose_the_space_before_a_mark_too(page):
    labels = ["[UNK]", "do", "##n", "##'", "'", "t", "."]
    assert nemo_punctuation(labels) == {"'", "."}
    assert join_labels([*labels[1:], "[UNK]"], "wpe", "'.") == "don'' t. [UNK]"
    assert text_of_page(page, labels, [1, 2, 3, 4, 5, 6, 0], "wpe") == "don'' t. [UNK]"


def test_audio_without_samples_has_no_frames(tmp_path):
    recogniser = OnnxCTCModel(write(tmp_path / "student.onnx", graph(), METADATA.as_strings()))
    assert recogniser.features(np.zeros(0, np.float32)).shape == (1, 8, 0)
    assert recogniser.transcribe([np.zeros(0, np.float32), np.zeros(159, np.float32)]) == ["", ""]


def test_several_channels_are_refused(tmp_path, page):
    """A channel would have to be guessed, in the package and in the page without NeMo."""
    recogniser = OnnxCTCModel(write(tmp_path / "student.onnx", graph(), METADATA.as_strings()))
    with pytest.raises(TutorError, match=r"audio of the shape \[160, 2\] has several channels"):
        recogniser.transcribe([np.zeros((160, 2), np.float32)])
    soundfile.write(tmp_path / "call.wav", np.zeros((160, 2)), 16000)
    with pytest.raises(SystemExit, match=r"call\.wav has 2 channels"):
        page.read(str(tmp_path / "call.wav"), 16000)
    soundfile.write(tmp_path / "mono.wav", np.zeros(160), 16000)
    assert page.read(str(tmp_path / "mono.wav"), 16000).shape == (160,)


def test_a_graph_is_described_by_the_model_of_its_name(tmp_path, monkeypatch):
    """Not by another one of the same sizes, whose labels or window would give a wrong error rate."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()

    def described(graph: str, *models: str) -> str | None:
        archives: Any = {Path(path): path for path in models}
        found = _nemo_of(Path(graph), archives)
        return str(found) if found is not None else None

    assert described("d/student.onnx", "teacher.nemo") is None
    assert (
        described("d/m.v1.onnx", "m.v2.nemo") is None
        and described("m.v1.int8.onnx", "m.v1.nemo") == "m.v1.nemo"
    )
    assert described("d/student.fp16.onnx", "teacher.nemo", "student.nemo") == "student.nemo"
    assert described("d/student.onnx", "a/student.nemo", "b/student.nemo") is None
    assert described("d/student.onnx", "a/student.nemo", "d/student.nemo") == "d/student.nemo"
    assert described("d/student.onnx", "a/student") == "a/student", "a folder that it was unpacked to"
    (tmp_path / "d" / "student.nemo").touch()
    for models in (["teacher.nemo"], ["a/student.nemo"], []):
        assert described("d/student.sherpa.onnx", *models) == "d/student.nemo"


def test_the_nemo_of_a_graph_with_metadata_is_not_opened(tmp_path):
    (tmp_path / "student.nemo").write_bytes(b"half a file")
    path = write(tmp_path / "student.onnx", graph(), METADATA.as_strings())
    assert OnnxCTCModel(path, tmp_path / "student.nemo").labels == METADATA.labels
    bare = write(tmp_path / "bare.onnx", graph(), {})
    with pytest.raises(TutorError, match=r"is not a readable \.nemo file"):
        OnnxCTCModel(bare, tmp_path / "student.nemo")
    with pytest.raises(TutorError, match=r"no labels in its metadata.* beside it as bare\.nemo"):
        OnnxCTCModel(bare)
