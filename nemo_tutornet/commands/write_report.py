# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The report of a distillation: evaluates the models, runs teacher and student on chosen utterances, and
writes one page with pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from nemo_tutornet.config import RKDConfig, TeacherConfig
from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.evaluate import (
    Evaluation,
    evaluate_model,
    read_samples,
    read_transcribed,
    score,
)
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.stock_config import CTC_CLASSES, check_teacher, ctc_class, target_of
from nemo_tutornet.report.collect import (
    BASELINE,
    OTHER,
    STUDENT,
    TEACHER,
    ModelResult,
    Report,
    choose_utterances,
    compare,
    show,
)
from nemo_tutornet.report.curves import LearningCurves, read_curves
from nemo_tutornet.report.posteriors import FrameReader, UtteranceFrames, spike_offsets
from nemo_tutornet.report.run_folder import RunFolder, open_run
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest
from nemo_tutornet.utils.files import staging_directory

# More utterances than this give the histogram of spike offsets no other shape.
SPIKE_UTTERANCES = 200
MOST_SHOWN = 12  # utterances; each takes up to 200 kB of the page
_NEEDED = ("matplotlib", "jinja2", "tensorboard")
# What is being done, the finished part and the whole of it.
ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportRequest:
    """What to report on.

    Attributes:
        run: the run's folder, or a `.nemo` file.
        manifest: NeMo manifest with transcripts.
        models: further models, `.nemo` or `.onnx` files.
        baseline: the undistilled student; None for none.
        teacher: the teacher's `.nemo`; None for the one in the run's config.
        adapter: the teacher's adapter; None for the one in the run's config.
        output: folder to write to; None for `report` in the run's folder.
        utterances: names of the utterances to show; none for the best, the median and the worst.
        batch_size: number of utterances that NeMo transcribes together.
        spike_utterances: number of utterances whose spikes are compared.
    """

    run: Path
    manifest: Path
    models: tuple[Path, ...] = ()
    baseline: Path | None = None
    teacher: Path | None = None
    adapter: Path | None = None
    output: Path | None = None
    utterances: tuple[str, ...] = ()
    batch_size: int = 16
    spike_utterances: int = SPIKE_UTTERANCES


def write_report(request: ReportRequest, progress: ReportProgress | None = None) -> tuple[Report, Path]:
    """Collects the numbers of a report, draws its pictures and writes its page.

    Args:
        request: what to report on.
        progress: called with what is being done, the finished part and the whole of it.

    Returns:
        The report, and the path of its `report.html`. The pictures are beside it as PNG files.

    Raises:
        TutorError: a package is missing, a model, the manifest or audio cannot be read, or the output folder
            cannot be written to.
    """
    _check_packages(_NEEDED)
    from nemo_tutornet.report.page import render_page
    from nemo_tutornet.report.plots import draw_all

    progress = progress or (lambda *_: None)
    output = request.output or _default_output(request.run)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TutorError(
            f"--output {output} cannot be used ({error.strerror}); give a folder to write to."
        ) from None
    report = collect_report(request, progress)
    pictures = {}
    progress("drawing", 0, 1)
    for picture in draw_all(report):
        pictures[picture.name] = picture
        progress("drawing", 0, 1)
    page = render_page(report, pictures)
    with staging_directory(output) as stage:
        (stage / "report.html").write_text(page, encoding="utf-8")
        figures = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
        (stage / "figures.json").write_text(figures + "\n", encoding="utf-8")
        for picture in pictures.values():
            for palette, png in picture.png.items():
                (stage / f"{picture.name}.{palette}.png").write_bytes(png)
    progress("drawing", 1, 1)
    return report, output / "report.html"


def collect_report(
    request: ReportRequest, progress: ReportProgress | None = None, pictures: bool = True
) -> Report:
    """Collects the numbers of a report.

    Args:
        request: what to report on.
        progress: called with what is being done, the finished part and the whole of it.
        pictures: whether to keep the posteriors of the shown utterances, which the pictures need.

    Returns:
        The report.

    Raises:
        TutorError: a package is missing, or a model, the manifest or audio cannot be read.
    """
    _check_packages(_NEEDED[-1:])
    progress = progress or (lambda *_: None)
    if len(request.utterances) > MOST_SHOWN:
        raise TutorError(
            f"--utterance is given {len(request.utterances)} times, and a page shows at most {MOST_SHOWN} "
            "utterances; write several reports with --output."
        )
    run = open_run(request.run)
    teacher, teacher_note = _teacher_of(request, run)
    planned = _planned(request, run, teacher)
    archives = {path: NemoArchive(path) for path, _, _ in planned if path.suffix != ".onnx"}
    for path, role, _ in planned:
        if path not in archives and not path.is_file():
            raise TutorError(f"there is no file {path}; give .nemo and .onnx files.")
        if path in archives and role == TEACHER:
            check_teacher(archives[path].config, path)
        elif path in archives:
            ctc_class(archives[path].config, path, f"a {role} model" if role == OTHER else f"the {role}")
    rows, untranscribed = read_transcribed(request.manifest)
    if request.utterances:
        choose_utterances(rows, [], request.utterances)  # a wrong name should not cost the evaluation's time
    models = []
    for i, (path, role, name) in enumerate(planned):
        progress(f"transcribing with the {name}", i, len(planned))
        evaluation, hypotheses = _evaluate(archives.get(path, path), role, teacher, rows, request.batch_size)
        evaluation = replace(evaluation, untranscribed=untranscribed)
        models.append(ModelResult.of(name, role, evaluation, rows, hypotheses))
    progress("transcribing", len(planned), len(planned))
    chosen = choose_utterances(rows, models, request.utterances)
    reader = FrameReader(archives[run.model], teacher, run.tutor.rkd if run.tutor else RKDConfig())
    frames, offsets, spoken = _read_frames(
        reader, rows, [i for i, _ in chosen] if pictures else [], request.spike_utterances, progress
    )
    curves = LearningCurves() if run.folder is None else read_curves(run.folder, run.tutor)
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
        notes=tuple(_notes(request, run, models, teacher_note, untranscribed)),
        missing=_missing(run, curves, reader, rows),
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


def _teacher_of(request: ReportRequest, run: RunFolder) -> tuple[TeacherConfig | None, str | None]:
    """Returns the teacher with its adapter, and a sentence where the run's own teacher is not there."""
    own = run.tutor.teacher if run.tutor is not None else TeacherConfig()
    path = request.teacher
    if path is None:
        if run.tutor is None:
            return None, None
        if not own.model_path or not Path(own.model_path).expanduser().exists():
            where = f"({own.model_path}) is not here" if own.model_path else "is not named in its config"
            return None, f"The run's teacher {where}, so the report is without one; --teacher names its file."
        path = Path(own.model_path).expanduser()
    adapter = request.adapter
    if adapter is None and own.adapter and Path(own.adapter).expanduser().is_file():
        # The run's own adapter is of use for the run's own teacher only.
        named = Path(own.adapter).expanduser()
        if Adapter.load(named).info.teacher_sha256 == NemoArchive(path).sha256:
            adapter = named
    elif adapter is not None:
        Adapter.load(adapter, "--adapter").check_owner(
            NemoArchive(path).sha256, str(path), f"--adapter is {adapter}"
        )
    return (
        TeacherConfig(
            model_path=str(path), adapter=None if adapter is None else str(adapter), prompt=own.prompt
        ),
        None,
    )


def _planned(
    request: ReportRequest, run: RunFolder, teacher: TeacherConfig | None
) -> list[tuple[Path, str, str]]:
    """Returns file, role and name of each model, each file once."""
    student = "distilled student" if run.tutor or request.baseline else "student"
    planned = [(run.model, STUDENT, student)]
    if request.baseline is not None:
        planned.append((request.baseline, BASELINE, "undistilled student"))
    if teacher is not None:
        planned.append((Path(str(teacher.model_path)), TEACHER, "teacher"))
    seen = {path.resolve() for path, _, _ in planned}
    if len(seen) < len(planned):
        raise TutorError(
            "the student, --baseline and --teacher name the same file twice; give three different models."
        )
    names = {name for _, _, name in planned}
    for path in request.models:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        candidates = [path.stem, path.name, f"{path.absolute().parent.name}/{path.name}", str(path)]
        name = next((one for one in candidates if one not in names), str(path.absolute()))
        names.add(name)
        planned.append((path, OTHER, name))
    return planned


def _evaluate(
    model: NemoArchive | Path,
    role: str,
    teacher: TeacherConfig | None,
    rows: Sequence[Utterance],
    batch_size: int,
) -> tuple[Evaluation, list[str]]:
    """Evaluates a model; a teacher that is no CTC model as the trainings do, by its own decoding."""
    if not isinstance(model, NemoArchive) or role != TEACHER:
        return evaluate_model(model, rows, batch_size)
    if target_of(model.config).rsplit(".", 1)[-1] in CTC_CLASSES:
        return evaluate_model(model, rows, batch_size)
    assert teacher is not None
    live = LiveTeacher.from_config(replace(teacher, adapter=None, precision="fp32"), key="--teacher")
    live.check(TargetRequest(hypotheses=True), None)
    hypotheses = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i].duration)
    seconds = 0.0
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        signals = [torch.from_numpy(read_samples(rows[i], live.sample_rate)) for i in indices]
        padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
        start = time.perf_counter()
        batch = TrainingBatch(padded, torch.tensor([len(signal) for signal in signals]))
        found = live.targets(batch, TargetRequest(hypotheses=True)).hypotheses
        seconds += time.perf_counter() - start
        for i, hypothesis in zip(indices, found or [], strict=True):
            hypotheses[i] = hypothesis.text
    parameters = sum(parameter.numel() for parameter in live.model.parameters())
    return score(model.path, "nemo", rows, hypotheses, seconds, parameters), hypotheses


def _read_frames(
    reader: FrameReader, rows: Sequence[Utterance], shown: Sequence[int], most: int, progress: ReportProgress
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


def _notes(
    request: ReportRequest,
    run: RunFolder,
    models: Sequence[ModelResult],
    teacher_note: str | None,
    untranscribed: int,
) -> list[str]:
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
        if baseline.parameters != by_role[STUDENT].parameters:
            notes.append(
                "The undistilled student is of another size, so the difference is not distillation's alone."
            )
    manifest = request.manifest.resolve()
    for section, sentence in (
        ("train_ds", "The manifest is the run's training set: on other speech, expect more errors."),
        (
            "validation_ds",
            "The manifest is the run's validation set, by which its checkpoint was chosen: on other speech, "
            "expect a few more errors.",
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


def _missing(
    run: RunFolder, curves: LearningCurves, reader: FrameReader, rows: Sequence[Utterance]
) -> dict[str, str]:
    """Returns a sentence for each section that is empty; an empty one for each that is not."""
    missing = dict.fromkeys(("curves", "frames", "offsets", "by_speaker"), "")
    if run.folder is None:
        missing["curves"] = "There are no curves, because a .nemo file was given and not the run's folder."
    elif not curves.terms:
        missing["curves"] = (
            f"There are no curves, because {run.folder} has no TensorBoard events with losses; "
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
