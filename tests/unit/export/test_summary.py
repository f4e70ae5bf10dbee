# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The summary beside a student: what it says, and that a change of it or of a file shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.summary import (
    Check,
    Verification,
    check_summary,
    is_summary,
    summary_path,
    write_summary,
)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """`student.nemo` and `student.onnx` with a summary."""
    for name in ("student.nemo", "student.onnx", "run.ckpt"):
        (tmp_path / name).write_bytes(name.encode())
    path = tmp_path / "student.nemo"
    verification = Verification(
        path, [Check("keys", True, "31")], {"parameters": 3497, "vocabulary": ["a", "é"]}
    )
    write_summary(summary_path(path), verification, [tmp_path / "student.onnx"], [tmp_path / "run.ckpt"])
    return path


def checks(student: Path, onnx: Sequence[Path] = ()) -> list[Check]:
    return check_summary(summary_path(student), student, onnx)


def failed(student: Path) -> list[str]:
    return [check.found for check in checks(student) if not check.passed]


def test_what_it_says(student: Path) -> None:
    content = json.loads(summary_path(student).read_text(encoding="utf-8"))
    sha256 = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("student.nemo", "student.onnx", "run.ckpt")
    }
    assert {entry["name"]: entry["sha256"] for entry in content["files"] + [content["source"]]} == sha256
    assert content["student"] == {"parameters": 3497, "vocabulary": ["a", "é"]}
    assert content["checks"] == [{"name": "keys", "passed": True, "found": "31"}]
    assert content["versions"]["nemo_toolkit"] and content["versions"]["torch"]
    assert str(student.parent) not in summary_path(student).read_text(encoding="utf-8")


def test_untouched_it_holds(student: Path) -> None:
    assert failed(student) == []
    assert len(checks(student)) == 3  # itself, two files


def test_a_changed_summary_shows(student: Path) -> None:
    path = summary_path(student)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["checks"][0]["found"] = "32"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert failed(student) == ["student.json was changed after it was written"]


def test_a_summary_that_an_earlier_version_signed(student: Path) -> None:
    """The signature is ignored; all else is checked as ever."""
    path = summary_path(student)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["signature"] = {"algorithm": "Ed25519", "of": "digest", "value": "AAAA"}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert is_summary(path) and failed(student) == [] and len(checks(student)) == 3
    student.write_bytes(b"another")
    assert failed(student) == ["student.nemo is not the file that was verified"]
    content["checks"][0]["found"] = "32"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert failed(student)[0] == "student.json was changed after it was written"


def test_a_changed_or_missing_file_shows(student: Path) -> None:
    student.write_bytes(b"another")
    assert failed(student) == ["student.nemo is not the file that was verified"]
    student.with_suffix(".onnx").unlink()
    assert failed(student)[1] == "student.json lists student.onnx, which is not there"
    renamed = student.rename(student.with_name("other.nemo"))
    assert "does not list other.nemo" in check_summary(summary_path(student), renamed)[1].found


def test_a_graph_that_the_summary_does_not_speak_of_shows(student: Path) -> None:
    graph = student.with_name("student.int8.onnx")
    graph.write_bytes(b"anything")
    found = [check.found for check in checks(student, [graph]) if not check.passed]
    assert found == ["student.json does not list student.int8.onnx"]
    elsewhere = student.parent / "mine"
    elsewhere.mkdir()
    (elsewhere / "student.onnx").write_bytes(b"another")  # beside the student lies the right one
    found = [check.found for check in checks(student, [elsewhere / "student.onnx"]) if not check.passed]
    assert found == ["student.onnx is not the file that was verified"]


@pytest.mark.parametrize("together", [True, False])
def test_graphs_may_lie_elsewhere(student: Path, together: bool) -> None:
    folder = student.parent / "graphs"
    folder.mkdir()
    verification = Verification(student, [], {})
    others = [student.with_name(name) for name in ("student.onnx", "student.tokens.txt")]
    others[1].write_text("a 0\n", encoding="utf-8")
    write_summary(summary_path(student), verification, others)
    graph = others[0].rename(folder / others[0].name)
    if together:  # else its tokens are beside the student
        others[1].rename(folder / others[1].name)
    assert [check.passed for check in checks(student, [graph])] == [True] * 4


@pytest.fixture
def folder(student: Path) -> Path:
    """A folder for onnx-asr beside the student, which its summary lists."""
    folder = student.with_name("asr")
    folder.mkdir()
    for name in ("model.onnx", "vocab.txt", "README.md"):
        (folder / name).write_text(name, encoding="utf-8")
    write_summary(summary_path(student), Verification(student, [], {}), folders=[folder])
    return folder


def test_a_folder_is_covered_but_for_its_card(student: Path, folder: Path) -> None:
    (folder / "README.md").write_text("edited", encoding="utf-8")
    assert failed(student) == [] and len(checks(student)) == 4
    (folder / "vocab.txt").write_text("another", encoding="utf-8")
    (folder / "model.int8.onnx").write_text("surplus", encoding="utf-8")
    assert failed(student) == [
        "student.json does not list asr/model.int8.onnx, which is there",
        "asr/vocab.txt is not the file that was verified",
    ]
    elsewhere = folder.rename(student.with_name("other"))
    assert failed(student)[0] == "student.json lists asr/model.onnx, which is not there"
    found = check_summary(summary_path(student), student, folders=[elsewhere])
    assert "student.json does not list the folder other" in [check.found for check in found]


HOSTILE = ("../x", "/etc/passwd", "", "..", 3, None, "a\nb", "\ud800")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": [1]}', '{"files": 3}', "\x00", "[" * 100_000, '{"files": [], "x": "\\ud800"}']
    + [json.dumps({"files": [{"name": name, "sha256": ""}]}) for name in HOSTILE]
    + [
        json.dumps({"files": [], "folders": folders})
        for folders in (3, [1], {"..": []}, {"a": [1]}, {"a": 3})
    ]
    + [json.dumps({"files": [], "folders": {"a": [{"name": name, "sha256": ""}]}}) for name in HOSTILE],
)
def test_no_summary_at_all(student: Path, content: str) -> None:
    summary_path(student).write_text(content, encoding="utf-8")
    with pytest.raises(TutorError, match="is no summary of a student"):
        checks(student)


def test_what_failed_is_listed_alone() -> None:
    found = [Check("a", True, "1"), Check("b", False, "2"), Check("c", False, "3")]
    assert Verification(Path("student.nemo"), found, {}).failures == "b: 2; c: 3"
