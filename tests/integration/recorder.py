# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run of a student in training logged, and its parameters to compare."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

RKD = {"name": "rkd", "weights": {"rkd": 1.0}}
SKD = {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25}}


class Recorder(Callback):
    """Keeps what each step logged, and can interrupt a run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[dict[str, float]] = []
        self.decoders: list[torch.Tensor] = []
        self._stop_after = stop_after

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        log_dict = module.log_dict

        def keep(values: dict[str, Any], **kwargs: Any) -> None:
            if "train_loss" in values:
                self.steps.append(
                    {k: float(v) for k, v in values.items() if k.startswith(("train_", "tutor_"))}
                )
            log_dict(values, **kwargs)

        module.log_dict = keep

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.decoders.append(module.decoder.decoder_layers[0].weight.detach().clone())
        if self._stop_after is not None and len(self.steps) >= self._stop_after:
            raise KeyboardInterrupt


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same to the bit, wherever they are."""
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)
