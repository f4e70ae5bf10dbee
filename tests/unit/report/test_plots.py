# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The pictures are legible: texts do not overlap, and no name is cut off."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.text import Text

from nemo_tutornet.report.palette import LIGHT, themed
from nemo_tutornet.report.plots import draw_by_length, draw_by_speaker, draw_models
from nemo_tutornet.report.posteriors import FrameWeights, Posteriors, Spike, UtteranceFrames
from nemo_tutornet.report.transcripts import Part
from nemo_tutornet.report.utterance_plot import draw_utterance
from tests.unit.report.reports import models, report


def overlapping(figure) -> list[tuple[str, str]]:
    """The pairs of texts of a figure that lie on each other."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)]


def test_the_texts_of_an_utterance_do_not_overlap(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    probabilities = np.tile([0.1, 0.1, 0.8], (100, 1))
    frames = UtteranceFrames(
        student=Posteriors(("a", "b"), probabilities, 0.02, (Spike("a", 0.5), Spike("b", 1.2))),
        teacher=Posteriors(("a", "b"), probabilities, 0.02, (Spike("a", 0.52), Spike("b", 1.1))),
        weights=FrameWeights("nonblank", np.full(100, 1.0), 0.02),
    )
    (shown,) = report().shown
    shown = replace(shown, row=replace(shown.row, audio=audio, duration=2.0), frames=frames)
    with themed(LIGHT) as pyplot:
        assert overlapping(draw_utterance(pyplot, LIGHT, shown)) == []


@pytest.mark.parametrize("characters", [17, 22, 80])
def test_names_are_whole_and_apart(characters: int) -> None:
    several = [
        replace(model, name=f"{i} {'unfamiliar_' * 8}"[:characters]) for i, model in enumerate(models())
    ]
    rates = {model.name: (0.1, 0.05, 0.2) for model in several}
    parts = [Part(f"speaker {i}", 5, 10, rates) for i in range(3)]
    with themed(LIGHT) as pyplot:
        for figure in (
            draw_models(pyplot, LIGHT, several),
            draw_by_length(pyplot, LIGHT, several, parts),
            draw_by_speaker(pyplot, LIGHT, several, parts),
        ):
            assert overlapping(figure) == []
            (legend,) = figure.legends
            box, page = legend.get_window_extent(), figure.bbox
            assert len(legend.texts) == 3 and page.x0 <= box.x0 and box.x1 <= page.x1
