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

from nemo_tutornet.distill.matching import frame_weighting
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.layers import ENCODER, Layer, encode_silence, hop_of, measure_all
from nemo_tutornet.nemo_io.restore import locate, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher
from nemo_tutornet.teachers.live import Teacher

FIRST_LABELS = 8
# What people choose from: the encoder's output, its blocks (of a ConvASREncoder, of Conformers), and what
# goes into the first.
_USUAL = re.compile(rf"{ENCODER}(\.pre_encode|\.(encoder|layers)\.\d+)?")
_BATCH = 2


@dataclass(frozen=True)
class FrontEnd:
    """How audio becomes features.

    Attributes:
        sample_rate: samples per second.
        mel_bins: of its spectrogram; None where it computes something else.
        window_ms: milliseconds of audio that a feature frame sees.
        stride_ms: milliseconds from one feature frame to the next.
        normalize: NeMo's word for the normalisation, or `fixed` for a stored mean; None without one.
    """

    sample_rate: int
    mel_bins: int | None
    window_ms: float
    stride_ms: float
    normalize: str | None


@dataclass(frozen=True)
class LabelSetInfo:
    """What it writes.

    Attributes:
        kind: `characters` or `subwords`.
        tokenizer: NeMo's word for its type (`bpe` is SentencePiece); None for characters.
        size: number of labels without the blank.
        first: the first few, in the order of the output.
    """

    kind: str
    tokenizer: str | None
    size: int
    first: list[str]


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
        target: NeMo's class.
        parameters: their number.
        front_end: how audio becomes features.
        labels: what it writes.
        frame_ms: milliseconds from one frame of the encoder's output, and so of the posteriors, to the next.
        frame_weighting: what `auto` chooses if it teaches with the default hint layer, the encoder's output.
        skd: whether it can teach by SKD: it has a CTC head.
        layers: those that can be matched, from the outside in.
    """

    model: str
    target: str
    parameters: int
    front_end: FrontEnd
    labels: LabelSetInfo
    frame_ms: float
    frame_weighting: str
    skd: bool
    layers: list[LayerInfo]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


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
    teacher = Teacher(_restore(archive))
    front_end = _front_end(teacher)
    modules = {
        name: module
        for name, module in teacher.model.named_modules()
        if (every_layer and name.startswith(f"{ENCODER}.")) or _USUAL.fullmatch(name)
    }
    layers = measure_all(
        modules, partial(encode_silence, teacher.model, batch=_BATCH), _BATCH, hop_of(teacher.model)
    )
    return Inspection(
        model=str(archive.path),
        target=archive.target,
        parameters=sum(parameter.numel() for parameter in teacher.model.parameters()),
        front_end=front_end,
        labels=_labels(teacher),
        frame_ms=teacher.encoder_layer.frame_ms,
        frame_weighting=_auto_weighting(teacher, teacher.encoder_layer),
        skd=teacher.head is not None,
        layers=[
            LayerInfo(
                path=layer.path,
                width=layer.width,
                frame_ms=layer.frame_ms,
                stride=round(layer.frame_ms / front_end.stride_ms, 3),
                frame_weighting=_auto_weighting(teacher, layer),
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


def _front_end(teacher: Teacher) -> FrontEnd:
    preprocessor = teacher.model.preprocessor
    featurizer = preprocessor.featurizer
    normalize = getattr(featurizer, "normalize", None)
    return FrontEnd(
        sample_rate=teacher.sample_rate,
        mel_bins=getattr(featurizer, "nfilt", None),
        window_ms=round(1000 * preprocessor.win_length / teacher.sample_rate, 3),
        stride_ms=round(1000 * preprocessor.hop_length / teacher.sample_rate, 3),
        normalize=normalize if normalize is None or isinstance(normalize, str) else "fixed",
    )


def _labels(teacher: Teacher) -> LabelSetInfo:
    tokenizer = teacher.model.cfg.get("tokenizer")
    labels = list(teacher.model.joint.vocabulary) if teacher.head is None else teacher.labels
    return LabelSetInfo(
        kind="characters" if tokenizer is None else "subwords",
        tokenizer=None if tokenizer is None else str(tokenizer.get("type")),
        size=len(labels),
        first=labels[:FIRST_LABELS],
    )


def _auto_weighting(teacher: Teacher, layer: Layer) -> str:
    teacher.hint_layer = layer
    return frame_weighting(teacher, "auto")
