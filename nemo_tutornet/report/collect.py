# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report: what each model makes of each utterance, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import ErrorCounts, RateDifference, count_errors, paired_difference
from nemo_tutornet.evaluation.scoring import Evaluation
from nemo_tutornet.report.curves import LearningCurves
from nemo_tutornet.report.posteriors import UtteranceFrames
from nemo_tutornet.report.transcripts import (
    Column,
    Part,
    align_hypotheses,
    count_confusions,
    rates_by_length,
    rates_by_speaker,
)
from nemo_tutornet.report.verdict import verdict

STUDENT, BASELINE, TEACHER, OTHER = "student", "baseline", "teacher", "other"
CONFUSIONS = 12
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class ModelResult:
    """One model on all utterances.

    Attributes:
        name: its name in the report.
        role: `student`, `baseline`, `teacher` or `other`.
        evaluation: error rates, size and speed.
        hypotheses: its outputs, in the order of the utterances.
        errors: the word errors of each utterance.
    """

    name: str
    role: str
    evaluation: Evaluation
    hypotheses: tuple[str, ...]
    errors: tuple[ErrorCounts, ...]

    @classmethod
    def of(
        cls,
        name: str,
        role: str,
        evaluation: Evaluation,
        rows: Sequence[Utterance],
        hypotheses: Sequence[str],
    ) -> ModelResult:
        """Counts the errors of each utterance."""
        errors = tuple(count_errors(row.text or "", text) for row, text in zip(rows, hypotheses, strict=True))
        return cls(name, role, evaluation, tuple(hypotheses), errors)


@dataclass(frozen=True)
class Confusion:
    """A pair of words and how often each model confused it.

    Attributes:
        reference: the word that was said; empty for an insertion.
        hypothesis: the word that was recognised; empty for a deletion.
        counts: by model.
    """

    reference: str
    hypothesis: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class ShownUtterance:
    """An utterance that the report shows.

    Attributes:
        row: the utterance.
        why: why it was chosen.
        columns: the models' hypotheses aligned with the reference, in the order of the models.
        errors: number of word errors by model.
        frames: posteriors and weights; None in a report without pictures.
    """

    row: Utterance
    why: str
    columns: tuple[Column, ...]
    errors: Mapping[str, int]
    frames: UtteranceFrames | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report says.

    Attributes:
        manifest: the manifest's path.
        rows: its utterances with transcripts.
        models: the student first, then the baseline, the teacher and the others.
        change: WER of the student minus that of the baseline; None without one.
        curves: the run's learning curves.
        baseline_curves: the baseline's, where it is in the folder of its run.
        shown: the utterances that are shown.
        offsets: spike offsets in milliseconds; None where spikes cannot be paired.
        offsets_of: number of utterances that the offsets are of.
        notes: sentences about what the report does not show, and about how far it can be trusted.
        missing: by section: a sentence that says why it is empty.
    """

    manifest: str
    rows: tuple[Utterance, ...]
    models: tuple[ModelResult, ...]
    change: RateDifference | None
    curves: LearningCurves
    baseline_curves: LearningCurves
    shown: tuple[ShownUtterance, ...]
    offsets: tuple[float, ...] | None
    offsets_of: int
    notes: tuple[str, ...]
    missing: Mapping[str, str]

    def model(self, role: str) -> ModelResult | None:
        """Returns the first model with a role."""
        return next((model for model in self.models if model.role == role), None)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        results = {model.role: model.evaluation for model in reversed(self.models)}
        teacher = self.model(TEACHER)
        return verdict(
            results[STUDENT],
            results.get(BASELINE),
            results.get(TEACHER),
            self.change,
            "teacher" if teacher is None else teacher.name,
        )

    @property
    def errors(self) -> dict[str, tuple[ErrorCounts, ...]]:
        """The errors of each utterance by model."""
        return {model.name: model.errors for model in self.models}

    def by_length(self) -> list[Part]:
        """Error rates by the duration of the utterances."""
        return rates_by_length(self.rows, self.errors)

    def by_speaker(self) -> list[Part]:
        """Error rates by speaker; none if the manifest has no speakers."""
        return rates_by_speaker(self.rows, self.errors)

    def confusions(self) -> list[Confusion]:
        """The most frequent word errors of the student and the baseline together."""
        references = [row.text or "" for row in self.rows]
        counts = {model.name: count_confusions(references, model.hypotheses) for model in self.models}
        total: Counter[tuple[str, str]] = Counter()
        for model in self.models:
            if model.role in (STUDENT, BASELINE):
                total.update(counts[model.name])
        ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
        return [Confusion(*pair, {name: found[pair] for name, found in counts.items()}) for pair, _ in ranked]

    def as_dict(self) -> dict[str, Any]:
        """Converts the report to plain values, for JSON; without audio, posteriors and curves."""
        quantiles = None
        if self.offsets:
            values = np.percentile(self.offsets, QUANTILES).tolist()
            quantiles = dict(zip((f"{q} %" for q in QUANTILES), values, strict=True))
        return {
            "verdict": self.verdict,
            "manifest": self.manifest,
            "models": [
                {"name": model.name, "role": model.role, **model.evaluation.as_dict()}
                for model in self.models
            ],
            "change": None if self.change is None else asdict(self.change),
            "stages": [asdict(stage) for stage in self.curves.stages],
            "last_values": {tag: curve[-1][1] for tag, curve in self.curves.terms.items()},
            "utterances": [
                {
                    "name": shown.row.name,
                    "why": shown.why,
                    "reference": shown.row.text,
                    "hypotheses": {
                        model.name: model.hypotheses[self.rows.index(shown.row)] for model in self.models
                    },
                    "errors": dict(shown.errors),
                }
                for shown in self.shown
            ],
            "spike_offsets_ms": quantiles,
            "spike_pairs": len(self.offsets or ()),
            "confusions": [asdict(confusion) for confusion in self.confusions()],
            "by_length": [asdict(part) for part in self.by_length()],
            "by_speaker": [asdict(part) for part in self.by_speaker()],
            "notes": list(self.notes),
            "missing": dict(self.missing),
        }


def compare(models: Sequence[ModelResult]) -> RateDifference | None:
    """Compares the student with the baseline; None without a baseline."""
    by_role = {model.role: model for model in reversed(models)}
    if BASELINE not in by_role:
        return None
    return paired_difference(by_role[BASELINE].errors, by_role[STUDENT].errors)


def choose_utterances(
    rows: Sequence[Utterance], models: Sequence[ModelResult], names: Sequence[str]
) -> list[tuple[int, str]]:
    """Chooses the utterances to show.

    Args:
        rows: the utterances.
        models: the student, and perhaps the baseline.
        names: names of utterances (`Utterance.name`, or the file's name without its suffix); none for the
            best, the median and the worst, by the errors that distillation removed, or without a baseline by
            the student's word error rate.

    Returns:
        Index and reason of each utterance.

    Raises:
        TutorError: a name belongs to no utterance or to several.
    """
    if names:
        return [(_find(rows, name), "asked for") for name in dict.fromkeys(names)]
    by_role = {model.role: model for model in reversed(models)}
    student = by_role[STUDENT].errors
    words = [counts.reference for counts in student]
    if BASELINE in by_role:
        gain = [
            float(_wrong(before) - _wrong(after))
            for before, after in zip(by_role[BASELINE].errors, student, strict=True)
        ]
        reasons = ("best change", "median change", "worst change")
    else:
        gain = [-_wrong(counts) / max(counts.reference, 1) for counts in student]
        reasons = ("best", "median", "worst")
    # Among equals, a longer utterance shows more.
    order = sorted(range(len(rows)), key=lambda i: (-gain[i], -words[i], rows[i].name))
    ascending = sorted(range(len(rows)), key=lambda i: (gain[i], -words[i], rows[i].name))
    middle = len(order) // 2
    chosen: dict[int, str] = {}
    for place, candidates in ((0, order), (2, ascending), (1, order[middle:] + order[:middle])):
        index = next((i for i in candidates if i not in chosen), None)  # each utterance once
        if index is not None:
            chosen[index] = reasons[place]
    return sorted(chosen.items(), key=lambda item: reasons.index(item[1]))


def show(index: int, why: str, rows: Sequence[Utterance], models: Sequence[ModelResult]) -> ShownUtterance:
    """Aligns the hypotheses of an utterance."""
    row = rows[index]
    columns = align_hypotheses(row.text or "", [model.hypotheses[index] for model in models])
    return ShownUtterance(
        row, why, tuple(columns), {model.name: _wrong(model.errors[index]) for model in models}
    )


def _find(rows: Sequence[Utterance], name: str) -> int:
    found = [i for i, row in enumerate(rows) if row.name == name]
    found = found or [i for i, row in enumerate(rows) if row.audio.stem == name]
    if not found:
        raise TutorError(
            f"--utterance {name}: no transcribed row of the manifest has this utt_id or file name; give one "
            f"as {rows[0].name!r}."
        )
    if len(found) > 1:
        several = ", ".join(rows[i].name for i in found[:3])
        raise TutorError(
            f"--utterance {name}: {len(found)} rows of the manifest have this name ({several}, ...); give "
            "the rows an utt_id, and name one of them."
        )
    return found[0]


def _wrong(counts: ErrorCounts) -> int:
    return counts.substitutions + counts.deletions + counts.insertions
