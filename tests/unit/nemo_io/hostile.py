# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Archives in which what one reader checks is not what another one restores."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

CONFIG = "model_config.yaml"


def _file(name: str, content: bytes = b"x", **pax: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.pax_headers = pax
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
    "a sparse file": [_special("./a", tarfile.GNUTYPE_SPARSE)],
    "a sparse file in a newer form": [_file("./a", **{"GNU.sparse.map": "0,1", "GNU.sparse.size": "99"})],
    "a member of a type that nobody knows": [_special("./a", b"Z")],
    "a name that a header replaces": [_file("./a", b"target: harmless\n", path="./x/../model_config.yaml")],
    "a config that a header renames": [_file("./a", b"target: harmless\n", path="model_config.yaml")],
    "a name in other letters": [_file("./Model_Config.YAML", b"target: harmless\n")],
    "an accent in two spellings": [_file("./h\u00e9.txt"), _file("./he\u0301.txt")],
    "a name with a backslash": [_file("x\\..\\model_config.yaml")],
    "a name with a line end": [_file("./a\nb")],
    "a name that is too long": [_file("./" + "a" * 300)],
}


def make_hostile(source: Path, destination: Path, kind: str) -> Path:
    """Writes a sound archive's members, and those of a kind in `HOSTILE` after them."""
    with tarfile.open(source) as old, tarfile.open(destination, "w") as new:
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
        for member, content in HOSTILE[kind]:
            new.addfile(member, io.BytesIO(content))
    return destination
