# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and texts for Lightning's loggers: TensorBoard's and Weights & Biases'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def takes_figures(loggers: Sequence[Any]) -> bool:
    """Tells whether any of some loggers can show a figure.

    Args:
        loggers: Lightning's loggers.

    Returns:
        True for `TensorBoardLogger` and `WandbLogger`, and for others with the same methods.
    """
    return any(hasattr(logger, "log_image") or _has(logger, "add_figure") for logger in loggers)


def log_figure(loggers: Sequence[Any], name: str, figure: Any, step: int) -> None:
    """Shows a figure in every logger that can.

    Args:
        loggers: Lightning's loggers.
        name: under which it is shown.
        figure: matplotlib's.
        step: optimizer step.
    """
    for logger in loggers:
        if hasattr(logger, "log_image"):  # WandbLogger
            logger.log_image(name, [figure], step=step)
        elif _has(logger, "add_figure"):  # TensorBoardLogger
            logger.experiment.add_figure(name, figure, step, close=False)


def log_text(loggers: Sequence[Any], name: str, text: str, step: int) -> None:
    """Shows a text in every logger that can.

    Args:
        loggers: Lightning's loggers.
        name: under which it is shown.
        text: the text.
        step: optimizer step.
    """
    for logger in loggers:
        if hasattr(logger, "log_image"):  # WandbLogger; its `log_text` would make a table
            logger.log_metrics({name: text}, step)
        elif _has(logger, "add_text"):
            logger.experiment.add_text(name, text, step)


def _has(logger: Any, method: str) -> bool:
    return hasattr(getattr(logger, "experiment", None), method)
