# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a report is asked for, and the models that it evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_tutornet.config import TeacherConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.report.collect import BASELINE, OTHER, STUDENT, TEACHER
from nemo_tutornet.report.run_folder import RunFolder
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.utils.files import expand_user

# More utterances than this give the histogram of spike offsets no other shape.
SPIKE_UTTERANCES = 200


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
        channel: the channel to read of audio with several: its number, or `average`; None refuses such audio.
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
    channel: int | str | None = None


@dataclass(frozen=True)
class PlannedModel:
    """A model to evaluate.

    Attributes:
        path: its file.
        role: `student`, `baseline`, `teacher` or `other`.
        name: its name in the report.
        is_teacher: whether the file is the teacher's, which need not be a CTC model.
        adapter: the file of the adapter that it is evaluated with; None for none.
    """

    path: Path
    role: str
    name: str
    is_teacher: bool = False
    adapter: Path | None = None


def teacher_of(request: ReportRequest, run: RunFolder) -> tuple[TeacherConfig | None, str | None]:
    """Finds the teacher and its adapter, in the request or in the run's config.

    Args:
        request: what to report on.
        run: the run.

    Returns:
        The teacher, and a sentence where the run's own teacher is not there.

    Raises:
        TutorError: the adapter cannot be read, belongs to another teacher, or is given without one.
    """
    own = run.tutor.teacher if run.tutor is not None else TeacherConfig()
    path = request.teacher
    if path is None:
        if run.tutor is None and request.adapter is None:
            return None, None
        if run.tutor is None:
            raise TutorError("--adapter is given without its teacher; name that with --teacher.")
        if not own.model_path or not expand_user(own.model_path).exists():
            where = f"({own.model_path}) is not here" if own.model_path else "is not named in its config"
            return None, f"The run's teacher {where}, so the report is without one; --teacher names its file."
        path = expand_user(own.model_path)
    adapter = request.adapter
    if adapter is None and own.adapter and expand_user(own.adapter).is_file():
        # The run's own adapter is of use for the run's own teacher only.
        named = expand_user(own.adapter)
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


def plan_models(request: ReportRequest, run: RunFolder, teacher: TeacherConfig | None) -> list[PlannedModel]:
    """Names the models to evaluate: each file once, and a teacher with an adapter also without it.

    Args:
        request: what to report on.
        run: the run.
        teacher: from `teacher_of`.

    Returns:
        The student, the baseline, the teacher, and the others.

    Raises:
        TutorError: two of student, baseline and teacher are the same file.
    """
    planned = [PlannedModel(run.model, STUDENT, _student_name(request, run))]
    if request.baseline is not None:
        planned.append(PlannedModel(request.baseline, BASELINE, "undistilled student"))
    if teacher is not None:
        path, adapter = Path(str(teacher.model_path)), teacher.adapter
        name = "teacher with adapter" if adapter else "teacher"
        planned.append(PlannedModel(path, TEACHER, name, True, Path(adapter) if adapter else None))
    seen = {one.path.resolve() for one in planned}
    if len(seen) < len(planned):
        raise TutorError(
            "the student, --baseline and --teacher name the same file twice; give three different models."
        )
    if teacher is not None and teacher.adapter:
        planned.append(PlannedModel(Path(str(teacher.model_path)), OTHER, "teacher alone", True))
    names = {one.name for one in planned}
    for path in request.models:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        candidates = [path.stem, path.name, f"{path.absolute().parent.name}/{path.name}", str(path)]
        name = next((one for one in candidates if one not in names), str(path.absolute()))
        names.add(name)
        planned.append(PlannedModel(path, OTHER, name))
    return planned


def _student_name(request: ReportRequest, run: RunFolder) -> str:
    return "distilled student" if run.tutor or request.baseline else "student"
