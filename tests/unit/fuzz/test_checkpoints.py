# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Hostile `.ckpt` files: each is loaded without running code, or refused in one sentence."""

from __future__ import annotations

import io
import os
import struct
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.lightning_ckpt import check_lightning_checkpoint, load_lightning_checkpoint
from tests.conftest import refusal
from tests.properties import examples
from tests.unit.fuzz.hostile_files import TEXTS, VALUES, damaged, files_in, loads

CALLS = [os.system, eval, exec, open, os.remove, getattr, print, OmegaConf.load, types.SimpleNamespace]


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def laughs(depth: int) -> list[Any]:
    """A list that refers to itself so often that a copy would fill any memory."""
    node: list[Any] = ["lol"]
    for _ in range(depth):
        node = [node] * 10
    return node


TENSORS = st.sampled_from(
    [
        torch.ones(2, 3),
        torch.ones(1).expand(10**12),
        torch.empty(0),
        torch.ones(4, dtype=torch.float16)[::2],
        torch.sparse_coo_tensor([[0]], [1.0], (10**6,)),
        torch.empty(10**12, device="meta"),
        torch.tensor(float("nan")),
    ]
)
OBJECTS = st.recursive(
    VALUES
    | TENSORS
    | st.sampled_from([OmegaConf.create({"a": "${b}", "b": "${a}"}), Path("/x"), {1, 2}])
    | st.sampled_from([3, 20]).map(laughs)  # not the lists: hypothesis would write them out
    | st.sampled_from(CALLS).map(lambda function: Call(function, "touch evil")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS, inner, max_size=3)
        | st.dictionaries(TEXTS, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=6,
)
CHECKPOINTS = st.fixed_dictionaries(
    {},
    optional={
        "state_dict": st.dictionaries(TEXTS, TENSORS, max_size=2) | OBJECTS,
        "hyper_parameters": st.just(OmegaConf.create({"cfg": {"labels": ["a"]}})) | OBJECTS,
        "tutor": OBJECTS,
        "epoch": OBJECTS,
    },
)


@st.composite
def checkpoint_files(draw: st.DrawFn) -> bytes:
    """A file of `torch.save`, in its new or old form, compressed or damaged or not."""
    out = io.BytesIO()
    new = draw(st.booleans())
    try:
        torch.save(draw(CHECKPOINTS | OBJECTS), out, _use_new_zipfile_serialization=new)
    except Exception:  # a value that cannot be saved
        torch.save({}, out, _use_new_zipfile_serialization=new)
    content = out.getvalue()
    if new and draw(st.integers(0, 2)):
        records = zipfile.ZipFile(out)
        packing = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        again = io.BytesIO()
        with zipfile.ZipFile(again, "w", packing) as copy:
            for name in records.namelist():
                record = records.read(name)
                if name.endswith("data.pkl") and draw(st.booleans()):
                    record = draw(damaged(record))
                copy.writestr(name, record)
        content = again.getvalue()
    return draw(damaged(content)) if draw(st.booleans()) else content


@examples(200)
@given(content=checkpoint_files())
def test_a_checkpoint_runs_nothing(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "run.ckpt"
    path.write_bytes(content)
    before = os.getcwd()
    os.chdir(folder)
    try:
        loaded = loads(load_lightning_checkpoint, path)
        loads(check_lightning_checkpoint, path)
    finally:
        os.chdir(before)
    assert loaded is None or {"state_dict", "hyper_parameters"} <= loaded.keys()
    assert files_in(folder).keys() == {"run.ckpt"}


def saved(path: Path, **values: Any) -> Path:
    torch.save({"state_dict": {}, "hyper_parameters": {"cfg": {}}, **values}, path)
    return path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"state_dict": {"w": torch.ones(1).expand(10**12)}}, "larger than its values"),
        ({"state_dict": {"w": torch.empty(10**12, device="meta")}}, "without values"),
        ({"state_dict": {"w": torch.sparse_coo_tensor([[0]], [1.0], (10**6,))}}, "without values"),
    ],
    ids=["repeated", "meta", "sparse"],
)
def test_a_small_checkpoint_of_large_values_is_refused(tmp_path: Path, values: Any, words: str) -> None:
    path = saved(tmp_path / "run.ckpt", **values)
    assert path.stat().st_size < 5000
    assert words in refusal(load_lightning_checkpoint, path)


def test_a_checkpoint_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", hyper_parameters={"cfg": laughs(20)})
    assert path.stat().st_size < 5000
    assert "refer to one another" in refusal(load_lightning_checkpoint, path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", extra=torch.zeros(1 << 20))
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path) as records, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in records.namelist():
            copy.writestr(name, records.read(name))
    assert bomb.stat().st_size < 10_000 and "compressed" in refusal(load_lightning_checkpoint, bomb)


def test_an_environment_that_allows_pickles_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path / "run.ckpt", extra=Call(os.system, f"touch {tmp_path / 'evil'}"))
    assert "system" in refusal(check_lightning_checkpoint, path)
    assert not (tmp_path / "evil").exists()


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "run.ckpt", state_dict={"w": torch.ones(4)})
    long = tmp_path / "long.ckpt"
    with zipfile.ZipFile(path) as records, zipfile.ZipFile(long, "w") as copy:
        for name in records.namelist():
            record = records.read(name)
            if name.endswith("data.pkl"):
                assert b"K\x04t" in record
                record = record.replace(b"K\x04t", b"J" + struct.pack("<i", 10**8) + b"t")
                record = record.replace(b"K\x04\x85", b"J" + struct.pack("<i", 10**8) + b"\x85")
            copy.writestr(name, record)
    assert str(long) in refusal(load_lightning_checkpoint, long)
