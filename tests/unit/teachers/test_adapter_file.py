# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The file of an adapter is untrusted input."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nemo_tutornet.errors import TutorError
from nemo_tutornet.teachers.adapter import OLD_KERNELS, Adapter, adapter_info
from nemo_tutornet.teachers.provenance import _adapter_to_disk
from tests.conftest import refusal
from tests.unit.teachers.adapters import INFO, head_of


def test_a_file_is_read_as_it_was_written(tmp_path):
    head = head_of()
    Adapter(head, INFO).save(tmp_path / "adapter.safetensors")
    read = Adapter.load(tmp_path / "adapter.safetensors")
    assert read.info == INFO and read.layer.path == "adapter" and read.layer.width == 5
    for name, value in head.state_dict().items():
        assert torch.equal(value, read.head.state_dict()[name])
    assert not read.head.training and not any(p.requires_grad for p in read.head.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_a_file_without_kernels_is_an_older_one_with_three_frames(tmp_path):
    head = head_of(replace(INFO, kernel=3, second_kernel=0))
    info = asdict(INFO)
    del info["kernel"], info["second_kernel"]
    rewrite(tmp_path / "adapter.safetensors", head.state_dict(), info)
    read = Adapter.load(tmp_path / "adapter.safetensors")
    assert read.info.kernel == read.head.expand.kernel_size[0] == 3 and read.head.second is None
    assert torch.equal(read.head.expand.weight, head.expand.weight)


def test_a_cache_of_an_older_adapter_says_no_kernels():
    """So it is the teacher of that cache, which may be extended."""
    old = replace(INFO, kernel=3, second_kernel=0, teacher_sha256=None)
    for info, said in ((old, set()), (INFO, {"kernel", "second_kernel"})):
        stored = _adapter_to_disk(SimpleNamespace(adapter=info, adapter_sha256="0" * 64))["info"]
        assert stored.keys() & OLD_KERNELS.keys() == said
        assert adapter_info({**stored, "labels": list(info.labels)}) == info


def rewrite(path: Path, tensors: dict[str, torch.Tensor], info: Any) -> None:
    save_file(tensors, path, metadata={"nemo_tutornet_adapter_1": json.dumps(info)})


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "abc"},
        {"labels": [1, 2, 3]},
        {"frame_ms": float("nan")},
        {"frame_ms": 10**400},
        {"frame_ms": 0},
        {"upsampling": 10**9},
        {"upsampling": 0},
        {"width": 10**12},
        {"teacher_width": -1},
        {"teacher_outputs": -1},
        {"teacher_outputs": 10**12},
        {"wer": None},
        {"kernel": 0},
        {"kernel": True},
        {"width": True},
        {"kernel": 4},
        {"kernel": 10**9 + 1},
        {"kernel": "3"},
        {"second_kernel": 2},
        {"second_kernel": 10**12 + 1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_description_that_is_none_is_refused(change, tmp_path):
    path = tmp_path / "adapter.safetensors"
    info = {**asdict(INFO), **change}
    assert adapter_info(json.loads(json.dumps(info))) is None
    rewrite(path, head_of().state_dict(), info)
    assert refusal(Adapter.load, path) == (
        f"model.tutor.teacher.adapter is {path}, which is not a file of `nemo-tutornet adapt`; make one with "
        "that command."
    )


@pytest.mark.parametrize("change", ["nan", "inf", "shape", "missing", "more", "dtype"])
def test_damaged_tensors_are_refused(change, tmp_path):
    path = tmp_path / "adapter.safetensors"
    tensors = {name: value.clone() for name, value in head_of().state_dict().items()}
    if change in ("nan", "inf"):
        tensors["norm.bias"][2] = float(change)
    elif change == "shape":
        tensors["norm.bias"] = torch.zeros(6)
    elif change == "missing":
        del tensors["norm.bias"]
    elif change == "more":
        tensors["further"] = torch.zeros(1)
    else:
        tensors["norm.bias"] = tensors["norm.bias"].double()
    rewrite(path, tensors, asdict(INFO))
    assert "whose tensors are damaged" in refusal(Adapter.load, path)


@given(st.data())
def test_no_damaged_file_ends_in_a_traceback(data):
    """Bytes of a good file are cut, changed or put in front of it: it is read as before, or refused."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        Adapter(head_of(), INFO).save(path)
        content = bytearray(path.read_bytes())
        kind = data.draw(st.sampled_from(["cut", "change", "front", "header"]))
        if kind == "cut":
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        elif kind == "front":
            content = bytearray(data.draw(st.binary(max_size=20))) + content
        elif kind == "header":
            content[:8] = struct.pack("<Q", data.draw(st.integers(0, 2**63)))
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            read = Adapter.load(path)
        except TutorError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
        else:
            assert all(value.isfinite().all() for value in read.head.state_dict().values())


def test_a_link_is_followed_and_a_folder_refused(tmp_path):
    Adapter(head_of(), INFO).save(tmp_path / "adapter.safetensors")
    (tmp_path / "link").symlink_to("adapter.safetensors")
    assert Adapter.load(tmp_path / "link").info == INFO
    assert "there is no such file" in refusal(Adapter.load, tmp_path)


def test_the_file_holds_no_more_than_it_must(tmp_path):
    Adapter(head_of(), INFO).save(tmp_path / "adapter.safetensors")
    assert set(load_file(tmp_path / "adapter.safetensors")) == {
        "teacher_decoder.weight",
        "teacher_decoder.bias",
        "expand.weight",
        "expand.bias",
        "norm.weight",
        "norm.bias",
        "second.weight",
        "second.bias",
        "second_norm.weight",
        "second_norm.bias",
        "decoder.weight",
        "decoder.bias",
    }
