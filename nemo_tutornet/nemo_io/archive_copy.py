# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Copies a `.nemo` file with other weights."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import MODEL_WEIGHTS, NemoArchive
from nemo_tutornet.nemo_io.weights import load_tensors


def copy_with_weights(archive: NemoArchive, changed: Mapping[str, Tensor], path: Path) -> None:
    """Writes a copy of a `.nemo` file with other values of some tensors.

    NeMo is not involved, so a model of any class keeps its config, its tokenizer and its other tensors to the
    byte.

    Args:
        archive: the file, or the folder that one was unpacked to.
        changed: new tensors by their names in the model, on any device. They keep the type that the file has.
        path: the file to write, in a folder with room for the unpacked file, too.

    Raises:
        TutorError: the archive has no such tensor, or one of another shape.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        folder = Path(place)
        archive.unpack(folder)
        weights = load_tensors(folder / MODEL_WEIGHTS)
        for name, value in changed.items():
            if name not in weights or weights[name].shape != value.shape:
                raise TutorError(f"{archive.path} has no tensor {name} of shape {tuple(value.shape)}.")
            weights[name] = value.detach().to("cpu", weights[name].dtype).contiguous()
        torch.save(weights, folder / MODEL_WEIGHTS)
        # A new file at each call has the same bytes: no owner and no time.
        with tarfile.open(path, "w:") as copy:
            for name in archive.members:
                member = copy.gettarinfo(folder / name, arcname=f"./{name}")
                member.uid = member.gid = member.mtime = 0
                member.uname = member.gname = ""
                member.mode = 0o644
                with (folder / name).open("rb") as content:
                    copy.addfile(member, content)
