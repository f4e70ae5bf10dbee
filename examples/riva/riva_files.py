# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads a student and a `.riva` archive, for `check_riva.py`.

An archive (EFF) is a gzipped tar with `manifest.yaml` and the folder `artifacts/`; it is read as such, so
that nothing in it is executed. V: labels without the blank.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG, GRAPH, MANIFEST = "model_config.yaml", "model_graph.onnx", "manifest.yaml"
REMEDY = "export the student with `nemo-tutornet export` and convert that file"
NO_CONFIG = f"it holds no readable {CONFIG}; convert the student again."


class CheckFailed(ValueError):
    """A file that cannot be checked at all. The message is one sentence: what is wrong, where, and what to
    do.
    """


@dataclass(frozen=True)
class Student:
    """A `.nemo` without its weights: the config and the other files by name."""

    config: dict[str, Any]
    files: dict[str, bytes]

    @property
    def kind(self) -> str:
        """`bpe` with a tokenizer, else `char`."""
        return "bpe" if self.config.get("tokenizer") else "char"

    @property
    def labels(self) -> list[str]:
        """The V labels in the order of the output layer."""
        return list(nested(self.config, "decoder", "vocabulary") or [])


@dataclass(frozen=True)
class Archive:
    """A `.riva`: its manifest and the artifacts by name."""

    manifest: dict[str, Any]
    files: dict[str, bytes]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file declares: name to type and shape, a free dimension being a star (`float [*, 64,
    *]`).
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: int
    ir: int


def read_student(path: Path) -> Student:
    """Reads a `.nemo`, a tar, without its weights.

    Raises:
        CheckFailed: unreadable, or not a student that NeMo saved.
    """
    files = {name.rsplit("/", 1)[-1]: content for name, content in _members(path, skip=(".ckpt", ".pt"))}
    config = mapping(
        files.get(CONFIG), f"the student {path} holds no readable {CONFIG}; give the file that was converted."
    )
    student = Student(config, files)
    if not student.labels or not isinstance(nested(config, "preprocessor", "features"), int):
        raise CheckFailed(
            f"the student {path} names no labels or no preprocessor.features in plain words; {REMEDY}."
        )
    return student


def read_archive(path: Path) -> Archive:
    """Reads a `.riva` that is not encrypted.

    Raises:
        CheckFailed: no such file, unreadable, or without a manifest.
    """
    files = dict(_members(path))
    manifest = mapping(
        files.pop(MANIFEST, None), f"it holds no readable {MANIFEST}; convert the student again."
    )
    return Archive(manifest, {name.split("/", 1)[-1]: content for name, content in files.items()})


def _members(path: Path, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                stream = (
                    archive.extractfile(member)
                    if member.isfile() and not member.name.endswith(skip)
                    else None
                )
                if stream is not None:
                    yield member.name.removeprefix("./"), stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise CheckFailed(f"{path} is not a readable archive ({reason}); make or copy it again.") from None


def mapping(content: bytes | None, otherwise: str) -> dict[str, Any]:
    """Parses a YAML file. Raises CheckFailed with the sentence `otherwise` where it holds no mapping."""
    try:
        found = yaml.safe_load(content) if content is not None else None
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise CheckFailed(otherwise)
    return found


def nested(config: Any, *keys: str) -> Any:
    """A value inside nested mappings; None where it is not there."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def read_graph(archive: Archive) -> Graph:
    """What the exported network declares.

    Raises:
        CheckFailed: no graph in the archive, or not an ONNX file.
    """
    if GRAPH not in archive.files:
        raise CheckFailed(f"it holds no {GRAPH}; nemo2riva did not export the network, read its log.")
    model = load_onnx(archive.files[GRAPH])
    if model is None or not model.graph.output:
        raise CheckFailed(f"its {GRAPH} is not a readable ONNX file; convert the student again.")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return Graph(_declared(model.graph.input), _declared(model.graph.output), opset, model.ir_version)


def _declared(values: Any) -> dict[str, str]:
    from onnx import TensorProto

    types = {value.name: value.type.tensor_type for value in values}
    dims = {
        name: [str(d.dim_value) if d.HasField("dim_value") else "*" for d in t.shape.dim]
        for name, t in types.items()
    }
    return {
        name: f"{TensorProto.DataType.Name(t.elem_type).lower()} [{', '.join(dims[name])}]"
        for name, t in types.items()
    }


def load_onnx(content: bytes) -> Any:
    """Parses an ONNX file; None where it is not one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        return None


def config_of(archive: Archive) -> dict[str, Any]:
    """The config that travels in an archive. Raises CheckFailed where there is none."""
    return mapping(archive.files.get(CONFIG), NO_CONFIG)
