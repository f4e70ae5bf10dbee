# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of a report: one HTML file that holds its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet import __version__
from nemo_tutornet.evaluation.scoring import no_faster
from nemo_tutornet.report.collect import BASELINE, QUANTILES, STUDENT, TEACHER, Report, ShownUtterance
from nemo_tutornet.report.palette import DARK, LIGHT, MARKERS, Palette
from nemo_tutornet.report.pictures import Picture
from nemo_tutornet.report.plots import in_ms
from nemo_tutornet.report.transcripts import Column
from nemo_tutornet.report.utterance_plot import LONGEST_SHOWN
from nemo_tutornet.report.verdict import percent, points

_LINE = 76  # characters of an alignment before it goes on below
_SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆"}


def render_page(report: Report, pictures: Mapping[str, Picture]) -> str:
    """Writes the page.

    Args:
        report: the numbers.
        pictures: by name, from `pictures.draw_all`.

    Returns:
        HTML that needs no other file and no network.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda rate: _unbroken(percent(rate))
    environment.filters["unbroken"] = _unbroken
    environment.filters["data_uri"] = _data_uri
    source = resources.files("nemo_tutornet.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        pictures=pictures,
        manifest=Path(report.manifest).name,
        day=date.today().isoformat(),
        version=__version__,
        tiles=_tiles(report),
        change=None if report.change is None else points(report.change),
        slow=_slow(report),
        by_change=any(shown.why.endswith("change") for shown in report.shown),
        models=[
            {
                "name": model.name,
                "result": model.evaluation,
                "file": Path(model.evaluation.model).name,
                "class": f"m{i}",
                "shape": _SHAPES[MARKERS[model.role]],
            }
            for i, model in enumerate(report.models)
        ],
        colours={palette.name: _colours(palette, report) for palette in (LIGHT, DARK)},
        curves=[picture for name, picture in pictures.items() if name.startswith("curve_")],
        shown=[
            (shown, _lines(shown.columns), pictures.get(f"utterance_{i}"), _errors(shown))
            for i, shown in enumerate(report.shown, start=1)
        ],
        has_teacher_frames=any(
            one.frames is not None and one.frames.teacher is not None for one in report.shown
        ),
        longest=LONGEST_SHOWN,
        offsets=_offsets(report),
        confusions=report.confusions(),
    )


def _unbroken(text: str) -> str:
    """Keeps a number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace(" ms", "\u00a0ms").replace(" M ", "\u00a0M ")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _colours(palette: Palette, report: Report) -> list[str]:
    return [palette.model(report.models, model) for model in report.models]


def _slow(report: Report) -> list[str]:
    """Says which models are smaller than others but no faster; a teacher counts once."""
    files = {model.evaluation.model: model for model in reversed(report.models)}
    return no_faster([replace(model.evaluation, model=model.name) for model in files.values()])


def _tiles(report: Report) -> list[dict[str, str]]:
    """The figures below the verdict."""
    student, baseline, teacher = (report.model(role) for role in (STUDENT, BASELINE, TEACHER))
    assert student is not None
    tiles = []
    named = (
        (baseline, "WER before"),
        (student, "WER after" if baseline else "WER"),
        (teacher, f"WER of the {teacher.name}" if teacher else ""),
    )
    for model, label in named:
        if model is not None:
            result = model.evaluation
            interval = f"95 %: {100 * result.wer_low:.1f} to {100 * result.wer_high:.1f}"
            index = report.models.index(model)
            tiles.append(
                {"value": percent(result.wer), "label": label, "note": interval, "class": f"m{index}"}
            )
    if teacher is not None:
        small, large = student.evaluation, teacher.evaluation
        if small.runtime == large.runtime:
            speed = large.real_time_factor / small.real_time_factor
            tiles.append(_tile(f"{speed:.2g}×", "the teacher's speed", "on this machine"))  # noqa: RUF001
        size = small.parameters / large.parameters
        share = f"{100 * size:.2g} %"
        counts = f"{small.parameters / 1e6:.3g} of {large.parameters / 1e6:.3g} M"
        tiles.append(_tile(share, "the teacher's size", counts))
    else:
        speed = 1 / student.evaluation.real_time_factor
        tiles.append(_tile(f"{speed:.0f}×", "real time", "on this machine"))  # noqa: RUF001 - times
        tiles.append(_tile(f"{student.evaluation.parameters / 1e6:.3g} M", "parameters", ""))
    return tiles


def _tile(value: str, label: str, note: str) -> dict[str, str]:
    return {"value": value, "label": label, "note": note, "class": ""}


def _lines(columns: Sequence[Column]) -> list[list[Column]]:
    """Breaks an alignment into lines that fit the page."""
    lines: list[list[Column]] = [[]]
    length = 0
    for column in columns:
        words = [column.reference, *(edit.hypothesis for edit in column.edits if edit is not None)]
        width = max(map(len, words)) + 2
        if lines[-1] and length + width > _LINE:
            lines.append([])
            length = 0
        lines[-1].append(column)
        length += width
    return lines


def _errors(shown: ShownUtterance) -> str:
    """The number of errors of each model, in words."""
    return ", ".join(f"{name} {count}" for name, count in shown.errors.items())


def _offsets(report: Report) -> dict[str, Any] | None:
    if not report.offsets:
        return None
    quantiles = np.percentile(report.offsets, QUANTILES).tolist()
    return {
        "pairs": len(report.offsets),
        "utterances": report.offsets_of,
        "quantiles": [f"{q} %: {in_ms(value)}" for q, value in zip(QUANTILES, quantiles, strict=True)],
        "median": in_ms(float(np.median(report.offsets))),
    }
