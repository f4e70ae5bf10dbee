# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a recogniser is and which of its layers can be matched: the facts that a `tutor:` section is written
from.
"""

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
# What people choose from: the encoder's output, its blocks (of a ConvASREncoder, of Conformers), and what
# goes into the first.
_USUAL = re.compile(rf"{ENCODER}(\.pre_encode|\.(encoder|layers)\.\d+)?")
_BATCH = 2


@dataclass(frozen=True)
class LayerInfo:
    """A layer that `model.tutor.rkd` takes, as hint layer of a teacher or as guided layer of a student.

    Attributes:
        path: module path.
        width: of a frame.
        frame_ms: milliseconds from one frame to the next.
        stride: feature frames to one frame of the layer.
        frame_weighting: what `auto` chooses where the layer is the hint layer.
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
        model: its file.
        info: its class, size, front end and labels.
        frame_ms: milliseconds from one frame of the encoder's output, and so of the posteriors, to the next.
        frame_weighting: what `auto` chooses if it teaches with the default hint layer, the encoder's output.
        layers: those that can be matched, from the outside in.
    """

    model: str
    info: ModelInfo
    frame_ms: float
    frame_weighting: str
    layers: list[LayerInfo]

    @property
    def first_labels(self) -> list[str]:
        """The first few labels, in the order of the output."""
        return list(self.info.labels[:FIRST_LABELS])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
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

    Raises:
        TutorError: no such file or name, unreadable, or no recogniser that can teach.
    """
    archive = NemoArchive(locate(str(source), "MODEL"))
    check_teacher(archive.config, archive.path)
    model = _restore(archive)
    unshare_activations(model)  # so that each has one path, as in a teacher
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
    """`restore_ctc` in less time and memory: to look at a large model, a small machine must do."""
    if "nemo.collections.asr" not in sys.modules:
        _import_nemo()
    mapped = serialization.config.load.mmap
    serialization.config.load.mmap = True
    try:
        model = restore_ctc(archive)
    finally:
        serialization.config.load.mmap = mapped
    gc.collect()  # the mapped weights: NeMo has copied them into the model and left them in a cycle
    return model


def _import_nemo() -> None:
    """Imports NeMo without looking for garbage in all that it makes and keeps, now or at exit: a quarter of
    the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import nemo.collections.asr.models  # noqa: F401
    finally:
        gc.freeze()
        if collects:
            gc.enable()
