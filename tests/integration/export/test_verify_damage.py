# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The proof of an exported student on damaged files: each damage has its sentence."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_tutornet.export.verify import PROBE_SECONDS
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.integration.export.verification import failures, repack
from tests.integration.students import build


def shorter_labels(config: dict, weights: dict) -> None:
    config["labels"] = config["labels"][:-1]
    config["decoder"].update(vocabulary=config["labels"], num_classes=len(config["labels"]))


def other_labels(config: dict, weights: dict) -> None:
    config["labels"] = config["labels"][::-1]


NO_RATE = "sample rate: the config's sample_rate is no number of samples per second from 1000 to 192000"


def no_front_end(config: dict, weights: dict) -> None:
    del config["sample_rate"]
    config["preprocessor"] = 3


DAMAGE: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
    "a key missing": (
        lambda c, w: w.pop("decoder.decoder_layers.0.bias"),
        "keys: NeMo's decoder.decoder_layers.0.bias is missing in the file",
    ),
    "a key too many": (
        lambda c, w: w.update(teacher=torch.zeros(1)),
        "keys: teacher is in the file but not NeMo's",
    ),
    "another shape": (
        lambda c, w: w.update({"encoder.encoder.2.mconv.0.conv.weight": torch.zeros(20, 16, 3)}),
        "encoder.encoder.2.mconv.0.conv.weight is of another shape ([20, 16, 3] in the file, [16, 1, 1] in "
        "NeMo's)",
    ),
    "fewer labels": (
        shorter_labels,
        "labels: the config has 10 labels, but the decoder's weights give 12 outputs (11 and the blank)",
    ),
    "labels in disorder": (
        other_labels,
        "labels: the config's labels are not those of its decoder.vocabulary",
    ),
    "the plugin's class": (
        lambda c, w: c.update(target="nemo_tutornet.models.TutorCTCModel"),
        "target: the config's target is nemo_tutornet.models.TutorCTCModel, but a student is one of NeMo's",
    ),
    "no class": (lambda c, w: c.pop("target"), "target: the config's target is nothing"),
    "a teacher's trace": (
        lambda c, w: c.update(tutor={"teacher": 1}),
        "config: the config still tells of the training: tutor",
    ),
    "a path": (lambda c, w: c["optim"].update(init="/data/x.bin"), "the training: optim.init=/data/x.bin"),
    "a path as a URL": (
        lambda c, w: c["optim"].update(init="file:///data/x.bin"),
        "the training: optim.init=file:///data/x.bin",
    ),
    "a path under a number": (lambda c, w: c.update({7: "/data/x.bin"}), "the training: 7=/data/x.bin"),
    "data": (
        lambda c, w: c["train_ds"].update(cuts_path="a.jsonl"),
        "the training: train_ds.cuts_path=a.jsonl",
    ),
    "a lost artifact": (
        lambda c, w: c.update(lexicon="nemo:abc_lexicon.txt"),
        "artifacts: the config names abc_lexicon.txt, which the archive does not hold",
    ),
    "not a number": (
        lambda c, w: w["decoder.decoder_layers.0.bias"].fill_(float("nan")),
        "finite: log-probabilities on 0.80, 1.71, 3.33 s are not finite",
    ),
    "unbuildable": (
        lambda c, w: c["encoder"].update(activation="none"),
        "builds: stock NeMo cannot build a model from the file's config",
    ),
    "a class that is not there": (
        lambda c, w: c.update(target="${nowhere}"),
        "target: the config's target is a class that its",
    ),
    "no front end": (no_front_end, "builds: stock NeMo cannot build a model from the file's config"),
    **{
        f"a rate of {rate}": (lambda c, w, rate=rate: c.update(sample_rate=rate), NO_RATE)
        for rate in ("abc", -5, [1], 10**12, "${nowhere}")
    },
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_each_damage_has_its_sentence(
    damage: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = DAMAGE[damage]
    damaged = repack(exported, tmp_path / "damaged.nemo", change)
    found = failures(damaged, monkeypatch)
    assert any(words in failure for failure in found), found
    assert len(found) == 1


def test_an_undamaged_repack_passes(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The names of paths, and none of them one.
    harmless = {"kenlm_path": "", "drop_path": 0.1, "lexicon_path": None}
    again = repack(exported, tmp_path / "again.nemo", lambda c, w: c["optim"].update(harmless))
    assert failures(again, monkeypatch, [exported.with_suffix(".onnx")]) == []


def test_a_tokenizer_that_names_its_training_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = [
        f for f in failures(build("quartznet bpe", tmp_path), monkeypatch) if f.startswith("tokenizer")
    ]
    assert (
        f"the tokenizer still contains paths of its training: {tmp_path}/tokenizer/text.txt, "
        f"{tmp_path}/tokenizer/tokenizer" in found
    )


def test_truncated_and_foreign_archives(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.nemo"
    cut.write_bytes(exported.read_bytes()[:-20000])
    assert (
        "archive: " in failures(cut, monkeypatch)[0]
        and "not a readable .nemo file" in failures(cut, monkeypatch)[0]
    )
    empty = repack(exported, tmp_path / "empty.nemo", lambda c, w: None)
    with tarfile.open(empty, "w") as archive:
        archive.add(tmp_path / "empty" / "model_config.yaml", arcname="./model_config.yaml")
    assert failures(empty, monkeypatch) == ["weights: the archive has no model_weights.ckpt"]
    (tmp_path / "empty" / "model_weights.ckpt").write_bytes(b"no pickle")
    with tarfile.open(empty, "w") as archive:
        for path in (tmp_path / "empty").iterdir():
            archive.add(path, arcname=f"./{path.name}")
    assert "weights: model_weights.ckpt cannot be read" in failures(empty, monkeypatch)[0]


def test_other_weights_than_the_source(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repack(
        exported,
        tmp_path / "other.nemo",
        lambda c, w: w["decoder.decoder_layers.0.bias"].add_(torch.randn(12)),
    )
    reference = restore_ctc(exported)
    assert failures(exported, monkeypatch, reference=reference) == []
    (found,) = failures(other, monkeypatch, reference=reference)
    assert found.startswith("log-probabilities: largest difference from the source")

    def sick(input_signal: Any, input_signal_length: Any) -> Any:
        """Not a number on one probe of three, and not on the first."""
        log_probs, *rest = reference(input_signal=input_signal, input_signal_length=input_signal_length)
        return log_probs * (
            float("nan") if input_signal.shape[1] == int(PROBE_SECONDS[1] * 16000) else 1
        ), *rest

    (found,) = failures(exported, monkeypatch, reference=sick)
    assert found.startswith("log-probabilities: largest difference from the source inf")
