# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How far apart two recognisers spike: for every token that both best paths share, the student's time minus
the teacher's.

python benchmarks/results/spikes.py TEACHER.nemo STUDENT.nemo VALID.jsonl
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer

from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.nemo_io.layers import ENCODER
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.report.posteriors import read_posteriors, spike_offsets
from nemo_tutornet.teachers.live import LiveTeacher


def main(teacher: Path, student: Path, manifest: Path) -> None:
    """Prints quantiles over the manifest."""
    first, second = (LiveTeacher(restore_ctc(path), "fp32", ENCODER) for path in (teacher, student))
    apart: list[float] = []
    for row in read_manifest(manifest):
        apart += spike_offsets(read_posteriors(first, row), read_posteriors(second, row))
    if not apart:
        raise SystemExit("the two best paths share no token.")
    quantiles = torch.quantile(torch.tensor(apart), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    shown = ", ".join(f"{quantile:.0f}" for quantile in quantiles)
    print(f"{len(apart)} shared tokens; student minus teacher, ms, at 5, 25, 50, 75, 95 %: {shown}")


if __name__ == "__main__":
    typer.run(main)
