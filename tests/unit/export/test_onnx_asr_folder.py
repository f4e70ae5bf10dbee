# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What onnx-asr can run exactly, its vocabulary, and which folders an export may replace."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemo_tutornet import TutorError
from nemo_tutornet.export.onnx_asr_folder import (
    check_onnx_asr_folder,
    model_name,
    onnx_asr_config,
    onnx_asr_note,
    onnx_asr_vocabulary,
    refuse_for_onnx_asr,
)
from nemo_tutornet.export.onnx_metadata import PRECISIONS, OnnxMetadata
from nemo_tutornet.nemo_io.label_text import join_labels
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR
from tests.unit.export.test_onnx_export import FRONT_END

PATH = Path("student.nemo")
METADATA = OnnxMetadata(STOCK_CHAR, list(" ab'"), "char", 1234, {**FRONT_END, "features": 80}, 2, "fp32")
PIECES = ["<unk>", "\u2581a", "b", "\u2581", "'"]


def changed(**changes: Any) -> OnnxMetadata:
    return dataclasses.replace(METADATA, front_end={**METADATA.front_end, **changes})


def texts(metadata: OnnxMetadata, labels: list[int]) -> tuple[str, str]:
    """The text of labels in onnx-asr 0.12.0 and in NeMo."""
    rows = [line.split(" ") for line in onnx_asr_vocabulary(metadata).splitlines()]
    vocabulary = {int(number): token.replace("\u2581", " ") for token, number in rows}
    found = re.sub(
        r"\A\s|\s\B|(\s)\b",
        lambda match: " " if match.group(1) else "",
        "".join(vocabulary[label] for label in labels),
    )
    return found, join_labels([metadata.labels[label] for label in labels], metadata.tokenizer, "'").strip()


@pytest.mark.parametrize(
    "changes", [{}, {"features": 128}, {"highfreq": 8000}, {"n_fft": None}, {"highfreq": 0}]
)
def test_what_it_computes_is_accepted(changes: dict[str, Any]) -> None:
    refuse_for_onnx_asr(changed(**changes), PATH)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": 64}, "features=64"),
        ({"window_size": 0.02}, "a window of 20 ms"),
        ({"window_size": None, "n_window_size": 320}, "a window of 20 ms"),
        ({"window_stride": 0.0125}, "a stride of 12.5 ms"),
        ({"n_fft": 1024}, "n_fft=1024"),
        ({"sample_rate": 8000}, "sample_rate=8000"),
        ({"normalize": "NA"}, "normalize='NA'"),
        ({"normalize": "all_features"}, "normalize='all_features'"),
        ({"preemph": None}, "preemph=None"),
        ({"window": "hamming"}, "window='hamming'"),
        ({"log_zero_guard_type": "clamp"}, "log_zero_guard_type='clamp'"),
        ({"log_zero_guard_value": "eps"}, "log_zero_guard_value='eps'"),
        ({"lowfreq": 20}, "lowfreq=20"),
        ({"highfreq": 4000}, "highfreq=4000"),
        ({"mag_power": 1.0}, "mag_power=1.0"),
        ({"mel_norm": None}, "mel_norm=None"),
        ({"log": False}, "log=False"),
    ],
)
def test_another_front_end_is_refused_with_the_one_to_train(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TutorError, match=r"train the student with front_end=deployable") as error:
        refuse_for_onnx_asr(changed(**changes), PATH)
    assert words in str(error.value) and str(error.value).count(".nemo has") == 1


@pytest.mark.parametrize(
    ("tokenizer", "labels", "words"),
    [
        ("char", ["a", "<blk>"], "the label '<blk>'"),
        ("char", ["a", "\t"], "white space"),
        ("char", ["a", "\u2581"], "its sign for a space"),
        ("bpe", ["\u2581a", "a b"], "white space"),
        ("bpe", ["\u2581a", "<0xC3>"], "single bytes"),
    ],
)
def test_labels_that_it_would_write_otherwise_are_refused(
    tokenizer: str, labels: list[str], words: str
) -> None:
    with pytest.raises(TutorError, match=words):
        refuse_for_onnx_asr(dataclasses.replace(METADATA, tokenizer=tokenizer, labels=labels), PATH)


@pytest.mark.parametrize(
    ("tokenizer", "labels", "spoken"),
    [
        ("char", list(" ab'"), [0, 1, 2, 0, 1, 0, 3, 2]),
        ("bpe", PIECES, [1, 2, 1, 3, 2, 1, 4, 2]),
        ("agg", PIECES, [3, 2, 2, 1]),
        ("wpe", ["play", "##ing", "cards", "'"], [0, 1, 2, 3, 0]),
    ],
)
def test_its_text_is_nemos(tokenizer: str, labels: list[str], spoken: list[int]) -> None:
    metadata = dataclasses.replace(METADATA, tokenizer=tokenizer, labels=labels)
    found, expected = texts(metadata, spoken)
    assert found == expected and found


def test_its_files() -> None:
    assert onnx_asr_vocabulary(METADATA) == "\u2581 0\na 1\nb 2\n' 3\n<blk> 4\n"
    pieces = dataclasses.replace(METADATA, target=STOCK_BPE, tokenizer="bpe", labels=PIECES)
    assert onnx_asr_vocabulary(pieces).splitlines()[-1] == "<blk> 5"
    config = onnx_asr_config(METADATA)
    assert (config["model_type"], config["features_size"], config["subsampling_factor"]) == (
        "nemo-conformer-ctc",
        80,
        2,
    )
    assert [model_name(precision) for precision in PRECISIONS] == [
        "model.onnx",
        "model.fp16.onnx",
        "model.int8.onnx",
    ]


def test_spaces_before_other_signs_are_noted() -> None:
    assert onnx_asr_note(METADATA) is None
    note = onnx_asr_note(dataclasses.replace(METADATA, labels=[*METADATA.labels, "$", "_"]))
    assert note is not None and "$ _" in note
    assert onnx_asr_note(dataclasses.replace(METADATA, tokenizer="bpe", labels=PIECES)) is None


def test_a_folder_that_an_export_wrote_is_taken_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    check_onnx_asr_folder(folder)
    folder.mkdir()
    check_onnx_asr_folder(folder)
    for name in ("model.onnx", "model.int8.onnx", "vocab.txt", "README.md"):
        (folder / name).write_text("", encoding="utf-8")
    with pytest.raises(TutorError, match=r"no earlier export wrote"):  # another model of the same kind
        check_onnx_asr_folder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "nemo-conformer-ctc"}), encoding="utf-8")
    with pytest.raises(TutorError, match=r"no earlier export wrote"):
        check_onnx_asr_folder(folder)
    (folder / "config.json").write_text(json.dumps(onnx_asr_config(METADATA)), encoding="utf-8")
    check_onnx_asr_folder(folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(TutorError, match=r"holds notes\.txt, which no earlier export wrote"):
        check_onnx_asr_folder(folder)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(TutorError, match=r"is no folder"):
            check_onnx_asr_folder(tmp_path / name)
