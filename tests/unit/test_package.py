# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The package's front door: what importing it takes, and its names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nemo_tutornet
from nemo_tutornet.errors import TutorError


@pytest.mark.parametrize("module", ["nemo_tutornet", "nemo_tutornet.config", "nemo_tutornet.errors"])
def test_importing_takes_neither_torch_nor_nemo(module: str) -> None:
    script = (
        f"import sys, {module}; print(sorted({{'torch', 'nemo', 'lightning', 'soundfile'}} & "
        "set(sys.modules)))"
    )
    root = str(Path(nemo_tutornet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_unknown_names_of_the_package_are_refused() -> None:
    with pytest.raises(AttributeError, match="'nemo_tutornet' has no attribute 'Tutorr'"):
        _ = nemo_tutornet.Tutorr
    assert nemo_tutornet.TutorError is TutorError
    assert set(dir(nemo_tutornet)) >= {"TutorCTCModel", "Teacher", "export_student", "__version__"}


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == nemo_tutornet.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1109/TASLP.2021.3071662"
    assert [author["family-names"] for author in paper["authors"]] == ["Yoon", "Lee", "Kim", "Cho", "Kim"]
