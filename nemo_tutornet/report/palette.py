# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The light and the dark colours of the report's pictures. The page has the same in its style sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nemo_tutornet.report.collect import BASELINE, OTHER, STUDENT, TEACHER, ModelResult


@dataclass(frozen=True)
class Palette:
    """Colours of one theme. Those of the models can be told apart with a red-green weakness (Okabe and Ito,
    2008).

    Attributes:
        name: `light` or `dark`.
        background, text, muted, grid: of the picture.
        roles: of the models by role.
        others: of the further models, in turn.
        spectrogram: matplotlib's colour map.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    roles: dict[str, str]
    others: tuple[str, ...]
    spectrogram: str

    def model(self, models: Sequence[ModelResult], model: ModelResult) -> str:
        """Returns the colour of a model."""
        if model.role != OTHER:
            return self.roles[model.role]
        others = [one.name for one in models if one.role == OTHER]
        return self.others[others.index(model.name) % len(self.others)]


LIGHT = Palette(
    "light",
    background="#ffffff",
    text="#1d2430",
    muted="#667085",
    grid="#e6e9ef",
    roles={STUDENT: "#0072b2", BASELINE: "#d55e00", TEACHER: "#007d5c"},
    others=("#9a4f83", "#8a6d00", "#5b5fc7"),
    spectrogram="bone_r",
)
DARK = Palette(
    "dark",
    background="#171b22",
    text="#e7eaf0",
    muted="#98a2b3",
    grid="#2b313c",
    roles={STUDENT: "#62b5f0", BASELINE: "#f59b57", TEACHER: "#45d0a3"},
    others=("#e59fcb", "#e8cf5a", "#a6a9ff"),
    spectrogram="magma",
)
# A shape for each role, because colour alone does not tell them apart for everyone.
MARKERS = {STUDENT: "o", BASELINE: "s", TEACHER: "^", OTHER: "D"}


@contextmanager
def themed(palette: Palette) -> Iterator[Any]:
    """Yields matplotlib's pyplot with the colours and sizes of a palette; closes every figure at the end."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    settings: Any = {
        "figure.facecolor": palette.background,
        "savefig.facecolor": palette.background,
        "axes.facecolor": palette.background,
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.muted,
        "axes.titlecolor": palette.text,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
        "text.color": palette.text,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,  # a label or a name may hold a dollar sign
        "figure.constrained_layout.use": True,
    }
    with pyplot.rc_context(settings):
        try:
            yield pyplot
        finally:
            pyplot.close("all")
