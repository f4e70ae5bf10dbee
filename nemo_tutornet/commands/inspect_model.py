# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Inspection of a recogniser: the facts and the layers that a user needs to write a `tutor:` section."""

from __future__ import annotations

import gc
import re
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils import serialization

from nemo_tutornet.distill.matching import resolve_frame_weighting
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.layers import (
    ENCODER,
    Layer,
    encode_silence,
    ends_in_layer_norm,
    hop_of,
    measure_all,
    measure_encoder,
    unshare_activations,
)
from nemo_tutornet.nemo_io.model_info import ModelInfo, describe_model
from nemo_tutornet.nemo_io.restore import locate, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher

FIRST_LABELS = 8
# The layers that are usually matched: the encoder's output, its blocks (of a ConvASREncoder and of
# Conformers), and the input of the first block.
_USUAL = re.compile(rf"{ENCODER}(\.pre_encode|\.(encoder|layers)\.\d+)?")
_BATCH = 2


@dataclass(frozen=True)
class LayerInfo:
    """A layer that `model.tutor.rkd` accepts as hint layer of a teacher or as guided layer of a student.

    Attributes:
        path: module path.
        width: number of values of a frame.
        frame_ms: milliseconds from one frame to the next.
        stride: number of feature frames per frame of the layer.
        frame_weighting: frame weighting that `auto` chooses when the layer is the hint layer.
    """

    path: str
    width: int
    frame_ms: float
    stride: float
    frame_weighting: str


@dataclass(frozen=True)
class Inspection:
    """The facts about one recogniser.

    Attributes:
        model: path of its file.
        info: its class, size, front end and labels.
        frame_ms: milliseconds from one frame of the encoder's output to the next. The posteriors have the
            same frames.
        frame_weighting: frame weighting that `auto` chooses when the model is the teacher and its hint layer
            is the default, the encoder's output.
        layers: layers that can be matched, each module before the modules inside it.
    """

    model: str
    info: ModelInfo
    frame_ms: float
    frame_weighting: str
    layers: list[LayerInfo]

    @property
    def first_labels(self) -> list[str]:
        """First few labels, in the order of the output."""
        return list(self.info.labels[:FIRST_LABELS])

    def as_dict(self) -> dict[str, Any]:
        """Converts the facts to plain values, for JSON."""
        info = self.info
        return {
            "model": self.model,
            "target": info.target,
            "parameters": info.parameters,
            "front_end": asdict(info.front_end),
            "labels": {
                "kind": info.label_kind,
                "tokenizer": info.tokenizer,
                "size": len(info.labels),
                "first": self.first_labels,
            },
            "prompt": dict(info.prompt),
            "frame_ms": self.frame_ms,
            "frame_weighting": self.frame_weighting,
            "skd": info.has_ctc_head,
            "layers": [asdict(layer) for layer in self.layers],
        }


def inspect_model(source: str | Path, every_layer: bool = False) -> Inspection:
    """Restores a recogniser on the CPU and runs its encoder on a few seconds of silence.

    Args:
        source: a `.nemo` file, or the name of a pretrained NeMo model.
        every_layer: list every module of the encoder that returns frames, not only the encoder, its blocks
            and its subsampling.

    Returns:
        The facts about the recogniser.

    Raises:
        TutorError: the file or name does not exist, the file cannot be read, or its model cannot be a
            teacher.
    """
    archive = NemoArchive(locate(str(source), "MODEL"))
    check_teacher(archive.config, archive.path)
    model = _restore(archive)
    unshare_activations(model)  # so that each activation has one path, as in a teacher
    info = describe_model(model)
    encoder = measure_encoder(model)
    modules = {
        name: module
        for name, module in model.named_modules()
        if (every_layer and name.startswith(f"{ENCODER}.")) or _USUAL.fullmatch(name)
    }
    layers = measure_all(modules, partial(encode_silence, model, batch=_BATCH), _BATCH, hop_of(model))

    def auto_weighting(layer: Layer) -> str:
        return resolve_frame_weighting("auto", info.has_ctc_head, ends_in_layer_norm(model, layer))

    return Inspection(
        model=str(archive.path),
        info=info,
        frame_ms=encoder.frame_ms,
        frame_weighting=auto_weighting(encoder),
        layers=[
            LayerInfo(
                path=layer.path,
                width=layer.width,
                frame_ms=layer.frame_ms,
                stride=round(layer.frame_ms / info.front_end.stride_ms, 3),
                frame_weighting=auto_weighting(layer),
            )
            for layer in layers
        ],
    )


def _restore(archive: NemoArchive) -> Any:
    """Calls `restore_ctc` with less time and memory, so that a small machine can inspect a large model."""
    if "nemo.collections.asr" not in sys.modules:
        _import_nemo()
    mapped = serialization.config.load.mmap
    serialization.config.load.mmap = True
    try:
        model = restore_ctc(archive)
    finally:
        serialization.config.load.mmap = mapped
    # NeMo has copied the mapped weights into the model, and a reference cycle still holds them.
    gc.collect()
    return model


def _import_nemo() -> None:
    """Imports NeMo with garbage collection off, which is faster.

    NeMo keeps the objects that its import creates. So the collector need not search them, neither now nor at
    exit.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import nemo.collections.asr.models  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()
