# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The summary file beside an exported student: its files, its facts, and the checks that were made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import atomic_write, read_regular_file, sha256_of

FORMAT = "nemo_tutornet student summary, version 1"
_MOST_BYTES = 16 << 20
_EDITED = ".md"  # a model card in a folder, which its owner may edit
_PACKAGES = ("nemo_tutornet", "nemo_toolkit", "torch", "lightning", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: what was checked.
        passed: whether the check passed.
        found: the value that was found, or a description of the fault.
    """

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Verification:
    """Results of the verification of a student.

    Attributes:
        file: the `.nemo` file.
        checks: the checks in the order in which they ran. A check that could not run because an earlier one
            failed is left out.
        facts: class, labels or tokenizer, milliseconds per frame, number of parameters, sample rate. Empty if
            the student could not be restored.
    """

    file: Path
    checks: list[Check]
    facts: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """Description of the faults, one clause for each failed check."""
        return "; ".join(f"{check.name}: {check.found}" for check in self.checks if not check.passed)


def summary_path(student: Path) -> Path:
    """Returns the path of a student's summary: `student.json` beside `student.nemo`."""
    return student.with_suffix(".json")


def is_summary(path: Path) -> bool:
    """Checks whether `write_summary` wrote a file, even if the file was changed afterwards."""
    try:
        content = json.loads(read_regular_file(path, _MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def write_summary(
    destination: Path,
    verification: Verification,
    others: Sequence[Path] = (),
    sources: Sequence[Path] = (),
    folders: Sequence[Path] = (),
) -> None:
    """Writes the summary of a verified student.

    The summary holds a sha256 of each file and a digest of itself, so that a change of a file or of the
    summary can be detected.

    Args:
        destination: the JSON file to write.
        verification: the verification of the student.
        others: other files of the student (ONNX graphs, tokens). The summary holds their names without their
            folders.
        sources: the checkpoint that the student was exported from; several if their weights were averaged.
        folders: folders of the student's, for onnx-asr. The summary holds the files of each.
    """
    found = [_file(source) for source in sources]
    content: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": [_file(path) for path in (verification.file, *others)],
        "source": found[0] if len(found) == 1 else None,
        **({"averaged": found} if len(found) > 1 else {}),
        "student": verification.facts,
        "checks": [asdict(check) for check in verification.checks],
        "versions": _versions(),
    }
    if folders:
        content["folders"] = {
            folder.name: [_file(path) for path in sorted(folder.iterdir()) if path.suffix != _EDITED]
            for folder in folders
        }
    content["digest"] = _digest(content)
    with atomic_write(destination) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_summary(
    path: Path, student: Path, onnx: Sequence[Path] = (), folders: Sequence[Path] = ()
) -> list[Check]:
    """Compares a summary with the files that were received with it.

    Args:
        path: the JSON file. It is not trusted, and neither are the other files.
        student: the `.nemo` file, which the summary must list.
        onnx: ONNX graphs, which the summary must list. Any other file that it lists is searched for beside
            the student and these graphs.
        folders: folders of the student's, which the summary must list. Any other that it lists is searched
            for beside the student.

    Returns:
        A check of the summary's digest, then one check of each file's sha256.

    Raises:
        TutorError: the summary cannot be read.
    """
    try:
        content = json.loads(read_regular_file(path, _MOST_BYTES).decode("utf-8"))
        files = {_plain_name(entry["name"]): entry["sha256"] for entry in content["files"]}
        listed = {
            _plain_name(name): {_plain_name(entry["name"]): entry["sha256"] for entry in entries}
            for name, entries in content.get("folders", {}).items()
        }
        # Earlier versions could add a signature, which the digest does not cover.
        covered = {key: value for key, value in content.items() if key not in ("digest", "signature")}
        whole = content.get("digest") == _digest(covered)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TutorError(
            f"{path} is no summary of a student ({str(error)[:200]}); verify with the one that export wrote."
        ) from None
    checks = [
        Check(
            "summary",
            whole,
            f"{path.name} {'is as it was written' if whole else 'was changed after it was written'}",
        )
    ]
    given = (student, *onnx)
    others = set(files) - {file.name for file in given}
    for file in (*given, *(_beside(given, name) for name in files if name in others)):
        checks.append(_same_file(file, files.get(file.name), path.name))
    places = {folder.resolve().name: folder for folder in folders}
    for name in {**places, **listed}:
        folder = places.get(name, student.with_name(name))
        checks += _same_folder(folder, name, listed.get(name), path.name)
    return checks


def _same_folder(folder: Path, name: str, files: dict[str, Any] | None, summary: str) -> list[Check]:
    """Compares the files of a folder with those that were verified, which must be all that a client reads."""
    if files is None:
        return [Check("sha256", False, f"{summary} does not list the folder {name}")]
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    surplus = sorted(file for file in found - set(files) if not file.endswith(_EDITED))
    checks = [
        Check("sha256", False, f"{summary} does not list {name}/{file}, which is there") for file in surplus
    ]
    for file, sha256 in files.items():
        checks.append(_same_file(folder / file, sha256, summary, f"{name}/{file}"))
    return checks


def _plain_name(name: Any) -> str:
    """Returns the name if it is a plain file name, which cannot refer to another folder.

    Raises:
        ValueError: it is not a plain file name.
    """
    if not isinstance(name, str) or name in ("", "..") or name != Path(name).name or not name.isprintable():
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _beside(given: Iterable[Path], name: str) -> Path:
    """Returns the path of a file with this name, beside the first of the given files where it exists."""
    places = [file.with_name(name) for file in given]
    return next((place for place in places if place.is_file()), places[0])


def _same_file(file: Path, sha256: Any, summary: str, name: str | None = None) -> Check:
    name = name or file.name
    if sha256 is None:
        return Check("sha256", False, f"{summary} does not list {name}")
    if not file.is_file():
        return Check("sha256", False, f"{summary} lists {name}, which is not there")
    same = sha256_of(file) == sha256
    return Check("sha256", same, f"{name} {'is' if same else 'is not'} the file that was verified")


def _file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional package
    return versions


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
