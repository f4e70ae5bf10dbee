# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The proof of a student that came from elsewhere, or has its place beside something else."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch

from nemo_tutornet import export_student, verify_student
from nemo_tutornet.export.verify import verify_received
from nemo_tutornet.nemo_io.restore import restore_ctc
from tests.conftest import refusal
from tests.integration.export.verification import failures
from tests.unit.nemo_io.test_checkpoints import Calls


def test_an_archive_with_more_than_a_student_fails(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody reads goes on to whoever gets the file."""
    stuffed = tmp_path / "stuffed.nemo"
    shutil.copyfile(exported, stuffed)
    with tarfile.open(stuffed, "a") as archive:
        for name in ("teacher.nemo", "evil", "notes/alice.jsonl"):
            archive.addfile(tarfile.TarInfo(name))
    words = (
        "artifacts: the archive holds evil, notes/alice.jsonl, teacher.nemo, which the config does not name"
    )
    assert failures(stuffed, monkeypatch) == [words]


def test_a_receiver_without_the_extra_is_named_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'install it with pip install "nemo_tutornet[onnx]"' in refusal(
        verify_received, exported, [exported.with_suffix(".onnx")]
    )


def test_a_manifest_beside_the_student_is_not_its_summary(exported: Path, tmp_path: Path) -> None:
    """`test.json` is what many call a manifest."""
    manifest = tmp_path / "test.json"
    manifest.write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n')
    message = refusal(partial(export_student, verify=True), exported, tmp_path / "test.nemo")
    assert message.startswith(f"{manifest} is no summary of a student, and would be replaced by one")
    assert "a.wav" in manifest.read_text() and list(tmp_path.iterdir()) == [manifest]
    export_student(exported, tmp_path / "test.nemo")


def test_malicious_weights_run_nothing(exported: Path, tmp_path: Path) -> None:
    proof, folder = tmp_path / "ran", tmp_path / "unpacked"
    with tarfile.open(exported) as archive:
        archive.extractall(folder, filter="data")
    torch.save(Calls(os.system, f"touch {proof}"), folder / "model_weights.ckpt")
    with tarfile.open(tmp_path / "evil.nemo", "w") as archive:
        for path in folder.iterdir():
            archive.add(path, arcname=f"./{path.name}")
    verification = verify_student(tmp_path / "evil.nemo")
    assert not verification.passed and not proof.exists()


def test_weights_that_differ_a_little_are_others(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = restore_ctc(exported).eval()
    assert failures(exported, monkeypatch, reference=reference) == []
    with torch.no_grad():
        reference.decoder.decoder_layers[0].bias[0] += 1e-3
    (found,) = failures(exported, monkeypatch, reference=reference)
    assert found.startswith("log-probabilities")
