# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The page: self-contained, in two palettes, and with what has to be said where something is missing."""

from __future__ import annotations

import html.parser
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nemo_tutornet.report.collect import OTHER, Report, show
from nemo_tutornet.report.page import render_page
from nemo_tutornet.report.palette import DARK, LIGHT
from nemo_tutornet.report.pictures import draw_all
from tests.unit.report.reports import models, report, result, rows


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pictures() -> dict:
    return {picture.name: picture for picture in draw_all(without_frames())}


def without_frames() -> Report:
    return report(shown=())


def test_each_picture_has_both_palettes(pictures: dict) -> None:
    assert set(pictures) == {"models", "curve_val_wer", "curve_train_rkd", "offsets", "by_speaker"}
    for picture in pictures.values():
        assert picture.alt
        for palette in (LIGHT, DARK):
            image = Image.open(io.BytesIO(picture.png[palette.name])).convert("RGB")
            corner = np.array(image)[0, 0].tolist()
            wanted = [int(palette.background[i : i + 2], 16) for i in (1, 3, 5)]
            assert np.abs(np.subtract(corner, wanted)).max() < 8, picture.name
            assert image.width == pytest.approx(1.5 * picture.width, abs=2)


def test_a_tag_that_is_a_path_is_a_file_name() -> None:
    curves = replace(report().curves, terms={"val_wer/clean set": [(0, 1.0), (1, 0.5)]})
    names = [picture.name for picture in draw_all(report(shown=(), curves=curves))]
    assert "curve_val_wer_clean_set" in names


def test_the_page_needs_no_other_file(pictures: dict) -> None:
    found = report()
    page = render_page(found, pictures)
    parsed = Tags(page)
    assert found.verdict in " ".join(parsed.text.split())  # split() takes a no-break space, too
    assert "default-src 'none'" in page
    named = [
        value
        for _, attributes in parsed.tags
        for key, value in attributes.items()
        if key in ("src", "srcset", "href", "data", "action", "poster")
    ]
    assert named and all(value is not None and value.startswith("data:image/png;base64,") for value in named)
    assert not re.search(r"url\(|@import|<script|https?://", page)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) == len(pictures) and all(attributes["alt"] for attributes in images)
    sources = [attributes for tag, attributes in parsed.tags if tag == "source"]
    assert [source["media"] for source in sources] == ["(prefers-color-scheme: dark)"] * len(pictures)


def test_errors_are_marked_by_kind_and_not_by_colour_alone(pictures: dict) -> None:
    found = [result("student", ("turn on on light", *(["x"] * 5)))]
    page = render_page(
        report(models=tuple(found), change=None, shown=(show(0, "worst", rows(), found),)), pictures
    )
    table = page[page.index('class="align"') :]
    assert '<span class="sub" title="substitution: the → on">on</span>' in table
    found = [result("student", ("turn the light please", *(["x"] * 5)))]
    page = render_page(
        report(models=tuple(found), change=None, shown=(show(0, "worst", rows(), found),)), pictures
    )
    assert '<span class="del" title="deletion: on">on</span>' in page
    assert '<span class="ins" title="insertion: please">please</span>' in page
    styles = page[: page.index("</style>")]
    for kind, mark in (("sub", "wavy"), ("del", "line-through"), ("ins", '"+"')):
        assert re.search(rf"\.{kind}[^}}]*{re.escape(mark)}", styles)


def test_texts_are_escaped(pictures: dict) -> None:
    hostile = [replace(row, text="<script>x</script> $a_b$", speaker="<b>") for row in rows()]
    found = [replace(models()[0], hypotheses=("<i>a & b",) * 6)]
    shown = (show(0, "worst", hostile, found),)
    page = render_page(report(models=tuple(found), rows=tuple(hostile), change=None, shown=shown), pictures)
    assert "<script" not in page and "<i>" not in page and "&lt;script&gt;" in page


def test_what_is_missing_is_said() -> None:
    alone = models()[:1]
    missing = {name: f"No {name}, because of this." for name in ("curves", "frames", "offsets", "by_speaker")}
    found = report(
        models=tuple(alone),
        change=None,
        curves=replace(report().curves, terms={}),
        offsets=None,
        rows=tuple(rows(speakers=False)),
        missing=missing,
    )
    drawn = {picture.name: picture for picture in draw_all(replace(found, shown=()))}
    assert set(drawn) == {"models"}
    page = render_page(found, drawn)
    assert all(sentence in page for sentence in missing.values()) and "A note." in page


def test_further_models_have_colours_and_shapes_of_their_own() -> None:
    several = [*models(), *(result(OTHER, ("x",) * 6, name=f"other {i}") for i in range(4))]
    colours = [LIGHT.model(several, model) for model in several]
    assert len(set(colours)) == 6 and colours[3] == colours[6]
    page = render_page(
        report(models=tuple(several), shown=()),
        {picture.name: picture for picture in draw_all(report(shown=()))},
    )
    assert page.count("◆") >= 4
