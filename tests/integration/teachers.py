# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small teachers that are no plain CTC models: a hybrid with a CTC head beside its transducer, and a transducer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.conftest import LABELS, SAMPLE_RATE, teacher_config


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
        "aux_ctc": {"ctc_loss_weight": 0.3, "use_cer": False, "ctc_reduction": "mean_batch", "decoder": head,
                    "decoding": {"strategy": "greedy"}},
    }  # fmt: skip


def save(kind: str, corpus: Path, path: Path, labels: list[str] = LABELS) -> Path:
    """Writes a freshly initialised `hybrid` or `transducer`, with BatchNorm statistics that are not the initial ones."""
    from nemo.collections.asr.models import EncDecHybridRNNTCTCModel, EncDecRNNTModel

    torch.manual_seed(0)
    model_class, config = {
        "hybrid": (EncDecHybridRNNTCTCModel, hybrid_config),
        "transducer": (EncDecRNNTModel, transducer_config),
    }[kind]
    model = model_class(OmegaConf.create(config(corpus, labels)))
    with torch.no_grad():
        signal = torch.randn(4, SAMPLE_RATE)
        model.train()(input_signal=signal, input_signal_length=torch.tensor([SAMPLE_RATE] * 3 + [SAMPLE_RATE // 2]))
    model.eval().save_to(str(path))
    return path
