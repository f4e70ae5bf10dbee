# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report as PNG files, in a light and a dark palette."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nemo_tutornet.report.collect import ModelResult, Report
from nemo_tutornet.report.palette import DARK, LIGHT, Palette, themed
from nemo_tutornet.report.plots import (
    TITLES,
    draw_by_length,
    draw_by_speaker,
    draw_curve,
    draw_models,
    draw_offsets,
    in_ms,
    title_of,
)
from nemo_tutornet.report.transcripts import Part
from nemo_tutornet.report.utterance_plot import draw_utterance
from nemo_tutornet.report.verdict import percent

_DPI = 150
_WIDE, _WIDE_DPI = 14.0, 110  # a long utterance in fewer pixels, for the size of the page
_MOST_SPEAKERS = 20


@dataclass(frozen=True)
class Picture:
    """A picture in both palettes.

    Attributes:
        name: of its files.
        alt: what it shows, for a reader who does not see it.
        width: of the picture on the page, in CSS pixels.
        png: the PNG by palette.
    """

    name: str
    alt: str
    width: int
    png: dict[str, bytes]


def draw(name: str, alt: str, figure: Callable[[Any, Palette], Any]) -> Picture:
    """Draws a picture in both palettes.

    Args:
        name: of its files.
        alt: what it shows.
        figure: draws with pyplot and a palette, and returns the figure.

    Returns:
        The picture.
    """
    png, width = {}, 0
    for palette in (LIGHT, DARK):
        with themed(palette) as pyplot, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the font lacks a script
            drawn = figure(pyplot, palette)
            file = io.BytesIO()
            inches = drawn.get_size_inches()[0]
            drawn.savefig(file, dpi=_DPI if inches < _WIDE else _WIDE_DPI, format="png")
            width = round(inches * 100)
        png[palette.name] = _fewer_colours(file.getvalue())
    return Picture(name, alt, width, png)


def draw_all(report: Report) -> Iterator[Picture]:
    """Draws the pictures of a report, one after the other.

    Yields:
        `models`; `curve_TAG` for each term; `utterance_I`; `offsets`, `by_length` and `by_speaker`, each
        where there is something to draw.
    """
    yield draw("models", _models_alt(report), partial(draw_models, models=report.models))
    terms = report.curves.terms
    for tag in sorted(
        terms, key=lambda tag: (list(TITLES).index(tag) if tag in TITLES else len(TITLES), tag)
    ):
        curve = terms[tag]
        alt = f"{title_of(tag)}: from {curve[0][1]:.3g} to {curve[-1][1]:.3g} in {curve[-1][0] + 1} steps."
        name = "curve_" + re.sub(r"[^\w.-]+", "_", tag)  # a logger may write a tag as a path
        yield draw(name, alt, partial(draw_curve, report=report, tag=tag))
    for i, shown in enumerate(report.shown, start=1):
        alt = (
            f"Mel spectrogram, posteriors and frame weights over {shown.row.duration:.1f} s of utterance "
            f"{shown.row.name}: {shown.row.text}"
        )
        yield draw(f"utterance_{i}", alt, partial(draw_utterance, shown=shown))
    if report.offsets:
        median = float(np.median(report.offsets))
        alt = f"Histogram of {len(report.offsets)} spike offsets; their median is {in_ms(median)}."
        yield draw("offsets", alt, partial(draw_offsets, offsets=report.offsets))
    parts = report.by_length()
    if len(parts) > 1:
        alt = "WER by length: " + _in_words(parts, report.models[0])
        yield draw("by_length", alt, partial(draw_by_length, models=report.models, parts=parts))
    speakers = report.by_speaker()
    if speakers:
        shown_speakers = _with_most_words(speakers)
        alt = "WER by speaker: " + _in_words(shown_speakers, report.models[0])
        yield draw("by_speaker", alt, partial(draw_by_speaker, models=report.models, parts=shown_speakers))


def _with_most_words(parts: Sequence[Part]) -> list[Part]:
    most = sorted(parts, key=lambda part: -part.words)[:_MOST_SPEAKERS]
    return [part for part in parts if part in most]


def _in_words(parts: Sequence[Part], model: ModelResult) -> str:
    rates = ", ".join(f"{part.name} {percent(part.rates[model.name][0])}" for part in parts)
    return f"{model.name} {rates}."


def _models_alt(report: Report) -> str:
    models = "; ".join(
        f"{model.name} {percent(model.evaluation.wer)}, "
        f"{1 / max(model.evaluation.real_time_factor, 1e-9):.0f} times real time, "
        f"{model.evaluation.parameters / 1e6:.3g} M parameters"
        for model in report.models
    )
    return f"WER, speed and size: {models}."


def _fewer_colours(png: bytes) -> bytes:
    """Writes a PNG with at most 256 colours, a third of its size."""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        file, format="png", optimize=True
    )
    return file.getvalue()
