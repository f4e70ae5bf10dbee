# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small teachers that are no plain CTC models: a hybrid with a CTC head beside its transducer, and a
transducer alone.

And one of every kind in the support matrix (`save_kind`), made to say something short without being trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import LABELS, SAMPLE_RATE, student_config, teacher_config
from tests.integration.models import matrix
from tests.integration.students import of_kind


def transducer_config(corpus: Path, labels: list[str] = LABELS) -> dict[str, Any]:
    """The Conformer of `teacher_config` with a prediction network and a joint."""
    config = teacher_config(corpus, labels)
    config.pop("decoder")
    return {
        **config,
        "model_defaults": {"enc_hidden": 24, "pred_hidden": 8, "joint_hidden": 8},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": 8, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": 8, "activation": "relu", "dropout": 0.0},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 3}},
        "loss": {"loss_name": "default"},
    }


def hybrid_config(corpus: Path, labels: list[str] = LABELS) -> dict[str, Any]:
    """That with a CTC head."""
    head = {**teacher_config(corpus, labels)["decoder"], "feat_in": 24}
    return {
        **transducer_config(corpus, labels),
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        },
    }


def save(kind: str, corpus: Path, path: Path, labels: list[str] = LABELS) -> Path:
    """Writes a freshly initialised `hybrid` or `transducer`, with BatchNorm statistics that are not the
    initial ones.
    """
    from nemo.collections.asr.models import EncDecHybridRNNTCTCModel, EncDecRNNTModel

    torch.manual_seed(0)
    model_class, config = {
        "hybrid": (EncDecHybridRNNTCTCModel, hybrid_config),
        "transducer": (EncDecRNNTModel, transducer_config),
    }[kind]
    model = model_class(OmegaConf.create(config(corpus, labels)))
    with torch.no_grad():
        signal = torch.randn(4, SAMPLE_RATE)
        model.train()(
            input_signal=signal, input_signal_length=torch.tensor([SAMPLE_RATE] * 3 + [SAMPLE_RATE // 2])
        )
    model.eval().save_to(str(path))
    return path


# --- One of every kind in the support matrix

_FAST = {"subsampling": "dw_striding", "subsampling_factor": 8, "conv_kernel_size": 9}
# What the tests' transcripts are made of: a teacher that says nothing else is understood by students of every
# vocabulary.
_SPOKEN = set("abcd")
# Few: NeMo's configs hold them several times, and OmegaConf takes its time.
FEW_LABELS = [" ", *"abcde"]


def save_kind(
    kind: matrix.Teacher, corpus: Path, path: Path, tokenizer: Path, signals: tuple[Any, Any]
) -> Path:
    """Writes a freshly initialised teacher that says one to four letters on some utterances.

    Args:
        kind: which.
        corpus: as for `teacher_config`.
        path: the `.nemo` to write.
        tokenizer: folder of a subword teacher's tokenizer.
        signals: waveforms `[B, N]` and their lengths `[B]`.
    """
    from nemo.collections.asr import models

    torch.manual_seed(0)
    model = getattr(models, matrix.CLASSES[kind.head, kind.units])(
        OmegaConf.create(_config(kind, corpus, tokenizer))
    )
    with torch.no_grad():
        model.train()(input_signal=signals[0], input_signal_length=signals[1])
    _make_it_speak(model.eval(), signals)
    model.save_to(str(path))
    return path


def _config(kind: matrix.Teacher, corpus: Path, tokenizer: Path) -> dict[str, Any]:
    if kind.encoder in ("QuartzNet", "Citrinet"):
        config = of_kind(kind.encoder.lower(), student_config(corpus, None))
        config = {
            name: config[name] for name in ("sample_rate", "preprocessor", "encoder", "decoder", "optim")
        }
        config["labels"] = config["decoder"]["vocabulary"] = FEW_LABELS
        config["decoder"]["num_classes"] = len(FEW_LABELS)
    else:
        config = {"CTC": teacher_config, "hybrid": hybrid_config, "transducer": transducer_config}[kind.head](
            corpus, FEW_LABELS
        )
    if kind.encoder == "FastConformer":
        config["encoder"].update(_FAST)
    if kind.units == "subwords":
        config.pop("labels")
        config["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
        head = config.get("aux_ctc", config)["decoder"]
        if "num_classes" in head:
            head.update(num_classes=-1, vocabulary=[])
    return config


@torch.no_grad()
def _make_it_speak(model: Any, signals: tuple[Any, Any]) -> None:
    """Silences every label but a few letters, and favours the blank just so much that what is heard is
    short.
    """
    from nemo_tutornet import LiveTeacher

    teacher = LiveTeacher(model)
    if teacher.head is None:
        head, labels = model.joint.joint_net[-1], list(model.joint.vocabulary)
        model.joint.enc.weight *= 10  # untrained, it says the same on every frame
    else:
        head, labels = teacher.head.decoder_layers[0], teacher.labels
    for row, label in enumerate(labels):
        letters = set(label.removeprefix("▁"))
        if not letters or not letters <= _SPOKEN:
            head.bias[row] = -10.0
    chatty, silent = -8.0, 16.0
    for _ in range(30):
        head.bias[-1] = (chatty + silent) / 2
        heard = teacher.targets(TrainingBatch(*signals), TargetRequest(hypotheses=True)).hypotheses
        longest = max(len(one.text.strip()) for one in heard)
        if 1 <= longest <= 4:
            return
        chatty, silent = (chatty, float(head.bias[-1])) if longest == 0 else (float(head.bias[-1]), silent)
    raise AssertionError(f"this {type(model).__name__} cannot be made to speak: {heard}")
