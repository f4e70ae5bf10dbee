# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of posteriors over time.

Legend: `S` frames, `V` labels with the blank last.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import Tensor

# A longer utterance is cut: its labels would overlap.
MOST_SECONDS = 6.0
# A label is drawn if its posterior is higher than this somewhere, and named at its peaks above the second.
_DRAWN, _NAMED = 0.05, 0.3


def can_draw() -> bool:
    """Tells whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def posterior_figure(
    posteriors: dict[str, Tensor], labels: Sequence[str], frame_ms: float, title: str = ""
) -> Any:
    """Draws posteriors of one utterance over time: a line for each label, and the blank in grey.

    Args:
        posteriors: posteriors `[S, V]` by the name of the model; one above the other, on one axis of time.
        labels: the `V - 1` labels without the blank.
        frame_ms: milliseconds from one frame to the next.
        title: above the figure.

    Returns:
        A `matplotlib.figure.Figure`, which pyplot does not know, so nobody has to close it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.5 + 2.0 * len(posteriors)), dpi=100, layout="constrained")
    axes = figure.subplots(len(posteriors), sharex=True, squeeze=False)[:, 0]
    frames = max(1, round(1000 * MOST_SECONDS / frame_ms))
    shown: dict[int, int] = {}
    for axis, (name, values) in zip(axes, posteriors.items(), strict=True):
        values = values[:frames].float().cpu()
        seconds = [(i + 0.5) * frame_ms / 1000 for i in range(len(values))]
        axis.fill_between(seconds, values[:, -1].tolist(), color="0.9", linewidth=0, label="blank")
        drawn = (values[:, :-1] > _DRAWN).any(dim=0).nonzero()[:, 0].tolist()
        for i in drawn:
            # A label has the same colour in every part, and labels that follow each other have others.
            colour = f"C{shown.setdefault(i, len(shown)) % 10}"
            (line,) = axis.plot(seconds, values[:, i].tolist(), linewidth=1.2, color=colour)
            for peak in _peaks(values[:, i].tolist()):
                axis.annotate(
                    labels[i].replace(" ", "\u2423"),
                    (seconds[peak], float(values[peak, i])),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    color=line.get_color(),
                    fontsize=9,
                    parse_math=False,
                )
        axis.set(ylim=(0, 1.15), ylabel=name)
        axis.margins(x=0.01)
    axes[-1].set_xlabel("seconds")
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _peaks(values: Sequence[float]) -> list[int]:
    """Returns the highest index of each run of values above `_NAMED`."""
    peaks: list[int] = []
    inside = False
    for i, value in enumerate(values):
        if value <= _NAMED:
            inside = False
        elif not inside:
            peaks.append(i)
            inside = True
        elif value > values[peaks[-1]]:
            peaks[-1] = i
    return peaks
