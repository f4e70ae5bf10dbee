# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The picture of one utterance: mel spectrogram, posteriors of teacher and student, and frame weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.report.collect import STUDENT, TEACHER, ShownUtterance
from nemo_tutornet.report.palette import Palette
from nemo_tutornet.report.posteriors import Posteriors, UtteranceFrames, pair_spikes

LONGEST_SHOWN = 15.0  # seconds of an utterance that are drawn
_RATE, _HOP = 16000, 160
_UPRIGHT = 2  # characters of the longest label that is not slanted
_GAP = 0.22  # half the band between teacher and student, in which lines join their spikes
_SPACES = str.maketrans({" ": "␣", "\u2581": "␣"})  # a space, and how SentencePiece writes one


def draw_utterance(plt: Any, palette: Palette, shown: ShownUtterance) -> Any:
    """Draws an utterance.

    The posteriors of the teacher point up, those of the student down. A line joins the spikes of the same
    label, so a slanted line is an offset.

    Args:
        plt: pyplot.
        palette: the colours.
        shown: the utterance, with its frames.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MultipleLocator

    frames = shown.frames
    assert frames is not None
    seconds = min(shown.row.duration, LONGEST_SHOWN)
    labels = max(len(frames.student.spikes), 1)
    width = float(np.clip(max(1.7 * seconds, 0.16 * labels), 9.9, 26))
    heights = [1.5, 3.2 if frames.teacher is not None else 1.9]
    if frames.weights is not None:
        heights.append(0.9)
    figure, panels = plt.subplots(
        len(heights),
        1,
        figsize=(width, sum(heights) + 0.7),
        sharex=True,
        gridspec_kw={"height_ratios": heights},
    )
    _spectrogram(panels[0], palette, shown.row, seconds)
    _posteriors(panels[1], palette, frames)
    if frames.weights is not None:
        _weights(panels[2], palette, frames)
    panels[-1].set_xlim(0, seconds)
    panels[-1].xaxis.set_major_locator(MultipleLocator(0.5 if seconds <= 5 else 1.0))
    panels[-1].set_xlabel("time, s", loc="left")  # in sight, also where the page scrolls
    panels[-1].tick_params(axis="x", pad=8)  # below the 0 of the axis upwards
    figure.align_ylabels(panels)
    return figure


def _spectrogram(axes: Any, palette: Palette, row: Utterance, seconds: float) -> None:
    import librosa

    samples = read_samples(row, _RATE)[: int(seconds * _RATE)]
    mel = librosa.feature.melspectrogram(y=samples, sr=_RATE, n_fft=512, hop_length=_HOP, n_mels=80)
    decibels = librosa.power_to_db(mel, ref=np.max, top_db=70)
    axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap=palette.spectrogram,
        extent=(0, decibels.shape[1] * _HOP / _RATE, 0, 80),
        interpolation="bilinear",
    )
    frequencies = librosa.mel_frequencies(80, fmin=0, fmax=_RATE / 2)
    marks = (500, 1000, 2000, 4000)
    axes.set_yticks([float(np.interp(hz, frequencies, np.arange(80))) for hz in marks])
    axes.set_yticklabels([f"{hz / 1000:g}" for hz in marks])
    axes.set_ylabel("mel, kHz")
    axes.grid(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _posteriors(axes: Any, palette: Palette, frames: UtteranceFrames) -> None:
    both = frames.teacher is not None
    gap = _GAP if both else 0.0
    models = [one for one in (frames.teacher, frames.student) if one is not None]
    longest = max((len(spike.label) for one in models for spike in one.spikes), default=0)
    top = gap + 1.46 if longest <= _UPRIGHT else gap + min(1.12 + 0.085 * longest, 2.0)
    if frames.teacher is not None:
        _half(axes, palette, frames.teacher, palette.roles[TEACHER], up=True, gap=gap, name="teacher")
        _half(axes, palette, frames.student, palette.roles[STUDENT], up=False, gap=gap, name="student")
        same = set(frames.teacher.labels) == set(frames.student.labels)
        for early, late in pair_spikes(frames.teacher, frames.student) if same else []:
            axes.plot(
                [early.time, late.time],
                [gap, -gap],
                color=palette.muted,
                linewidth=1.1,
                solid_capstyle="round",
            )
        limits = [-top, top]
    else:
        _half(axes, palette, frames.student, palette.roles[STUDENT], up=True, gap=gap, name="student")
        limits = [-0.05, top]
    axes.set_ylim(*limits)
    ticks = [(gap + value, value) for value in (0.0, 0.5, 1.0)]
    if both:
        ticks = [(-where, value) for where, value in reversed(ticks)] + ticks
    axes.set_yticks([where for where, _ in ticks], [f"{value:g}" for _, value in ticks])
    axes.set_ylabel("posterior")
    axes.grid(axis="y", linewidth=0.5)


def _half(
    axes: Any, palette: Palette, posteriors: Posteriors, colour: str, up: bool, gap: float, name: str
) -> None:
    """Draws one model's posteriors, as steps of a frame, upwards or downwards from the gap."""
    sign = 1 if up else -1
    probabilities, frame = posteriors.probabilities, posteriors.frame
    edges = np.arange(len(probabilities) + 1) * frame
    drawn = sorted({posteriors.labels.index(spike.label) for spike in posteriors.spikes})
    for label in drawn:
        value = np.append(probabilities[:, label], probabilities[-1:, label])
        axes.fill_between(
            edges, sign * gap, sign * (gap + value), step="post", color=colour, alpha=0.55, linewidth=0
        )
    blank = np.append(probabilities[:, -1], probabilities[-1:, -1])
    axes.plot(
        edges, sign * (gap + blank), drawstyle="steps-post", color=palette.muted, linewidth=0.7, alpha=0.8
    )
    slanted = any(len(spike.label) > _UPRIGHT for spike in posteriors.spikes)
    # Labels that would overlap are written in two rows.
    nearest = 0.11 * len(probabilities) * frame / axes.figure.get_size_inches()[0]
    last, raised = -math.inf, False
    for spike in posteriors.spikes:
        raised = spike.time - last < nearest and not raised
        last = spike.time
        axes.text(
            spike.time,
            sign * (gap + (1.19 if raised else 1.06)),
            spike.label.translate(_SPACES),
            ha="left" if slanted else "center",
            va="bottom" if up else "top",
            rotation=45 * sign if slanted else 0,
            rotation_mode="anchor",
            fontsize=8.5,
            color=colour,
            clip_on=True,
            fontweight="bold",
        )
    if gap:  # the band between both halves, of which the beginning is free
        axes.annotate(
            f"{name} {'↑' if up else '↓'}",
            (0, sign * gap / 2),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            fontweight="bold",
        )


def _weights(axes: Any, palette: Palette, frames: UtteranceFrames) -> None:
    weights = frames.weights
    assert weights is not None
    edges = np.arange(len(weights.values) + 1) * weights.frame
    value = np.append(weights.values, weights.values[-1:])
    axes.fill_between(edges, 0, value, step="post", color=palette.roles[TEACHER], alpha=0.5, linewidth=0)
    axes.axhline(1, color=palette.muted, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"RKD weight\n({weights.kind})")
