# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Metadata of ONNX files, text from labels, what sherpa-onnx can run, and files that are not what they
say.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_tutornet import TutorError
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_calibration import evenly_spread
from nemo_tutornet.export.onnx_export import with_metadata, write_onnx
from nemo_tutornet.export.onnx_metadata import OnnxMetadata, front_end_of
from nemo_tutornet.export.onnx_sherpa import sherpa_note, sherpa_tokens, with_length
from nemo_tutornet.nemo_io.label_text import join_labels
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR

PATH = Path("student.onnx")
FRONT_END = {
    "sample_rate": 16000,
    "window_size": 0.025,
    "window_stride": 0.01,
    "n_window_size": None,
    "n_window_stride": None,
    "features": 8,
    "n_fft": 512,
    "preemph": 0.97,
    "lowfreq": 0,
    "highfreq": None,
    "log_zero_guard_value": 2**-24,
    "dither": 0,
    "pad_to": 0,
    "frame_splicing": 1,
    "mag_power": 2.0,
    "window": "hann",
    "normalize": "per_feature",
    "log": True,
    "log_zero_guard_type": "add",
    "exact_pad": False,
    "mel_norm": "slaney",
}
LABELS = list(" abcdef")
METADATA = OnnxMetadata(STOCK_CHAR, LABELS, "char", 1234, FRONT_END, 2, "fp32")


def with_front_end(**changes: Any) -> OnnxMetadata:
    return dataclasses.replace(METADATA, front_end={**FRONT_END, **changes})


def graph(features: int = 8, inputs: str = "audio_signal", outputs: str = "logprobs") -> Any:
    """A graph that only transposes: as many classes as mel bins."""
    import onnx

    node = onnx.helper.make_node("Transpose", [inputs], [outputs], perm=[0, 2, 1])
    audio = onnx.helper.make_tensor_value_info(inputs, onnx.TensorProto.FLOAT, ["B", features, "T"])
    log_probs = onnx.helper.make_tensor_value_info(outputs, onnx.TensorProto.FLOAT, ["B", "T", features])
    made = onnx.helper.make_graph([node], "graph", [audio], [log_probs])
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def flat() -> Any:
    """A graph of two dimensions."""
    import onnx

    items = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8])
        for name in ("audio_signal", "logprobs")
    ]
    node = onnx.helper.make_node("Identity", ["audio_signal"], ["logprobs"])
    made = onnx.helper.make_graph([node], "graph", items[:1], items[1:])
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def write(path: Path, proto: Any, entries: dict[str, str]) -> Path:
    path.write_bytes(with_metadata(proto, entries).SerializeToString())
    return path


def test_metadata_come_back_as_they_went():
    entries = METADATA.as_strings()
    assert all(isinstance(value, str) for value in entries.values())
    assert OnnxMetadata.from_strings(entries, PATH) == METADATA
    assert METADATA.ms_per_frame == 20.0 and entries["ms_per_frame"] == "20"
    limited = dataclasses.replace(METADATA, receptive_field=(125, 124))
    assert "receptive_field" not in entries and limited.as_strings()["receptive_field"] == "[125, 124]"
    assert OnnxMetadata.from_strings(limited.as_strings(), PATH) == limited
    of_weights = dataclasses.replace(METADATA, weights_sha256="0f" * 32)
    assert OnnxMetadata.from_strings(of_weights.as_strings(), PATH) == of_weights
    in_samples = with_front_end(window_stride=None, n_window_stride=160)
    assert (
        in_samples.ms_per_frame == 20.0
        and OnnxMetadata.from_strings(in_samples.as_strings(), PATH) == in_samples
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *[
            (key, None, f"no {key}")
            for key in METADATA.as_strings()
            if key
            not in (
                "ms_per_frame",
                "vocab_size",
                "normalize_type",
                "model_type",
                "version",
                "model_author",
                "comment",
            )
        ],
        ("labels", "[1, 2", "no JSON"),
        ("labels", "{}", "no list of texts"),
        ("labels", "[]", "no list of texts"),
        ("labels", "[1, 2, 3]", "no list of texts"),
        ("blank_id", "0", "blank_id"),
        ("class", "os.system", "class"),
        ("precision", "int4", "precision"),
        ("tokenizer", "other", "tokenizer"),
        ("parameters", "-3", "parameters"),
        ("parameters", "9" * 5000, "parameters"),
        ("subsampling_factor", "0", "subsampling_factor"),
        *[
            ("receptive_field", one, "not two numbers of frames")
            for one in ("[1]", "[-1, 2]", "[1, 1e9]", "{}")
        ],
        ("receptive_field", "[1, true]", "not two numbers of frames"),
        ("weights_sha256", "abc", "weights_sha256 in its metadata is 'abc', which is no checksum"),
        ("preprocessor", "[" * 100000, "no JSON"),
        ("preprocessor", "[]", "no mapping"),
        ("preprocessor", "{}", "missing or unknown"),
        ("preprocessor", json.dumps({**FRONT_END, "rng": 1}), "unknown: rng"),
        ("preprocessor", json.dumps({**FRONT_END, "n_fft": 10**9}), "n_fft is 1000000000"),
        ("preprocessor", json.dumps({**FRONT_END, "features": "64"}), "features is '64'"),
        ("preprocessor", json.dumps({**FRONT_END, "features": True}), "features is True"),
        ("preprocessor", json.dumps({**FRONT_END, "lowfreq": float("nan")}), "lowfreq is nan"),
        ("preprocessor", json.dumps({**FRONT_END, "window": ["hann"]}), "window is ['hann']"),
        ("preprocessor", json.dumps({**FRONT_END, "log": 1}), "log is 1"),
        (
            "preprocessor",
            json.dumps({**FRONT_END, "normalize": {"fixed_mean": [0], "fixed_std": [1]}}),
            "normalize is",
        ),
        ("preprocessor", json.dumps({**FRONT_END, "pad_to": 16}), "pad_to is 16"),
        (
            "preprocessor",
            json.dumps({**FRONT_END, "window_size": None}),
            "neither window_size nor n_window_size",
        ),
        (
            "preprocessor",
            json.dumps({**FRONT_END, "n_window_stride": 160}),
            "both window_stride and n_window_stride",
        ),
        ("preprocessor", json.dumps({**FRONT_END, "n_fft": 256}), "n_fft is 256, shorter than the window"),
        ("preprocessor", json.dumps({**FRONT_END, "highfreq": 9000}), "highfreq 9000"),
    ],
)
def test_metadata_that_cannot_be_are_refused(key, value, words):
    entries = METADATA.as_strings()
    if value is None:
        del entries[key]
    else:
        entries[key] = value
    with pytest.raises(TutorError) as error:
        OnnxMetadata.from_strings(entries, PATH)
    assert words in str(error.value) and str(PATH) in str(error.value)


def test_a_front_end_travels_with_nemos_defaults_and_without_what_belongs_to_training():
    section = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "features": 80,
        "dither": 1e-5,
        "pad_to": 16,
        "stft_conv": False,
    }
    front_end = front_end_of(section, PATH)
    assert (
        front_end["features"] == 80
        and front_end["window_size"] == 0.02
        and front_end["log_zero_guard_value"] == 2**-24
    )
    assert front_end["dither"] == front_end["pad_to"] == 0 and "stft_conv" not in front_end
    section["_target_"] = "nemo.collections.asr.modules.AudioToMFCCPreprocessor"
    with pytest.raises(TutorError, match="AudioToMFCCPreprocessor"):
        front_end_of(section, PATH)
    section.update(
        _target_="nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", frame_splicing=3
    )
    with pytest.raises(TutorError, match="frame_splicing is 3"):
        front_end_of(section, PATH)


def test_pieces_become_the_text_that_sentencepiece_makes_of_them(tmp_path):
    import sentencepiece

    (tmp_path / "text.txt").write_text("aa c\nbb d\nab cd\nabc d\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "m"),
        vocab_size=11,
        model_type="bpe",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "m.model"))
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    draw = random.Random(0)
    for _ in range(3000):
        drawn = draw.choices(pieces, k=draw.randint(0, 8))
        assert join_labels(drawn, "bpe") == processor.decode_pieces(drawn), drawn


def test_characters_and_word_pieces_become_text():
    assert join_labels(list(" ab a"), "char") == " ab a"
    assert join_labels(["play", "##ing", "cards"], "wpe") == "playing cards"


def test_the_best_path_merges_repeats_and_then_drops_blanks(tmp_path):
    path = write(tmp_path / "student.onnx", graph(), METADATA.as_strings())
    recogniser = OnnxCTCModel(path)
    best = [7, 1, 1, 7, 1, 0, 0, 2, 7, 7]
    assert recogniser.decode(np.eye(8)[best]) == "aa b"
    assert recogniser.decode(np.zeros((0, 8))) == ""
    assert (recogniser.precision, recogniser.parameters, recogniser.sample_rate) == ("fp32", 1234, 16000)
    assert recogniser.labels == LABELS


def test_log_probabilities_are_frames_by_labels(tmp_path):
    """The graph of these tests only transposes."""
    path = write(tmp_path / "student.onnx", graph(), METADATA.as_strings())
    features = np.random.default_rng(0).standard_normal((1, 8, 5)).astype(np.float32)
    assert np.array_equal(OnnxCTCModel(path).log_probs(features), features[0].T)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("absent", "there is no file"),
        ("garbage", "not a readable .onnx file"),
        ("truncated", "not a readable .onnx file"),
        ("no metadata", "no labels in its metadata"),
        ("mel bins", "has 16 mel bins in its graph and 8 in its metadata"),
        ("labels", "has 8 labels in its graph and 4 in its metadata"),
        ("inputs", "has the inputs features"),
        ("outputs", "has the inputs audio_signal and the outputs posteriors"),
        ("rank", "both must have three dimensions"),
        ("bytes", "metadata that are not text"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, damage, words):
    entries = METADATA.as_strings()
    changes: dict[str, Any] = {
        "mel bins": {"features": 16},
        "inputs": {"inputs": "features"},
        "outputs": {"outputs": "posteriors"},
    }.get(damage, {})
    if damage == "no metadata":
        entries = {}
    elif damage == "labels":
        entries = dataclasses.replace(METADATA, labels=list("abc")).as_strings()
    path = write(tmp_path / "student.onnx", graph(**changes), entries)
    if damage == "rank":
        write(path, flat(), entries)
    elif damage == "bytes":
        path.write_bytes(path.read_bytes().replace(b"EncDecCTCModel", b"EncDecCTCMode\xff"))
    elif damage == "absent":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"no graph at all")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TutorError) as error:
        OnnxCTCModel(path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_sherpa_notes_what_differs_and_refuses_what_it_cannot_do():
    assert sherpa_note(METADATA, PATH) is None
    for changes, words in (
        ({"window_size": 0.02}, "a window of 25 ms, not 20 ms"),
        ({"log_zero_guard_type": "clamp", "log_zero_guard_value": "eps"}, "plus 2^-24"),
    ):
        note = sherpa_note(with_front_end(**changes), PATH)
        assert note is not None and words in note
    for changes, words in (
        ({"window_stride": 0.02}, "a stride of 20 ms"),
        ({"normalize": "all_features"}, "normalize='all_features'"),
        ({"n_fft": 1024}, "n_fft=1024"),
        ({"window_size": 0.064, "n_fft": None}, "n_fft=None"),
        ({"highfreq": 4000}, "highfreq=4000"),
        ({"preemph": None, "window": "hamming"}, "preemph=None, window='hamming'"),
    ):
        with pytest.raises(TutorError) as error:
            sherpa_note(with_front_end(**changes), PATH)
        assert words in str(error.value)
    for changes, words in (
        ({"labels": [" ", "a b"]}, "white space"),
        ({"tokenizer": "wpe", "labels": ["a", "##"]}, "an empty label"),
        ({"tokenizer": "wpe", "labels": ["a", "\u2581b"]}, "a WordPiece label with \u2581 in it"),
    ):
        with pytest.raises(TutorError, match=words):
            sherpa_note(dataclasses.replace(METADATA, **changes), PATH)


def test_sherpa_gets_its_tokens_and_its_second_input():
    assert sherpa_tokens(METADATA) == "\u2581 0\na 1\nb 2\nc 3\nd 4\ne 5\nf 6\n<blk> 7\n"
    pieces = dataclasses.replace(
        METADATA, target=STOCK_BPE, tokenizer="bpe", labels=["<unk>", "\u2581a", "b"]
    )
    assert sherpa_tokens(pieces) == "<unk> 0\n\u2581a 1\nb 2\n<blk> 3\n"
    words = dataclasses.replace(METADATA, target=STOCK_BPE, tokenizer="wpe", labels=["[UNK]", "a", "##b"])
    assert sherpa_note(words, PATH) is None
    assert sherpa_tokens(words) == "\u2581[UNK] 0\n\u2581a 1\nb 2\n<blk> 3\n"
    plain = graph()
    two = with_length(plain)
    assert [item.name for item in two.graph.input] == ["audio_signal", "length"]
    assert [item.name for item in plain.graph.input] == ["audio_signal"]
    assert with_length(two) == two


def test_a_bad_name_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for destination, precisions, words in (
        ("student.zip", ["fp32"], "must end in .onnx"),
        ("folder.onnx", ["fp32"], "is a folder"),
        ("student.onnx", ["fp32", "int4"], "precision int4"),
        ("student.onnx", [], "precision given"),
    ):
        with pytest.raises(TutorError, match=words):
            write_onnx(tmp_path / "absent.nemo", tmp_path / destination, precisions)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        TutorError, match=rf'^{package} cannot be imported.*pip install "nemo_tutornet\[onnx\]"'
    ):
        write_onnx(tmp_path / "absent.nemo", tmp_path / "student.onnx")


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 150, 199, 300, 948])
def test_utterances_to_calibrate_on_are_spread_over_the_whole_manifest(rows: int) -> None:
    chosen = evenly_spread(rows, 100)
    assert len(chosen) == min(rows, 100) and chosen[0] == 0
    assert all(0 < b - a <= -(-rows // 100) for a, b in zip(chosen, [*chosen[1:], rows], strict=True))
