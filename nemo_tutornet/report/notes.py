# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sentences about how far a report can be trusted, and about what it does not show."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.report.collect import BASELINE, STUDENT, ModelResult
from nemo_tutornet.report.curves import LearningCurves
from nemo_tutornet.report.posteriors import FrameReader
from nemo_tutornet.report.request import ReportRequest
from nemo_tutornet.report.run_folder import RunFolder


def notes_of(
    request: ReportRequest,
    run: RunFolder,
    models: Sequence[ModelResult],
    teacher_note: str | None,
    untranscribed: int,
) -> list[str]:
    """Says how far a report can be trusted.

    Args:
        request: what was asked for.
        run: the run.
        models: the results.
        teacher_note: why the run's own teacher is not there; None where it is.
        untranscribed: number of rows that were left out.

    Returns:
        The sentences.
    """
    notes = []
    by_role = {model.role: model.evaluation for model in reversed(models)}
    baseline = by_role.get(BASELINE)
    if baseline is None:
        notes.append(
            "What distillation changed is not shown: --baseline names a student that was trained without it."
        )
    else:
        notes.append(
            "The interval is about the utterances. One training of each student is compared, and other seeds "
            "would give other error rates."
        )
        student = by_role[STUDENT]
        ratio = baseline.real_time_factor / student.real_time_factor
        if baseline.parameters == student.parameters and not 0.8 < ratio < 1.25:
            notes.append(
                "The two students have the same size, so the difference of their speeds is an error of the "
                "measurement: other programs ran meanwhile."
            )
        if baseline.parameters != student.parameters:
            notes.append(
                "The undistilled student is of another size, so the difference is not distillation's alone."
            )
    manifest = request.manifest.resolve()
    for section, sentence in (
        ("train_ds", "The manifest is the run's training set: on other speech, expect more errors."),
        (
            "validation_ds",
            "The manifest is the run's validation set, by which an epoch may have been selected: on other "
            "speech, expect a few more errors.",
        ),
    ):
        named = run.manifest_of(section)
        if named is not None and named.resolve() == manifest:
            notes.append(sentence)
    if teacher_note:
        notes.append(teacher_note)
    if untranscribed:
        notes.append(f"{untranscribed} rows of the manifest have no transcript and were left out.")
    return notes


def missing_sections(
    run: RunFolder, curves: LearningCurves, reader: FrameReader, rows: Sequence[Utterance]
) -> dict[str, str]:
    """Says why sections are empty.

    Args:
        run: the run.
        curves: its learning curves.
        reader: holds the teacher.
        rows: the utterances.

    Returns:
        A sentence for each of `curves`, `frames`, `offsets` and `by_speaker` that is empty, and an empty text
        for each that is not.
    """
    missing = dict.fromkeys(("curves", "frames", "offsets", "by_speaker"), "")
    if run.folder is None:
        missing["curves"] = "There are no curves, because a .nemo file was given and not the run's folder."
    elif not curves.terms:
        missing["curves"] = (
            f"There are no curves, because {run.folder.name} has no TensorBoard events with losses; "
            "exp_manager.create_tensorboard_logger=true writes them."
        )
    if reader.teacher is None:
        missing["frames"] = "There is no teacher, so the pictures show the student alone."
        missing["offsets"] = "There are no spike offsets, because there is no teacher to compare with."
        return _without_speakers(missing, rows)
    if not reader.teacher.has_posteriors:
        missing["frames"] = "The teacher has no CTC head, so the pictures show the student's posteriors only."
        missing["offsets"] = "There are no spike offsets, because the teacher has no CTC head."
    elif not reader.same_labels:
        missing["offsets"] = (
            "There are no spike offsets, because teacher and student have different labels; an adapter of "
            "the teacher (`nemo-tutornet adapt`) has the student's."
        )
    if reader.note:
        missing["frames"] = f"There are no frame weights: {reader.note}"
    return _without_speakers(missing, rows)


def _without_speakers(missing: dict[str, str], rows: Sequence[Utterance]) -> dict[str, str]:
    if all(row.speaker is None for row in rows):
        missing["by_speaker"] = "There is no WER by speaker, because the manifest has no field `speaker`."
    return missing
