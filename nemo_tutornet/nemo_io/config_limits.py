# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Limits on the numbers of a model's config, far above those of any recogniser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError

# Sections that describe data and training, not the model. Their numbers cost nothing when a model is built.
_OTHERS = ("train_ds", "validation_ds", "test_ds", "optim", "tutor", "tokenizer")
_MOST = 1_000_000  # of a number without a limit of its own; a vocabulary has up to a quarter of it
# Seconds, samples, bins and modules that NeMo allocates or loops over before a parameter exists.
_LIMITS: dict[str, float] = {
    "window_size": 10,
    "window_stride": 10,
    "sample_rate": 192_000,
    "n_fft": 1 << 17,
    "features": 4096,
    "nfilt": 4096,
    "frame_splicing": 64,
    "pad_to": 10_000,
    "pos_emb_max_len": 100_000,
    "max_sequence_length": 100_000,
    "repeat": 10_000,
    "n_layers": 10_000,
    "num_layers": 10_000,
    "pred_rnn_layers": 10_000,
    "kernel": 10_000,
    "kernel_size": 10_000,
    "conv_kernel_size": 10_000,
    "stride": 10_000,
    "dilation": 10_000,
}


def check_numbers(config: DictConfig, where: str) -> None:
    """Rejects a model's config with a number that no recogniser has, before a model is built from it.

    Args:
        config: the model's config.
        where: its file, for the message.

    Raises:
        TutorError: a number is too large. The message has its key.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError):
        content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    for section, values in content.items():
        if section in _OTHERS:
            continue
        for key, value in _numbers(values, str(section)):
            most = _LIMITS.get(key.rsplit(".", 1)[-1].split("[")[0], _MOST)
            if abs(value) > most and value not in (float("inf"), -float("inf")):
                raise TutorError(
                    f"{where} has {str(value)[:40]} for {key[-200:]}, where {most:,.15g} is the most that a "
                    "model is built with; correct the number, or take the file from its source again."
                )


def _numbers(node: Any, key: str) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a config with their keys. Those of a list have the key of the list."""
    if isinstance(node, dict):
        for child, value in node.items():
            yield from _numbers(value, f"{key}.{child}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _numbers(value, f"{key}[{index}]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield key, node
