# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small students of every kind that NeMo has, as characters and as subwords."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.conftest import student_config


@dataclass(frozen=True)
class Student:
    """An architecture.

    Attributes:
        encoder: its config without `feat_in`, or the blocks of NeMo's ConvASREncoder.
        features: mel bins.
        frame_ms: milliseconds a frame.
        normalize: of its features.
    """

    encoder: dict[str, Any] | list[dict[str, Any]]
    features: int
    frame_ms: float
    normalize: str = "per_feature"


def _block(filters: int, kernel: int, stride: int = 1, **more: Any) -> dict[str, Any]:
    base = {
        "filters": filters,
        "repeat": 1,
        "kernel": [kernel],
        "stride": [stride],
        "dilation": [1],
        "dropout": 0.0,
    }
    return {**base, "residual": False, **more}


_QUARTZNET = [
    _block(16, 11, 2, separable=True),
    _block(16, 11, repeat=2, residual=True, separable=True),
    _block(24, 13, dilation=[2], separable=True),
    _block(20, 1),
]
_JASPER = [
    _block(16, 11, 2),
    _block(16, 11, repeat=2, residual=True, residual_dense=True),
    _block(20, 13, repeat=2, residual=True, residual_dense=True),
    _block(20, 1),
]
_CITRINET = {"separable": True, "se": True, "se_context_size": -1}
_STRIDE = {
    "stride": [2],
    "residual": True,
    "stride_last": True,
    "residual_mode": "stride_add",
    "repeat": 2,
    **_CITRINET,
}
_CITRINET_BLOCKS = [
    _block(16, 5, **_CITRINET),
    *[{**_block(16, kernel), **_STRIDE} for kernel in (11, 13, 13)],
    _block(20, 15, repeat=2, residual=True, **_CITRINET),
    _block(24, 41, **_CITRINET),
]
_CONFORMER = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_out": -1,
    "n_layers": 2,
    "d_model": 16,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "ff_expansion_factor": 2,
    "self_attention_model": "rel_pos",
    "n_heads": 2,
    "conv_kernel_size": 7,
    "dropout": 0.0,
    "dropout_pre_encoder": 0.0,
    "dropout_emb": 0.0,
    "dropout_att": 0.0,
}
_FASTCONFORMER = {**_CONFORMER, "subsampling": "dw_striding", "subsampling_factor": 8, "conv_kernel_size": 9}
_STREAMING = {
    **_FASTCONFORMER,
    "causal_downsampling": True,
    "att_context_style": "chunked_limited",
    "att_context_size": [8, 1],
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
}
STUDENTS = {
    "quartznet": Student(_QUARTZNET, 64, 20.0),
    "quartznet bpe": Student(_QUARTZNET, 64, 20.0),
    "jasper": Student(_JASPER, 64, 20.0),
    "jasper bpe": Student(_JASPER, 64, 20.0),
    "citrinet": Student(_CITRINET_BLOCKS, 80, 80.0),
    "citrinet bpe": Student(_CITRINET_BLOCKS, 80, 80.0),
    "conformer": Student(_CONFORMER, 80, 40.0),
    "fastconformer bpe": Student(_FASTCONFORMER, 80, 80.0),
    "streaming bpe": Student(_STREAMING, 80, 80.0, "NA"),
}


def build(kind: str, folder: Path, **front_end: Any) -> Path:
    """Writes `folder/run.nemo`, a freshly initialised student of a kind in `STUDENTS`, with BatchNorm
    statistics of its own; `front_end` changes its section `preprocessor`.
    """
    from nemo_tutornet import TutorCTCModel, TutorCTCModelBPE

    folder.mkdir(parents=True, exist_ok=True)
    config = of_kind(kind, student_config(folder, None))
    del config["train_ds"], config["validation_ds"]
    config["preprocessor"].update(front_end)
    config["encoder"]["feat_in"] = config["preprocessor"]["features"]
    if kind.endswith("bpe"):
        subword(config, write_tokenizer(folder / "tokenizer"))
    torch.manual_seed(0)
    model_class = TutorCTCModelBPE if kind.endswith("bpe") else TutorCTCModel
    model = model_class(OmegaConf.create({"model": config}).model)
    with torch.no_grad():
        model.train()(
            input_signal=torch.randn(4, 16000), input_signal_length=torch.tensor([16000, 16000, 8000, 16000])
        )
    model.eval().save_to(str(folder / "run.nemo"))
    return folder / "run.nemo"


def of_kind(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Makes a character QuartzNet's config one of another architecture, in place."""
    student = STUDENTS[kind]
    config["preprocessor"].update(
        features=student.features,
        window_size=0.025 if student.features == 80 else 0.02,
        normalize=student.normalize,
    )
    if isinstance(student.encoder, dict):
        config["encoder"] = {**student.encoder, "feat_in": student.features}
        config["decoder"]["feat_in"] = None  # NeMo takes the encoder's width
    else:
        config["encoder"].update(feat_in=student.features, jasper=student.encoder)
        config["decoder"]["feat_in"] = student.encoder[-1]["filters"]
    return config


def write_tokenizer(folder: Path, text: str = "aa c\nbb d\nab cd\nabc d\n" * 20) -> Path:
    """A SentencePiece model of 11 pieces, as NeMo's process_asr_text_tokenizer.py lays it out."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=11,
        model_type="bpe",
        minloglevel=2,
    )
    lines = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    pieces = [line.split("\t")[0] for line in lines][3:]
    spelled = [piece[1:] or piece if piece.startswith("\u2581") else f"##{piece}" for piece in pieces]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in spelled), encoding="utf-8")
    return folder


def subword(config: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """Makes a character model's config a subword model's, in place."""
    config.pop("labels")
    config["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
    config["decoder"].update(num_classes=-1, vocabulary=[])
    for name in ("train_ds", "validation_ds"):
        config.get(name, {}).pop("labels", None)
    return config
