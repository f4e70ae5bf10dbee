# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a distillation: evaluates the models, runs teacher and student on chosen utterances, and
writes one page with pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from nemo_tutornet.config import RKDConfig
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.evaluate import evaluate_model, read_transcribed
from nemo_tutornet.evaluation.scoring import Evaluation, score, size_on_disk
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.stock_config import CTC_CLASSES, check_teacher, ctc_class, target_of
from nemo_tutornet.report.collect import ModelResult, Report, choose_utterances, compare, show
from nemo_tutornet.report.curves import LearningCurves, read_curves
from nemo_tutornet.report.notes import missing_sections, notes_of
from nemo_tutornet.report.posteriors import FrameReader, UtteranceFrames, spike_offsets
from nemo_tutornet.report.request import PlannedModel, ReportRequest, plan_models, teacher_of
from nemo_tutornet.report.run_folder import open_run
from nemo_tutornet.utils.files import make_output_folder, staging_directory
from nemo_tutornet.utils.progress import PartReport, no_report

MOST_SHOWN = 8  # utterances; each takes up to 400 kB of a page of 5 MB
# The speed is the fastest of so many passes over a manifest of up to so many seconds, else of one.
_PASSES, _PASSED_SECONDS = 3, 900.0
_NEEDED = ("matplotlib", "jinja2", "tensorboard")


def write_report(request: ReportRequest, progress: PartReport = no_report) -> tuple[Report, Path]:
    """Collects the numbers of a report, draws its pictures and writes its page.

    Args:
        request: what to report on.
        progress: shows what is being done, and how far it is.

    Returns:
        The report, and the path of its `report.html`. The pictures are beside it as PNG files.

    Raises:
        TutorError: a package is missing, a model, the manifest or audio cannot be read, or the output folder
            cannot be written to.
    """
    _check_packages(_NEEDED)
    from nemo_tutornet.report.page import render_page
    from nemo_tutornet.report.pictures import draw_all

    open_run(request.run)  # before a folder is made in it
    output = request.output or _default_output(request.run)
    make_output_folder(output)
    report = collect_report(request, progress)
    pictures = {}
    progress("drawing")
    for picture in draw_all(report):
        pictures[picture.name] = picture
        progress("drawing")
    page = render_page(report, pictures)
    with staging_directory(output) as stage:
        (stage / "report.html").write_text(page, encoding="utf-8")
        figures = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
        (stage / "figures.json").write_text(figures + "\n", encoding="utf-8")
        for picture in pictures.values():
            for palette, png in picture.png.items():
                (stage / f"{picture.name}.{palette}.png").write_bytes(png)
    return report, output / "report.html"


def collect_report(request: ReportRequest, progress: PartReport = no_report, pictures: bool = True) -> Report:
    """Collects the numbers of a report.

    Args:
        request: what to report on.
        progress: shows what is being done, and how far it is.
        pictures: whether to keep the posteriors of the shown utterances, which the pictures need.

    Returns:
        The report.

    Raises:
        TutorError: a package is missing, or a model, the manifest or audio cannot be read.
    """
    _check_packages(_NEEDED[-1:])
    if len(request.utterances) > MOST_SHOWN:
        raise TutorError(
            f"--utterance is given {len(request.utterances)} times, and a page shows at most {MOST_SHOWN} "
            "utterances; write several reports with --output."
        )
    run = open_run(request.run)
    teacher, teacher_note = teacher_of(request, run)
    planned = plan_models(request, run, teacher)
    archives = {
        one.path: NemoArchive(one.path) for one in planned if one.is_teacher or one.path.suffix != ".onnx"
    }
    for one in planned:
        if one.path not in archives and not one.path.is_file():
            raise TutorError(f"there is no file {one.path}; give .nemo and .onnx files.")
        if one.is_teacher:
            check_teacher(archives[one.path].config, one.path)
        elif one.path in archives:
            ctc_class(archives[one.path].config, one.path, "a model to evaluate")
    rows, untranscribed = read_transcribed(request.manifest, request.channel)
    if request.utterances:
        choose_utterances(rows, [], request.utterances)  # a wrong name should not cost the evaluation's time
    reader = FrameReader(archives[run.model], teacher, run.tutor.rkd if run.tutor else RKDConfig())
    models = []
    for one in planned:
        evaluation, hypotheses = _evaluate(
            one, archives.get(one.path), reader, rows, request.batch_size, progress
        )
        evaluation = replace(evaluation, untranscribed=untranscribed, manifest=request.manifest.name)
        models.append(ModelResult.of(one.name, one.role, evaluation, rows, hypotheses))
    chosen = choose_utterances(rows, models, request.utterances)
    frames, offsets, spoken = _read_frames(
        reader, rows, [i for i, _ in chosen] if pictures else [], request.spike_utterances, progress
    )
    curves = LearningCurves() if run.folder is None else read_curves(run.folder, run.tutor)
    missing = missing_sections(run, curves, reader, rows)
    if offsets == ():
        missing["offsets"] = "There are no spike offsets, because the hypotheses share no label."
    shown = [replace(show(i, why, rows, models), frames=frames.get(i)) for i, why in chosen]
    return Report(
        manifest=str(request.manifest),
        rows=tuple(rows),
        models=tuple(models),
        change=compare(models),
        curves=curves,
        baseline_curves=_baseline_curves(request),
        shown=tuple(shown),
        offsets=offsets,
        offsets_of=spoken,
        notes=tuple(notes_of(request, run, models, teacher_note, untranscribed)),
        missing=missing,
    )


def _check_packages(names: Sequence[str]) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise TutorError(
            f"the report needs {', '.join(missing)}, which this environment lacks; install it with "
            '`pip install "nemo_tutornet[report]"`.'
        )


def _default_output(run: Path) -> Path:
    if run.suffix != ".nemo":
        return run / "report"
    folder = run.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / f"{run.stem}-report"


def _evaluate(
    planned: PlannedModel,
    archive: NemoArchive | None,
    reader: FrameReader,
    rows: Sequence[Utterance],
    batch_size: int,
    progress: PartReport,
) -> tuple[Evaluation, list[str]]:
    """Evaluates a model; a teacher with its adapter, or one that is no CTC model, as in the training."""
    path = planned.path

    def report(part: str, done: int = 0, total: int | None = None) -> None:
        if total is None:
            progress(f"loading the {planned.name}")
        else:
            progress(f"transcribing with the {planned.name}", done, total)

    passes = _PASSES if sum(row.duration for row in rows) < _PASSED_SECONDS else 1
    if archive is None:
        return evaluate_model(path, rows, batch_size, passes, report)
    is_ctc = target_of(archive.config).rsplit(".", 1)[-1] in CTC_CLASSES
    if not planned.adapter and (is_ctc or not planned.is_teacher):
        return evaluate_model(archive, rows, batch_size, passes, report)
    assert reader.teacher is not None
    report("", 0, len(rows))
    hypotheses, seconds = reader.transcribe(rows, batch_size, planned.adapter is not None, passes)
    report("", len(rows), len(rows))
    parameters = reader.teacher_parameters(planned.adapter is not None)
    size = size_on_disk(path) + (planned.adapter.stat().st_size if planned.adapter else 0)
    return score(path, "nemo", rows, hypotheses, seconds, parameters, size), hypotheses


def _read_frames(
    reader: FrameReader, rows: Sequence[Utterance], shown: Sequence[int], most: int, progress: PartReport
) -> tuple[dict[int, UtteranceFrames], tuple[float, ...] | None, int]:
    """Returns the frames of the shown utterances, the spike offsets, and the number of utterances they are
    of.
    """
    step = max(1, -(-len(rows) // most)) if most else len(rows) + 1
    compared = list(range(0, len(rows), step)) if reader.same_labels and most else []
    indices = sorted({*shown, *compared})
    frames, offsets = {}, []
    for done, i in enumerate(indices):
        progress("comparing teacher and student", done, len(indices))
        read = reader.read(rows[i])
        if i in shown:
            frames[i] = read
        if i in compared and read.teacher is not None:
            offsets += spike_offsets(read.teacher, read.student)
    progress("comparing teacher and student", len(indices), len(indices))
    return frames, tuple(offsets) if compared else None, len(compared)


def _baseline_curves(request: ReportRequest) -> LearningCurves:
    """Reads the curves of the baseline, where its file is in the folder of its run."""
    if request.baseline is None or request.baseline.suffix != ".nemo":
        return LearningCurves()
    folder = open_run(request.baseline).folder
    return LearningCurves() if folder is None else read_curves(folder, None)
