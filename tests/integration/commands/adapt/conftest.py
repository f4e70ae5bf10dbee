# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Manifests, a teacher of 80 ms frames and its adapter, made once for the tests of `adapt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import write_manifest
from tests.integration import teacher_models
from tests.integration.commands.adapt.adapting import adapt
from tests.integration.models import matrix
from tests.integration.students import write_tokenizer


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests (`half.jsonl` lacks every second transcript), and teachers of 80 ms frames that are not
    trained.
    """
    torch.manual_seed(0)  # of the teachers' weights
    folder = tmp_path_factory.mktemp("adapt")
    train = write_manifest(folder, "train", [0.9, 1.31, 0.77, 1.5, 1.02, 0.68, 1.23, 1.11])
    write_manifest(folder, "valid", [0.93, 1.21])
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    for row in rows[::2]:
        del row["text"]
    (folder / "half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_tokenizer(folder / "same")
    signals = (torch.randn(3, 16000), torch.tensor([16000, 12000, 16000]))
    for name in ("fastconformer bpe", "transducer bpe"):
        path = folder / f"{name.replace(' ', '_')}.nemo"
        teacher_models.save_kind(matrix.TEACHERS[name], folder, path, folder / "same", signals)
    return folder


@pytest.fixture(scope="package")
def teacher(folder: Path) -> Path:
    return folder / "fastconformer_bpe.nemo"


@pytest.fixture(scope="package")
def adapted(folder: Path, teacher: Path) -> tuple[Path, dict[str, Any]]:
    """An adapter of that teacher, and what the command printed."""
    output = folder / "adapter.safetensors"
    result = adapt(folder, teacher, output, "--epochs", "100", "--learning-rate", "0.01", "--json")
    assert result.exit_code == 0, result.output
    return output, json.loads(result.stdout)
