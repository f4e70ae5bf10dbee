# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How far apart two recognisers spike: for every token that both best paths share, the student's time minus
the teacher's.

python benchmarks/results/spikes.py TEACHER.nemo STUDENT.nemo VALID.jsonl
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import librosa
import torch
import typer

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.nemo_io.layers import ENCODER
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest


def spikes(teacher: LiveTeacher, signal: torch.Tensor) -> list[tuple[Any, float]]:
    """Tokens of the best path and the middle of the frame in which each begins, in ms."""
    given = teacher.targets(
        TrainingBatch(signal[None], torch.tensor([len(signal)])), TargetRequest(posteriors=True)
    )
    assert given.log_probs is not None
    best = given.log_probs[0, : int(given.lengths[0])].argmax(dim=-1).tolist()
    labels, shift = teacher.labels, teacher.encoder_layer.frame_ms
    begins = [t for t, label in enumerate(best) if label != len(labels) and (t == 0 or best[t - 1] != label)]
    return [(labels[best[t]], (t + 0.5) * shift) for t in begins]


def main(teacher: Path, student: Path, manifest: Path) -> None:
    """Prints quantiles over the manifest."""
    models = [LiveTeacher(restore_ctc(path), "fp32", ENCODER) for path in (teacher, student)]
    apart: list[float] = []
    for row in read_manifest(manifest):
        audio, _ = librosa.load(
            str(row.audio), sr=models[0].sample_rate, offset=row.offset, duration=row.duration
        )
        first, second = (spikes(model, torch.from_numpy(audio)) for model in models)
        matcher = difflib.SequenceMatcher(
            a=[token for token, _ in first], b=[token for token, _ in second], autojunk=False
        )
        for i, j, size in matcher.get_matching_blocks():
            apart += [second[j + k][1] - first[i + k][1] for k in range(size)]
    if not apart:
        raise SystemExit("the two best paths share no token.")
    quantiles = torch.quantile(torch.tensor(apart), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    shown = ", ".join(f"{quantile:.0f}" for quantile in quantiles)
    print(f"{len(apart)} shared tokens; student minus teacher, ms, at 5, 25, 50, 75, 95 %: {shown}")


if __name__ == "__main__":
    typer.run(main)
