# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The package's front door: what importing it takes, and its names."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import venv
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import nemo_tutornet
from nemo_tutornet.errors import TutorError

ROOT = Path(nemo_tutornet.__file__).parents[1]
USER_SCRIPT = """\
from pathlib import Path
from nemo_tutornet import TutorCTCModel, TutorErrors, evaluate, export_student
TutorCTCModel(cfg={"tutor": None}, teacher="teacher.nemo")
export_student(Path("run.ckpt"), "student.nemo", sherpa=True).onnx[0].megabytes.upper()
evaluate([Path("student.nemo")], Path("test.jsonl"), batch_size=4)[0].wer.hex()
evaluate([Path("student.nemo")], 3, batch_size="4")
"""


def run_fresh(script: str) -> str:
    """Standard output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def check_types(folder: Path, script: str) -> list[tuple[int, str, str]]:
    """Line, code and message of all that mypy says about a script of a user who has installed this package.

    The user's environment holds nothing else: what comes from NeMo and torch has no type there.
    """
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    (packages,) = (folder / "venv").rglob("site-packages")
    (packages / "here.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    (folder / "user.py").write_text(script, encoding="utf-8")
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    options = [f"--python-executable={python}", f"--cache-dir={folder / 'cache'}", "--config-file="]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--no-error-summary", "--output=json", "user.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "MYPYPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(entry["file"] == "user.py" for entry in found), done.stdout
    return [(entry["line"], entry["code"], entry["message"]) for entry in found]


@pytest.mark.parametrize("module", ["nemo_tutornet", "nemo_tutornet.config", "nemo_tutornet.errors"])
def test_importing_takes_neither_torch_nor_nemo(module: str) -> None:
    script = (
        f"import sys, {module}; print(sorted({{'torch', 'nemo', 'lightning', 'soundfile'}} & "
        "set(sys.modules)))"
    )
    assert run_fresh(script) == "[]"


def test_every_public_name_is_a_class_or_a_function() -> None:
    names = [name for name in nemo_tutornet.__all__ if name != "__version__"]
    script = "import inspect\n" + "".join(
        f"from nemo_tutornet import {name}\n"
        f"print({name!r}, {name}.__name__, inspect.isclass({name}) or inspect.isfunction({name}))\n"
        for name in names
    )
    assert run_fresh(script).splitlines()[-len(names) :] == [f"{name} {name} True" for name in names]


def test_a_public_function_is_no_module_once_its_module_is_imported() -> None:
    script = (
        "import nemo_tutornet.evaluation.evaluate\n"
        "from nemo_tutornet import evaluate\n"
        "print(type(evaluate).__name__)"
    )
    assert run_fresh(script) == "function"


def test_no_submodule_bears_a_public_name() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(nemo_tutornet.__path__)}
    assert {"cli", "config", "models"} <= submodules
    assert not submodules & set(nemo_tutornet.__all__)


def test_type_checkers_see_the_public_names(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    printed = check_types(tmp_path, USER_SCRIPT)
    assert [(line, code) for line, code, _ in printed] == [
        (2, "attr-defined"),
        (3, "call-arg"),
        (4, "attr-defined"),
        (6, "arg-type"),
        (6, "arg-type"),
    ], printed
    for (*_, message), words in zip(
        printed,
        ("TutorErrors", '"teacher" for "TutorCTCModel"', '"float" has no', '"int"', '"str"'),
        strict=True,
    ):
        assert words in message, printed


def test_type_checkers_see_each_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    names = nemo_tutornet.__all__
    script = f"from nemo_tutornet import {', '.join(names)}\n"
    revealed = check_types(tmp_path, script + "".join(f"reveal_type({name})\n" for name in names))
    assert [line for line, *_ in revealed] == list(range(2, 2 + len(names)))
    for name, (_, code, message) in zip(names, revealed, strict=True):
        assert code == "misc" and message.startswith("Revealed type is") and 'Any"' not in message, (
            name,
            message,
        )


def test_the_wheel_says_that_the_package_is_typed() -> None:
    """Hatchling takes every file of the package that neither git nor the build's settings ignore."""
    assert (ROOT / "nemo_tutornet" / "py.typed").read_bytes() == b""
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["nemo_tutornet"]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for settings in (build, *build["targets"].values()):
        assert not settings.keys() & {"only-include", "ignore-vcs"}
        ignored += settings.get("exclude", [])
    assert not [pattern for pattern in ignored if fnmatch("py.typed", pattern.strip("/").split("/")[-1])]


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
