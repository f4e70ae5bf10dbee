# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Audio without transcripts: CTC skips it, the teacher's losses do not, and mixed corpora train in one
run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from nemo.collections.asr.losses.ctc import CTCLoss

from nemo_tutornet.distill.untranscribed import ctc_on_transcribed_only
from tests.conftest import student_config, write_manifest

CTC_AND_SKD = [{"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}]


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    log_probs = torch.randn(len(lengths), 12, 5, dtype=torch.float64).log_softmax(-1).requires_grad_(True)
    targets = torch.randint(0, 4, (len(lengths), 3))
    return {
        "log_probs": log_probs,
        "targets": targets,
        "input_lengths": torch.tensor([12] * len(lengths)),
        "target_lengths": torch.tensor(lengths),
    }


def each(given: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.ctc_loss(
        given["log_probs"].transpose(0, 1),
        given["targets"],
        given["input_lengths"],
        given["target_lengths"],
        blank=4,
        reduction="none",
    )


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume", "sum", "mean"])
def test_ctc_counts_what_has_a_transcript(reduction):
    loss, given = CTCLoss(num_classes=4, reduction=reduction), batch([3, 0, 2, 0])
    with ctc_on_transcribed_only(loss, reduction):
        value = loss(**given)
    value.backward()
    alone = each(given).detach()[[0, 2]]
    expected = {
        "mean_batch": alone.sum() / 4,
        "mean_volume": alone.sum() / 5,
        "sum": alone.sum(),
        "mean": (alone / torch.tensor([3, 2])).sum() / 4,
    }[reduction]
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-6, atol=1e-6)
    gradient = given["log_probs"].grad
    assert not gradient[[1, 3]].any() and gradient[[0, 2]].any()


def test_a_batch_without_transcripts_gives_nothing_and_one_with_all_is_nemos():
    loss, given = CTCLoss(num_classes=4, reduction="mean_batch"), batch([0, 0])
    given["input_lengths"] = torch.tensor([12, 0])
    with ctc_on_transcribed_only(loss, "mean_batch"):
        value = loss(**given)
    value.backward()
    assert value == 0 and not given["log_probs"].grad.any()
    given = batch([3, 2])
    with ctc_on_transcribed_only(loss, "mean_batch"):
        inside = loss(**given)
    assert torch.equal(inside, loss(**given)) and not loss._forward_hooks and not loss._forward_pre_hooks


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three utterances with a transcript and three without."""
    path = write_manifest(tmp_path, "train", [0.9, 1.1, 1.3, 0.8, 1.2, 1.0])
    write_manifest(tmp_path, "valid", [0.93, 1.21])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows[::2]:
        del row["text"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("reduction", ["mean_batch", "mean_volume"])
def test_a_mixed_corpus_trains_in_one_run(mixed, teacher_file, make_student, reduction):
    seen = []

    class StudentCapture(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            logged = trainer.logged_metrics
            seen.append((int((batch[3] > 0).sum()), float(logged["train_ctc"]), float(logged["train_skd"])))

    config = {**student_config(mixed, teacher_file, CTC_AND_SKD), "ctc_reduction": reduction}
    model = make_student(config, max_epochs=4, callbacks=[StudentCapture()])
    model.trainer.fit(model)
    assert {labelled for labelled, _, _ in seen} >= {0, 1}, (
        "no batch without a transcript came; take another seed"
    )
    assert all((ctc > 0) == (labelled > 0) and 0 < skd < 1e4 for labelled, ctc, skd in seen), seen


def test_a_corpus_without_any_transcript_trains_a_student(mixed, teacher_file, make_student):
    path = mixed / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps({**row, "text": ""}) + "\n" for row in rows), encoding="utf-8")
    stages = [{"name": "rkd", "epochs": 1, "weights": {"rkd": 1.0}}, {"name": "skd", "weights": {"skd": 1.0}}]
    model = make_student(
        student_config(mixed, teacher_file, stages, skd={"frames": "symmetric"}), max_epochs=3
    )
    before = model.decoder.decoder_layers[0].weight.clone()
    model.trainer.fit(model)
    assert torch.isfinite(model.trainer.logged_metrics["train_skd"])
    assert not torch.equal(before, model.decoder.decoder_layers[0].weight)


def test_a_batch_without_transcripts_does_not_silence_the_next_call():
    loss = CTCLoss(num_classes=4, reduction="mean_batch")
    expected = loss(**batch([3, 2]))
    with ctc_on_transcribed_only(loss, "mean_batch"):
        assert loss(**batch([0, 0])) == 0
        assert torch.equal(loss(**batch([3, 2])), expected)
