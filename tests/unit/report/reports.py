# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Results of models without running any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.evaluation.scoring import Evaluation
from nemo_tutornet.report.collect import BASELINE, STUDENT, TEACHER, ModelResult, Report, compare, show
from nemo_tutornet.report.curves import LearningCurves, StageSpan

REFERENCES = ("turn on the light", "go", "turn it off", "stop the music now", "yes", "no more of it")


def rows(speakers: bool = True) -> list[Utterance]:
    return [
        Utterance(Path(f"u{i}.wav"), 1.0 + i, text, speaker="ab"[i % 2] if speakers else None)
        for i, text in enumerate(REFERENCES)
    ]


def evaluation(
    wer: float = 0.1, parameters: int = 280_000, speed: float = 100.0, **more: object
) -> Evaluation:
    values = {
        "model": "student.nemo",
        "runtime": "nemo",
        "utterances": 6,
        "hours": 0.01,
        "wer": wer,
        "wer_low": wer / 2,
        "wer_high": wer * 2,
        "cer": wer / 3,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 0,
        "reference_words": 17,
        "parameters": parameters,
        "megabytes": parameters * 4e-6,
        "real_time_factor": 1 / speed,
        **more,
    }
    return Evaluation(**values)  # type: ignore[arg-type]


def result(role: str, hypotheses: Sequence[str], name: str | None = None, **figures: object) -> ModelResult:
    return ModelResult.of(name or role, role, evaluation(**figures), rows(), hypotheses)  # type: ignore[arg-type]


def models() -> list[ModelResult]:
    """The student makes one error, the baseline four and the teacher none."""
    return [
        result(STUDENT, ("turn on the lights", *REFERENCES[1:]), wer=1 / 17),
        result(
            BASELINE, ("turn the lights", "go", "turn off", "stop music now", *REFERENCES[4:]), wer=5 / 17
        ),
        result(TEACHER, REFERENCES, wer=0.0, parameters=18_900_000, speed=25.0),
    ]


def report(**more: object) -> Report:
    found = models()
    fields = {
        "manifest": "/data/valid.jsonl",
        "rows": tuple(rows()),
        "models": tuple(found),
        "change": compare(found),
        "curves": LearningCurves(
            {"val_wer": [(9, 1.0), (19, 0.3)], "train_rkd": [(step, 2.0 / (step + 1)) for step in range(20)]},
            [StageSpan("rkd", 0), StageSpan("ctc", 9.5)],
            10.0,
        ),
        "baseline_curves": LearningCurves({"val_wer": [(9, 1.0), (19, 0.5)]}, (), 10.0),
        "shown": (show(0, "best change", rows(), found),),
        "offsets": (0.0, 20.0, -20.0, 40.0),
        "offsets_of": 3,
        "notes": ("A note.",),
        "missing": {"curves": "", "frames": "", "offsets": "", "by_speaker": ""},
        **more,
    }
    return Report(**fields)  # type: ignore[arg-type]
