# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a student as a fresh instance of NeMo's own class.

The exported student has NeMo's keys, and nothing of the tutor.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_tutornet.errors import FULL_DISK, TutorError
from nemo_tutornet.export.card_student import describe_student
from nemo_tutornet.export.model_card import CardFacts, check_card, model_card
from nemo_tutornet.export.scrub import strip_training_paths
from nemo_tutornet.export.source import AverageInfo, averaged_student, student_from_file, student_from_model
from nemo_tutornet.export.summary import Verification, is_summary, summary_path, write_summary
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs, without_process_group
from nemo_tutornet.nemo_io.stock_config import stock_config
from nemo_tutornet.utils.files import expand_user, staging_directories
from nemo_tutornet.utils.progress import PartReport, no_report

if TYPE_CHECKING:
    from nemo_tutornet.export.onnx_export import OnnxFile


@dataclass(frozen=True)
class ExportResult:
    """Files and figures of one export.

    Attributes:
        path: the `.nemo` file.
        target: the student's NeMo class.
        parameters: number of parameters.
        labels: number of labels without the blank.
        onnx: the ONNX graphs in the order of `PRECISIONS`, and last those for sherpa-onnx; empty without
            `onnx`.
        onnx_asr: the graphs in the folder for onnx-asr, in the order of `PRECISIONS`.
        verification: the checks and their results; None without `verify`.
        summary: the summary file; None without `verify`.
        note: what to know of the source: its decoder had not been trained yet, or NeMo's EMA wrote averaged
            weights beside it. None if nothing.
        card: the model card; None without `card`.
        average: the checkpoints that were averaged; None without `average`.
    """

    path: Path
    target: str
    parameters: int
    labels: int
    onnx: list[OnnxFile]
    onnx_asr: list[OnnxFile] = field(default_factory=list)
    verification: Verification | None = None
    summary: Path | None = None
    note: str | None = None
    card: Path | None = None
    average: AverageInfo | None = None


def export_student(
    source: str | Path | Any,
    destination: str | Path,
    *,
    onnx: str | Path | None = None,
    precisions: Sequence[str] = ("fp32",),
    sherpa: bool = False,
    onnx_asr: str | Path | None = None,
    card: str | Path | None = None,
    card_facts: CardFacts | None = None,
    verify: bool = False,
    average: str | None = None,
    statistics: str | Path | None = None,
    report: PartReport = no_report,
    calibrate: str | Path | None = None,
    fixed_seconds: float | None = None,
) -> ExportResult:
    """Exports a student, finished or interrupted, as a stock `.nemo` file, and optionally as ONNX graphs.

    The source is only read, and the state of torch's random number generators is restored. The weights are
    loaded strictly into a fresh instance of NeMo's own class, so a surplus or missing key raises an error at
    export and not later at the customer's. The ONNX graphs are made from a separate instance, because NeMo's
    exporter changes the model that it receives. All files are put in place together at the end. If an error
    occurs, none is.

    Args:
        source: a `.ckpt` that training wrote, a `.nemo`, or a model (in a distributed run, on rank zero).
            With `average`, the run's folder.
        destination: the `.nemo` file to write. An older file there is replaced when the new one is complete.
        onnx: the ONNX file to write. The name of any precision other than `fp32` is inserted before the
            suffix.
        precisions: any of `fp32`, `fp16` (weights and activations) and `int8` (dynamic quantization, or
            with `calibrate` static quantization).
        sherpa: also write the graph and the tokens for sherpa-onnx, and the streaming graph of a cache-aware
            student.
        onnx_asr: the folder to write for onnx-asr. A folder that an earlier export wrote is replaced.
        card: the model card to write, `README.md` for the Hugging Face Hub.
        card_facts: what only the user knows, for the card.
        verify: verify the files with `verify_student` before they are put in place, and write a summary
            (`student.json` beside `student.nemo`).
        average: `last-K` or `best-K`: export the mean of the run's last or best K checkpoints, with batch
            norm statistics that are estimated anew.
        statistics: manifest of the audio for these statistics; None for the run's training set.
        report: shows the file that is being written or verified.
        calibrate: a NeMo manifest, on utterances of which `int8` is calibrated. Transcripts are not read.
        fixed_seconds: write the ONNX graphs for one utterance of this length, without dynamic axes.

    Returns:
        The paths and figures of the export.

    Raises:
        TutorError: the source cannot be read or is not a CTC recogniser, its config would copy a value of
            this machine into the student, its weights do not fit NeMo's class, a check failed, or a file
            cannot be written. An older file at the destination is then unchanged.
    """
    destination = Path(destination)
    graph = None if onnx is None else Path(onnx)
    asr_folder = None if onnx_asr is None else Path(os.path.abspath(expand_user(onnx_asr)))
    card = None if card is None else Path(card)
    calibrate = None if calibrate is None else expand_user(calibrate)
    if graph is None and fixed_seconds is not None:
        raise TutorError("--fixed-seconds is for ONNX files; say where: --onnx OUT.onnx.")
    if graph is None and asr_folder is None and calibrate is not None:
        raise TutorError("--calibrate is for ONNX files; say where: --onnx OUT.onnx or --onnx-asr DIR.")
    _check_names(destination, graph, precisions, sherpa, verify, asr_folder)
    if asr_folder is not None:
        _check_folder(asr_folder, [path for path in (destination, graph, card) if path is not None])
    facts = card_facts or CardFacts()
    if card is not None:
        check_card(card, facts)
    file = Path(source) if isinstance(source, (str, Path)) else None
    if statistics is not None and average is None:
        raise TutorError("batch norm statistics are estimated for averaged weights only; give --average too.")
    if average is not None and file is None:
        raise TutorError("a model has no checkpoints to average; give the run's folder.")
    averaged: AverageInfo | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(source)))
            stack.enter_context(without_process_group())  # the other ranks continue training meanwhile
            # NeMo reads a subword model's tokenizer from the file that the model was restored from, so the
            # copy must exist until the model is saved.
            report(f"writing {destination.name}")
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.nemo"
            if average is not None and file is not None:
                manifest = None if statistics is None else expand_user(statistics)
                model, note, averaged = averaged_student(file, average, manifest, report)
                file = averaged.checkpoints[-1]
            else:
                model, note = (
                    (student_from_model(source, copy), None) if file is None else student_from_file(file)
                )
            model.cfg = stock_config(model.cfg)
            stages = stack.enter_context(
                staging_directories(
                    *(_folder(path) for path in (destination, graph, asr_folder) if path is not None),
                    *(
                        _folder(path)
                        for path in (card,)
                        if path is not None and not _inside(path, asr_folder)
                    ),
                )
            )
            student = stages[_folder(destination)] / destination.name
            with suppress_nemo_logs():
                model.save_to(str(student))
            archive = strip_training_paths(NemoArchive(student))
            graphs: list[OnnxFile] = []
            if graph is not None:
                from nemo_tutornet.export.onnx_export import write_onnx

                report(f"writing {graph.name}")
                graphs = write_onnx(
                    archive,
                    stages[_folder(graph)] / graph.name,
                    precisions,
                    sherpa,
                    called=file or destination,
                    calibrate=calibrate,
                    fixed_seconds=fixed_seconds,
                )
            asr_graphs: list[OnnxFile] = []
            asr_stage = None
            if asr_folder is not None:
                from nemo_tutornet.export.onnx_asr_folder import write_onnx_asr

                report(f"writing {asr_folder.name}")
                asr_stage = stages[_folder(asr_folder)] / asr_folder.name
                asr_graphs = write_onnx_asr(
                    archive, asr_stage, precisions, called=file or destination, calibrate=calibrate
                )
                _keep_card(asr_folder, asr_stage)
            if card is not None:
                report(f"writing {card.name}")
                place = asr_stage if _inside(card, asr_folder) else stages[_folder(card)]
                assert place is not None
                paths = [graph.path for graph in graphs]
                described = describe_student(model, destination, file, paths, asr_folder)
                (place / card.name).write_text(model_card(described, facts), encoding="utf-8")
            verification = None
            if verify:
                report(f"verifying {destination.name} in a fresh process")
                verification = _verified(archive, graphs, asr_stage, model, file, card, averaged)
    except OSError as error:
        raise TutorError(
            f"{destination} was not written ({_reason(error)}); nothing was changed there."
        ) from None
    if not verify and is_summary(summary_path(destination)):
        note = _joined(note, _without_old_summary(destination))
    return ExportResult(
        path=destination,
        target=str(model.cfg.target),
        parameters=sum(p.numel() for p in model.parameters()),
        labels=len(model.decoder.vocabulary),
        onnx=[replace(written, path=graph.with_name(written.path.name)) for written in graphs]
        if graph is not None
        else [],
        onnx_asr=[replace(written, path=Path(onnx_asr) / written.path.name) for written in asr_graphs]
        if onnx_asr is not None
        else [],
        verification=verification,
        summary=summary_path(destination) if verify else None,
        note=note,
        card=card,
        average=averaged,
    )


def _without_old_summary(destination: Path) -> str:
    """Removes the summary of an earlier student, which no longer describes the file; returns a note."""
    old = summary_path(destination)
    old.unlink()
    return f"{old} described the student that was there before, and was removed; --verify writes a new one."


def _joined(*notes: str | None) -> str:
    return " ".join(note for note in notes if note)


def _reason(error: OSError) -> str:
    """Returns the reason of an error with its file, which is not always one of those to write."""
    reason, place = error.strerror or str(error), error.filename2 or error.filename
    if error.errno in FULL_DISK and (place is None or os.path.isdir(place)):  # a write does not know its file
        return f"{reason}: {' or '.join(filter(None, (place, tempfile.gettempdir())))}"
    return reason if place is None else f"{reason}: {place}"


def _folder(path: Path) -> Path:
    # Resolve the folder only: a symbolic link at the path itself is replaced, and its target is not.
    return expand_user(path).parent.resolve()


def _cuda_devices(source: Any) -> list[int]:
    parameters = source.parameters() if isinstance(source, torch.nn.Module) else ()
    return sorted({parameter.get_device() for parameter in parameters if parameter.is_cuda})


def _inside(card: Path, folder: Path | None) -> bool:
    """Whether the card is a file of the folder for onnx-asr, which is staged as a whole."""
    return folder is not None and _folder(card) == folder.resolve()


def _check_folder(folder: Path, files: Sequence[Path]) -> None:
    """Refuses a folder for onnx-asr that may not be replaced, or that would take other files with it."""
    from nemo_tutornet.export.onnx_asr_folder import CARD, check_onnx_asr_folder

    check_onnx_asr_folder(folder)
    for path in files:
        place = _folder(path)
        if folder.resolve() in (place, *place.parents) and not (_inside(path, folder) and path.name == CARD):
            raise TutorError(
                f"{path} lies in {folder.name}, which is written for onnx-asr as a whole; give another place."
            )


def _keep_card(folder: Path, stage: Path) -> None:
    """Copies the card of a folder for onnx-asr that is about to be replaced."""
    from nemo_tutornet.export.onnx_asr_folder import CARD

    if (folder / CARD).is_file():
        shutil.copyfile(folder / CARD, stage / CARD)


def _check_names(
    destination: Path,
    graph: Path | None,
    precisions: Sequence[str],
    sherpa: bool,
    verify: bool,
    asr_folder: Path | None,
) -> None:
    """Raises an error for wrong arguments before any file is read."""
    if destination.suffix != ".nemo":
        raise TutorError(f"{destination} must end in .nemo; that is what NeMo and Riva expect.")
    if graph is not None and graph.suffix != ".onnx":
        raise TutorError(f"{graph} must end in .onnx; that is what ONNX Runtime and its clients expect.")
    for path in (destination, graph):
        if path is not None and path.is_dir():
            raise TutorError(f"{path} is a folder; give the name of a file to write.")
    if graph is None and (sherpa or (asr_folder is None and tuple(precisions) != ("fp32",))):
        raise TutorError(
            "other precisions and the graph for sherpa-onnx are ONNX files; say where with --onnx OUT.onnx."
        )
    if verify and summary_path(destination).exists() and not is_summary(summary_path(destination)):
        raise TutorError(
            f"{summary_path(destination)} is no summary of a student, and would be replaced by one; give "
            f"{destination.name} another name or place."
        )


def _verified(
    student: NemoArchive,
    graphs: Sequence[OnnxFile],
    asr_stage: Path | None,
    model: Any,
    source: Path | None,
    card: Path | None,
    averaged: AverageInfo | None = None,
) -> Verification:
    from nemo_tutornet.export.verify import verify_student

    verification = verify_student(student, [graph.path for graph in graphs], model, asr_stage)
    if not verification.passed:
        raise TutorError(
            f"{student.path.name} failed its verification and was not written: {verification.failures}"
        )
    others = [
        path
        for folder in {g.path.parent for g in graphs}
        for path in sorted(folder.iterdir())
        if path != student.path and path.is_file() and (card is None or path.name != card.name)
    ]
    if source is not None and source.is_dir():  # an unpacked archive is a folder and has no checksum
        source = None
    folders = [] if asr_stage is None else [asr_stage]
    sources = averaged.checkpoints if averaged is not None else () if source is None else (source,)
    write_summary(summary_path(student.path), verification, others, sources, folders)
    return verification
