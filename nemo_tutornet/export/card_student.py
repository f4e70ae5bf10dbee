# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model card says of a student, read from the model and the names of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Student:
    """What a card says of the student and its files; names without folders.

    Attributes:
        file: the `.nemo` file.
        source: the file that it was exported from, which may have been evaluated in its place; None for none.
        class_name: its NeMo class, without the module.
        parameters: number of parameters.
        labels: number of labels without the blank.
        label_kind: `characters` or `subwords`.
        sample_rate: samples per second.
        mel_bins: number of mel bins.
        window_ms: milliseconds of a window of the front end.
        hop: samples from one frame of the front end to the next.
        subsampling_factor: frames of the front end per frame of the network.
        weights_sha256: checksum of its weights, by which its evaluations are found.
        onnx: the graphs for ONNX Runtime.
        sherpa: the graph for sherpa-onnx; None for none.
        onnx_asr: the folder for onnx-asr; None for none.
    """

    file: str
    source: str | None
    class_name: str
    parameters: int
    labels: int
    label_kind: str
    sample_rate: int
    mel_bins: int | None
    window_ms: float
    hop: int
    subsampling_factor: int
    weights_sha256: str
    onnx: Sequence[str] = ()
    sherpa: str | None = None
    onnx_asr: str | None = None

    @property
    def name(self) -> str:
        """The name of the `.nemo` file without its suffix."""
        return self.file.removesuffix(".nemo")


def describe_student(
    model: Any,
    file: Path,
    source: Path | None = None,
    onnx: Sequence[Path] = (),
    onnx_asr: Path | None = None,
) -> Student:
    """Collects what a card says of a student.

    Args:
        model: the student in eval mode.
        file: its `.nemo` file.
        source: the file that it was exported from.
        onnx: its graphs, those for sherpa-onnx included.
        onnx_asr: its folder for onnx-asr.
    """
    from nemo_tutornet.nemo_io.layers import measure_encoder
    from nemo_tutornet.nemo_io.model_info import describe_model
    from nemo_tutornet.nemo_io.weights import weights_sha256

    info = describe_model(model)
    front_end = info.front_end
    names = [path.name for path in onnx]
    return Student(
        file=file.name,
        source=None if source is None else source.name,
        class_name=info.target.rsplit(".", 1)[-1],
        parameters=info.parameters,
        labels=len(info.labels),
        label_kind=info.label_kind,
        sample_rate=front_end.sample_rate,
        mel_bins=front_end.mel_bins,
        window_ms=front_end.window_ms,
        hop=round(front_end.stride_ms * front_end.sample_rate / 1000),
        subsampling_factor=round(measure_encoder(model).frame_ms / front_end.stride_ms),
        weights_sha256=weights_sha256(model),
        onnx=[name for name in names if not name.endswith((".sherpa.onnx", ".streaming.onnx"))],
        sherpa=next((name for name in names if name.endswith(".sherpa.onnx")), None),
        onnx_asr=None if onnx_asr is None else onnx_asr.resolve().name,
    )
