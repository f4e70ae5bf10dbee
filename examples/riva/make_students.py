# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small untrained students for the check of the check, with the project's own environment.

    python make_students.py models FOLDER            the students of `STUDENTS`, as training leaves them
    python make_students.py retarget STUDENT CLASS   the same file with another class, beside it

`models` are those of the tests. `retarget` makes what a careless export makes: a student whose config names a
class that Riva does not have.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOYABLE = {"features": 80, "window_size": 0.025}  # front_end=deployable
STUDENTS = {
    "char": ("quartznet", {}),
    "bpe": ("quartznet bpe", {}),
    "deployable": ("quartznet", DEPLOYABLE),
    "jasper_deployable": ("jasper", DEPLOYABLE),
    "citrinet": ("citrinet bpe", {}),
    "conformer": ("conformer", {}),
    "fastconformer": ("fastconformer bpe", {}),
}


def models(folder: Path) -> None:
    """Writes a `.nemo` for each of `STUDENTS`."""
    sys.path.insert(0, str(ROOT))
    from tests.integration.students import build

    for name, (kind, front_end) in STUDENTS.items():
        build(kind, folder / name, **front_end).rename(folder / f"{name}.nemo")


def retarget(student: Path, target: str) -> None:
    """Writes `CLASS.nemo` beside the student: the same archive, another `target`."""
    with tarfile.open(student) as source, tarfile.open(student.with_name(f"{target}.nemo"), "w") as copy:
        for member in source.getmembers():
            stream = source.extractfile(member)
            content = stream.read() if stream is not None else b""
            if member.name.endswith("model_config.yaml"):
                kept = [line for line in content.decode().splitlines() if not line.startswith("target:")]
                content = "\n".join([*kept, f"target: {target}", ""]).encode()
                member.size = len(content)
            copy.addfile(member, io.BytesIO(content) if stream is not None else None)


if __name__ == "__main__":
    if sys.argv[1] == "models":
        models(Path(sys.argv[2]))
    else:
        retarget(Path(sys.argv[2]), sys.argv[3])
