# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The tutorial notebook, executed as it is, on a tenth of the embedded corpus, but for trainings of two
steps.
"""

from __future__ import annotations

import base64
import os
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "tutornet_tutorial.ipynb"
# Run before the notebook's own cells.
FEWER = """
from nemo_tutornet.commands import demo_corpus
demo_corpus.UTTERANCES.update(train=48, valid=6, test=10)
"""


@pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="the embedded corpus needs espeak-ng")
def test_every_cell_runs_and_pictures_end_it(warm_programs, tmp_path, monkeypatch):
    if warm_programs is not None:
        monkeypatch.setenv("PATH", f"{warm_programs}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "WORK": tmp_path / "out",
        "EPOCHS": 2,
        "TEACHER_EPOCHS": 1,
        "MORE": "+trainer.limit_train_batches=1",
    }.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEWER))
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    said = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in done.cells]
    assert any("hint or guided layer" in text for text in said)
    assert any("nemo.collections.asr.models.ctc_models.EncDecCTCModel" in text for text in said)
    pictures = [
        output["data"]["image/png"]
        for cell in done.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 3 and all(len(base64.b64decode(picture)) > 5000 for picture in pictures)


def test_the_notebook_that_is_kept_has_no_path_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert not re.search(r"(?<![\w.$}])/(?:home|root|tmp|work|usr)/", text)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(\.\./(docs/[^)]+)\)", NOTEBOOK.read_text()))))
def test_its_links_lead_somewhere(link: str):
    assert (Path(REPOSITORY) / link).is_file()
