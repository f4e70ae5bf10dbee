# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The charts of a report: learning curves, models, parts of the corpus, and spike offsets."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nemo_tutornet.report.collect import BASELINE, STUDENT, ModelResult, Report
from nemo_tutornet.report.curves import Curve, LearningCurves
from nemo_tutornet.report.palette import MARKERS, Palette
from nemo_tutornet.report.transcripts import Part

_SMALL = (4.5, 3.2)  # inches, of a chart in one of two columns; wider ones are hard to read on a phone
_MIDDLE = (5.3, 3.5)
_LONGEST_OF_TWO = 22  # characters of a name in a legend of two columns
_SMOOTHED = 40  # points of a curve above which its running mean is drawn, too
TITLES = {
    "val_wer": "WER on the validation set",
    "val_loss": "CTC loss on the validation set",
    "train_loss": "Training loss, weighted sum",
    "train_ctc": "CTC loss, training",
    "train_rkd": "RKD loss, training",
    "train_rkd_r2": "R² of RKD, training",
    "train_skd": "SKD loss, training",
    "train_pseudo": "Pseudo-label loss, training",
    "train_consistency": "Consistency of two views, training",
    "training_batch_wer": "WER of training batches",
}


def title_of(tag: str) -> str:
    """Returns a title for the tag of a curve."""
    return TITLES.get(tag, tag.replace("_", " "))


def in_ms(value: float) -> str:
    """Formats an offset.

    Example:
        >>> in_ms(19.99), in_ms(-0.2)
        ('+20 ms', '0 ms')
    """
    rounded = round(value)
    return f"{rounded:+d} ms".replace("-", "\u2212") if rounded else "0 ms"


def draw_models(plt: Any, palette: Palette, models: Sequence[ModelResult]) -> Any:
    """Draws the speed of each model across, its WER up, and its parameters as the area of the mark.

    Args:
        plt: pyplot.
        palette: the colours.
        models: the models.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=_MIDDLE)
    largest = max(model.evaluation.parameters for model in models)
    speeds = [1 / max(model.evaluation.real_time_factor, 1e-9) for model in models]
    for model, speed in zip(models, speeds, strict=True):
        result = model.evaluation
        colour = palette.model(models, model)
        wer = 100 * result.wer
        low, high = 100 * result.wer_low, 100 * result.wer_high
        if not math.isnan(low):
            axes.plot([speed, speed], [low, high], color=colour, linewidth=1.4, alpha=0.7, zorder=2)
        size = _area(result.parameters, largest)
        axes.scatter(
            speed, wer, s=size, marker=MARKERS[model.role], color=colour, alpha=0.35, linewidth=0, zorder=3
        )
        name = f"{model.name}, {result.parameters / 1e6:.3g} M"
        axes.scatter(speed, wer, s=26, marker=MARKERS[model.role], color=colour, zorder=4, label=name)
    axes.set_xscale("log")
    margin = 1.6 if max(speeds) / min(speeds) > 1.2 else 4
    axes.set_xlim(min(speeds) / margin, max(speeds) * margin)
    _from_zero(axes.set_ylim, axes.get_ylim()[1], room=0.1)  # the largest mark
    _log_ticks(axes.xaxis, "{:g}×")  # noqa: RUF001 - times
    axes.set_xlabel("times real time, on this machine  (right is better)")
    axes.set_ylabel("WER, %  (low is better)")
    _name_marks(figure, models)
    return figure


def _area(parameters: int, largest: int) -> float:
    """The area of a model's mark, in square points."""
    return 40 + 900 * parameters / largest


def _from_zero(set_limits: Callable[[float, float], Any], high: float, room: float = 0.025) -> None:
    """Sets the limits of an axis that begins at 0, with room (a share of it) for a mark at 0."""
    high = high if high > 0 else 1.0
    set_limits(-room * high, high)


def draw_curve(plt: Any, palette: Palette, report: Report, tag: str) -> Any:
    """Draws the curve of one term, with the baseline's where it has one, and the stages.

    Args:
        plt: pyplot.
        palette: the colours.
        report: holds the curves.
        tag: the term.

    Returns:
        The figure.
    """
    curves = report.curves
    figure, axes = plt.subplots(figsize=_SMALL)
    scale = 100.0 if tag.endswith("wer") else 1.0
    student, baseline = palette.roles[STUDENT], palette.roles[BASELINE]
    other = report.baseline_curves.terms.get(tag) if tag.startswith("val_") else None
    if other:
        _line(axes, other, report.baseline_curves, scale, baseline, "undistilled", "--")
    _line(axes, curves.terms[tag], curves, scale, student, "distilled" if other else "", "-")
    per_epoch = curves.steps_per_epoch or 1.0
    last = max(curve[-1][0] for curve in curves.terms.values()) + 1
    axes.set_xlim(0, last / per_epoch)  # the same for every term
    values = [scale * value for curve in (curves.terms[tag], other or []) for _, value in curve]
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(positive) > 15 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("")
        _log_ticks(axes.yaxis, "{:g}")
    elif tag.endswith("wer"):
        axes.set_ylim(0, min(105, 1.05 * max(values)))
    if tag.endswith("wer"):
        axes.set_ylabel("%")
    _mark_stages(axes, palette, curves)
    axes.set_title(title_of(tag), pad=20 if curves.stages else 10)
    axes.set_xlabel("epoch" if curves.steps_per_epoch else "optimizer step")
    if other:
        axes.legend(loc="upper right")
    return figure


def _line(
    axes: Any, curve: Curve, curves: LearningCurves, scale: float, colour: str, label: str, style: str
) -> None:
    per_epoch = curves.steps_per_epoch or 1.0
    x = [(step + 1) / per_epoch for step, _ in curve]
    y = np.array([scale * value for _, value in curve])
    if len(y) <= _SMOOTHED:
        axes.plot(x, y, style, color=colour, linewidth=2, label=label or None)
        if len(y) == 1:
            axes.plot(x, y, "o", color=colour)
        return
    axes.plot(x, y, style, color=colour, linewidth=0.8, alpha=0.35)
    # The mean of a stage must not run into the next one's, whose losses are others.
    starts = [np.searchsorted([step for step, _ in curve], stage.start) for stage in curves.stages]
    bounds = np.unique([0, *starts, len(y)])
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        part = y[low:high]
        kernel = np.ones(min(len(part), max(3, len(y) // 30)))
        mean = np.convolve(part, kernel, "same") / np.convolve(np.ones(len(part)), kernel, "same")
        axes.plot(x[low:high], mean, style, color=colour, linewidth=2, label=label or None)
        label = ""


def _mark_stages(axes: Any, palette: Palette, curves: LearningCurves) -> None:
    """A dashed line where a stage begins, and its name above the axes."""
    for i, stage in enumerate(curves.stages):
        start = stage.start / (curves.steps_per_epoch or 1.0)
        if i:
            axes.axvline(start, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            stage.name,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0 if i == 0 else 3, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=palette.muted,
            va="bottom",
            ha="left",
        )


def draw_offsets(plt: Any, palette: Palette, offsets: Sequence[float]) -> Any:
    """Draws the histogram of spike offsets.

    Args:
        plt: pyplot.
        palette: the colours.
        offsets: in milliseconds.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=_MIDDLE)
    values = np.array(offsets)
    # The bins are centred on the values, which are multiples of a frame or of half a frame.
    steps = np.diff(np.unique(np.round(values, 3)))
    width = max(float(steps.min()) if len(steps) else 20.0, 5.0)
    reach = max(2 * width, float(np.percentile(np.abs(values), 99)))
    edges = np.arange(-math.ceil(reach / width) - 0.5, math.ceil(reach / width) + 1.5) * width
    shown = np.clip(values, edges[0], edges[-1])
    share = 100 / len(values)
    axes.hist(
        shown, bins=edges, weights=np.full(len(values), share), color=palette.roles[STUDENT], rwidth=0.88
    )
    axes.set_ylim(top=1.14 * axes.get_ylim()[1])  # room for the median
    median = float(np.median(values))
    axes.axvline(0, color=palette.text, linewidth=1)
    axes.axvline(median, color=palette.roles[BASELINE], linewidth=1.6, linestyle=(0, (4, 3)))
    axes.annotate(
        f"median {in_ms(median)}",
        (median, 1),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )
    axes.set_xlabel("student's spike minus the teacher's, ms")
    axes.set_ylabel("% of shared labels")
    return figure


def draw_by_length(plt: Any, palette: Palette, models: Sequence[ModelResult], parts: Sequence[Part]) -> Any:
    """Draws the WER of each model by the length of the utterance.

    Args:
        plt: pyplot.
        palette: the colours.
        models: the models.
        parts: the parts of the corpus.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=_SMALL)
    _whiskers(axes, palette, models, parts, vertical=True)
    names = [f"{part.name}\n{part.words} words" for part in parts]
    axes.set_xticks(range(len(parts)), names, fontsize=7.5)
    axes.set_ylabel("WER, %")
    axes.set_title("By length of the utterance")
    _name_marks(figure, models)
    _from_zero(axes.set_ylim, axes.get_ylim()[1])
    return figure


def draw_by_speaker(plt: Any, palette: Palette, models: Sequence[ModelResult], parts: Sequence[Part]) -> Any:
    """Draws the WER of each model by speaker.

    Args:
        plt: pyplot.
        palette: the colours.
        models: the models.
        parts: the parts of the corpus.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=(_SMALL[0], max(_SMALL[1], 1.3 + 0.3 * len(parts))))
    _whiskers(axes, palette, models, parts, vertical=False)
    axes.set_yticks(range(len(parts)), [f"{part.name} ({part.words})" for part in parts], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x")
    _from_zero(axes.set_xlim, axes.get_xlim()[1])
    axes.set_xlabel("WER, %; after the name: words")
    axes.set_title("By speaker")
    _name_marks(figure, models)
    return figure


def _whiskers(
    axes: Any, palette: Palette, models: Sequence[ModelResult], parts: Sequence[Part], vertical: bool
) -> None:
    """Marks the WER of each model in each part, with its interval; the models stand side by side."""
    lines = axes.vlines if vertical else axes.hlines
    for k, model in enumerate(models):
        where = np.arange(len(parts)) + 0.16 * (k - (len(models) - 1) / 2)
        rate, low, high = (100 * np.array([part.rates[model.name] for part in parts])).T
        colour = palette.model(models, model)
        points = (where, rate) if vertical else (rate, where)
        lines(where, low, high, color=colour, linewidth=1.2, alpha=0.55)
        axes.plot(*points, MARKERS[model.role], color=colour, markersize=5, label=model.name)


def _name_marks(figure: Any, models: Sequence[ModelResult]) -> None:
    """Names the marks below the chart, in one column if two do not fit; a name may be a path."""
    (axes,) = figure.axes
    marks, names = axes.get_legend_handles_labels()
    columns = 2 if max(len(model.name) for model in models) <= _LONGEST_OF_TWO else 1
    figure.legend(
        marks, [textwrap.fill(name, 44) for name in names], loc="outside lower center", ncols=columns
    )


def _log_ticks(axis: Any, form: str) -> None:
    """Labels 1, 2 and 5 times the powers of ten, which a narrow logarithmic axis needs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
