# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The picture of posteriors: its lines, its names, and its axis of time."""

from __future__ import annotations

import pytest
import torch

from nemo_tutornet.distill.pictures import MOST_SECONDS, posterior_figure

pytest.importorskip("matplotlib")


def _posteriors(best: list[int], labels: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best), labels + 1).float()


def test_each_spike_is_named_once_at_its_time():
    student = _posteriors([3, 0, 0, 3, 1, 3, 0], 3)
    student[4] = torch.tensor([0.0, 0.6, 0.0, 0.4])
    teacher = _posteriors([3, 3, 2, 3, 3, 3, 3], 3)
    figure = posterior_figure({"teacher": teacher, "student": student}, ["a", " ", "$x_1$"], 20.0, "$a_title")
    above, below = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == ["teacher", "student"]
    named = [(text.get_text(), text.xy) for text in below.texts]
    assert named == [
        ("a", (pytest.approx(0.03), 1.0)),
        ("a", (pytest.approx(0.13), 1.0)),
        ("\u2423", (pytest.approx(0.09), pytest.approx(0.6))),
    ]
    assert [text.get_text() for text in above.texts] == ["$x_1$"]
    assert len(below.lines) == 2, "labels that do not occur are not drawn"
    figure.canvas.draw()  # no label is read as mathematics


def test_a_long_utterance_is_cut():
    figure = posterior_figure({"student": _posteriors([0, 1] * 500, 1)}, ["a"], 40.0)
    seconds = [line.get_xdata()[-1] for line in figure.axes[0].lines]
    assert seconds == [pytest.approx(MOST_SECONDS - 0.02)]


def test_an_utterance_without_frames_is_empty():
    posterior_figure({"student": torch.zeros(0, 3)}, ["a", "b"], 20.0).canvas.draw()
