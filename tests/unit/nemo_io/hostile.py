# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Archives in which what one reader checks is not what another one restores."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

CONFIG = "model_config.yaml"


def _file(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def _special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, b""


# What is added to a sound archive; a second config comes after the first, as a guard that keeps the last one
# sees it.
HOSTILE = {
    "an absolute name": [_file("/tmp/nemo_tutornet_evil")],
    "a name that leads out": [_file("../nemo_tutornet_evil")],
    "a config behind a detour": [_file("./x/../model_config.yaml", b"target: harmless\n")],
    "a config twice": [_file("./model_config.yaml", b"target: harmless\n")],
    "a config under both its names": [_file("model_config.yaml", b"target: harmless\n")],
    "a doubled slash": [_file(".//model_config.yaml", b"target: harmless\n")],
    "a file twice": [_file("./a.txt"), _file("a.txt")],
    "a folder where a file is": [_special("./model_config.yaml", tarfile.DIRTYPE)],
    "a file inside of a file": [_file("./a"), _file("./a/b")],
    "the archive's own folder as a file": [_file(".")],
    "a symlink": [_special("./a", tarfile.SYMTYPE, "/etc/hostname")],
    "a symlink to a member": [_special("./a", tarfile.SYMTYPE, "model_config.yaml")],
    "a hard link": [_special("./a", tarfile.LNKTYPE, "./model_config.yaml")],
    "a device": [_special("./a", tarfile.CHRTYPE)],
    "a block device": [_special("./a", tarfile.BLKTYPE)],
    "a pipe": [_special("./a", tarfile.FIFOTYPE)],
}


def make_hostile(source: Path, destination: Path, kind: str) -> Path:
    """Writes a sound archive's members, and those of a kind in `HOSTILE` after them."""
    with tarfile.open(source) as old, tarfile.open(destination, "w") as new:
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
        for member, content in HOSTILE[kind]:
            new.addfile(member, io.BytesIO(content))
    return destination
