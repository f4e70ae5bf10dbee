# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A copy of a `.nemo` file has the new weights, and everything else to the byte."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch

from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.archive_copy import copy_with_weights
from nemo_tutornet.nemo_io.weights import load_tensors
from tests.conftest import refusal
from tests.unit.nemo_io.test_archive import CONFIG, write_tar

TENSORS = {"encoder.weight": torch.arange(6.0).view(2, 3), "decoder.bias": torch.ones(2)}
NEW = {"encoder.weight": torch.full((2, 3), 7.0)}


def source(folder: Path, mode: str) -> NemoArchive:
    """A file as NeMo writes it, compressed, or unpacked; with a tokenizer in a folder of its own."""
    weights = io.BytesIO()
    torch.save({**TENSORS, "encoder.half": torch.ones(2, dtype=torch.float16)}, weights)
    members = [("./model_config.yaml", CONFIG), ("./tokenizer/a.model", b"pieces")]
    members += [("./model_weights.ckpt", weights.getvalue())]
    if mode == "folder":
        for name, content in members:
            (folder / "m" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "m" / name).write_bytes(content)
        return NemoArchive(folder / "m")
    return NemoArchive(write_tar(folder / "m.nemo", *members, mode=mode))


@pytest.mark.parametrize("mode", ["w", "w:gz", "folder"])
def test_a_copy_has_the_new_weights_and_all_the_rest(mode, tmp_path):
    archive = source(tmp_path, mode)
    copy_with_weights(archive, NEW, tmp_path / "copy.nemo")
    copy = NemoArchive(tmp_path / "copy.nemo")
    assert sorted(copy.members) == sorted(archive.members)
    assert copy.read("model_config.yaml") == CONFIG and copy.read("tokenizer/a.model") == b"pieces"
    copy.unpack(tmp_path, ["model_weights.ckpt"])
    found = load_tensors(tmp_path / "model_weights.ckpt")
    assert list(found) == ["encoder.weight", "decoder.bias", "encoder.half"]
    assert torch.equal(found["encoder.weight"], NEW["encoder.weight"])
    assert torch.equal(found["decoder.bias"], TENSORS["decoder.bias"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_two_copies_are_equal_and_name_no_user(tmp_path):
    for name in ("a", "b"):
        copy_with_weights(source(tmp_path, "w"), NEW, tmp_path / f"{name}.nemo")
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()
    with tarfile.open(tmp_path / "a.nemo") as copy:
        assert {(member.uid, member.uname, member.gname) for member in copy} == {(0, "", "")}


def test_a_tensor_keeps_the_type_that_the_file_has(tmp_path):
    copy_with_weights(source(tmp_path, "w"), {"encoder.half": torch.full((2,), 0.1)}, tmp_path / "copy.nemo")
    NemoArchive(tmp_path / "copy.nemo").unpack(tmp_path, ["model_weights.ckpt"])
    found = load_tensors(tmp_path / "model_weights.ckpt")["encoder.half"]
    assert torch.equal(found, torch.full((2,), 0.1, dtype=torch.float16))


@pytest.mark.parametrize("changed", [{"encoder.other": torch.ones(2)}, {"encoder.weight": torch.ones(3, 2)}])
def test_a_tensor_that_is_not_there_is_refused(changed, tmp_path):
    message = refusal(copy_with_weights, source(tmp_path, "w"), changed, tmp_path / "copy.nemo")
    ((name, value),) = changed.items()
    assert message == f"{tmp_path / 'm.nemo'} has no tensor {name} of shape {tuple(value.shape)}."
    assert [path.name for path in tmp_path.iterdir()] == ["m.nemo"]
