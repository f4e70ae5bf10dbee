# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Graphs with `length` ignore padding: a batch of unequal lengths equals the single utterances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nemo_tutornet.export.onnx_export import graph_with_length, write_onnx
from nemo_tutornet.export.onnx_length import pads_safely
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.integration.students import STUDENTS, build

FRAMES = (160, 161, 97, 40, 7, 2, 1)
KINDS = [kind for kind in STUDENTS if not kind.endswith("bpe") or "conformer" in kind or "stream" in kind]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_counts(kind: str, tmp_path: Path) -> None:
    """Neither a batch's padding, whatever is in it, nor the frame too many that a client feeds."""
    file = build(kind, tmp_path)
    model: Any = restore_ctc(file).eval()
    session = onnxruntime.InferenceSession(
        graph_with_length(restore_ctc(file), file).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(features: np.ndarray, lengths: list[int]) -> np.ndarray:
        feed = {"audio_signal": features, "length": np.array(lengths, np.int64)}
        return session.run(["logprobs"], feed)[0]

    torch.manual_seed(0)
    utterances = [torch.randn(1, STUDENTS[kind].features, frames) for frames in FRAMES]
    if STUDENTS[kind].normalize == "per_feature":
        utterances[-1].fill_(float("nan"))  # a client divides by the deviation of a single frame, NeMo has 0
    expected = []
    for utterance in utterances:
        with torch.no_grad():
            log_probs, lengths, _ = model(
                processed_signal=utterance.nan_to_num(),
                processed_signal_length=torch.tensor([utterance.shape[2]]),
            )
        expected.append(log_probs[0, : int(lengths[0])].numpy())
    for extra in (0, 1, 33):
        batch = np.full((len(FRAMES), STUDENTS[kind].features, max(FRAMES) + extra), np.nan, np.float32)
        for row, utterance in zip(batch, utterances, strict=True):
            row[:, : utterance.shape[2]] = utterance[0]
        together = run(batch, list(FRAMES))
        for i, log_probs in enumerate(expected):
            alone = run(batch[i : i + 1, :, : FRAMES[i] + extra], [FRAMES[i]])[0]
            for found in (together[i], alone):
                assert np.abs(found[: len(log_probs)] - log_probs).max() <= 1e-4, (extra, FRAMES[i])


def test_graphs_with_length_promise_it(tmp_path: Path) -> None:
    """The promise is checked by `--verify`, which an older graph with `length` does not make."""
    for kind, promised in (("quartznet", {"sherpa"}), ("citrinet", {"", "sherpa"})):
        write_onnx(build(kind, tmp_path / kind), tmp_path / kind / "student.onnx", sherpa=True)
        for part in ("", "sherpa"):
            graph = onnx.load(tmp_path / kind / f"student.{part + '.' if part else ''}onnx")
            entries = {entry.key: entry.value for entry in graph.metadata_props}
            assert (entries.get("padding") == "ignored") == (part in promised)
            assert ("length" in [item.name for item in graph.graph.input]) == (part in promised)


def test_what_reads_padding_inside_nemo_is_known(tmp_path: Path) -> None:
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    from tests.conftest import student_config

    config = student_config(tmp_path, None)
    del config["train_ds"], config["validation_ds"]
    assert pads_safely(EncDecCTCModel(OmegaConf.create(config)))
    config["encoder"]["conv_mask"] = False
    assert not pads_safely(EncDecCTCModel(OmegaConf.create(config)))
    config["encoder"].update(conv_mask=True, normalization_mode="layer")
    assert not pads_safely(EncDecCTCModel(OmegaConf.create(config)))
