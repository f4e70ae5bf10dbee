# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a student as a fresh instance of NeMo's own class.

The exported student has NeMo's keys, and nothing of the tutor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.scrub import strip_training_paths
from nemo_tutornet.export.source import AverageInfo, _averaged, _from_file, _from_model
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
        verification: the checks and their results; None without `verify`.
        summary: the summary file; None without `verify`.
        note: what to know of the source: its decoder had not been trained yet, or NeMo's EMA wrote averaged
            weights beside it. None if nothing.
        average: the checkpoints that were averaged; None without `average`.
    """

    path: Path
    target: str
    parameters: int
    labels: int
    onnx: list[OnnxFile]
    verification: Verification | None = None
    summary: Path | None = None
    note: str | None = None
    average: AverageInfo | None = None


def export_student(
    source: str | Path | Any,
    destination: str | Path,
    *,
    onnx: str | Path | None = None,
    precisions: Sequence[str] = ("fp32",),
    sherpa: bool = False,
    verify: bool = False,
    average: str | None = None,
    statistics: str | Path | None = None,
    report: PartReport = no_report,
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
        precisions: any of `fp32`, `fp16` (weights and activations) and `int8` (dynamic quantization).
        sherpa: also write the graph and the tokens for sherpa-onnx, and the streaming graph of a cache-aware
            student.
        verify: verify the files with `verify_student` before they are put in place, and write a summary
            (`student.json` beside `student.nemo`).
        average: `last-K` or `best-K`: export the mean of the run's last or best K checkpoints, with batch
            norm statistics that are estimated anew.
        statistics: manifest of the audio for these statistics; None for the run's training set.
        report: shows the file that is being written or verified.

    Returns:
        The paths and figures of the export.

    Raises:
        TutorError: the source cannot be read or is not a CTC recogniser, its config would copy a value of
            this machine into the student, its weights do not fit NeMo's class, a check failed, or a file
            cannot be written. An older file at the destination is then unchanged.
    """
    destination = Path(destination)
    graph = None if onnx is None else Path(onnx)
    _check_names(destination, graph, precisions, sherpa, verify)
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
                manifest = None if statistics is None else Path(statistics)
                model, note, averaged = _averaged(file, average, manifest, report)
                file = averaged.checkpoints[-1]
            else:
                model, note = (_from_model(source, copy), None) if file is None else _from_file(file)
            model.cfg = stock_config(model.cfg)
            stages = stack.enter_context(
                staging_directories(*(_folder(path) for path in (destination, graph) if path is not None))
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
                )
            verification = None
            if verify:
                report(f"verifying {destination.name} in a fresh process")
                verification = _verified(archive, graphs, model, file, averaged)
    except OSError as error:
        raise TutorError(
            f"{destination} cannot be written ({error.strerror or error}); nothing was changed there."
        ) from None
    return ExportResult(
        path=destination,
        target=str(model.cfg.target),
        parameters=sum(p.numel() for p in model.parameters()),
        labels=len(model.decoder.vocabulary),
        onnx=[replace(written, path=graph.with_name(written.path.name)) for written in graphs]
        if graph is not None
        else [],
        verification=verification,
        summary=summary_path(destination) if verify else None,
        note=note,
        average=averaged,
    )


def _folder(path: Path) -> Path:
    # Resolve the folder only: a symbolic link at the path itself is replaced, and its target is not.
    return expand_user(path).parent.resolve()


def _cuda_devices(source: Any) -> list[int]:
    parameters = source.parameters() if isinstance(source, torch.nn.Module) else ()
    return sorted({parameter.get_device() for parameter in parameters if parameter.is_cuda})


def _check_names(
    destination: Path, graph: Path | None, precisions: Sequence[str], sherpa: bool, verify: bool
) -> None:
    """Raises an error for wrong arguments before any file is read."""
    if destination.suffix != ".nemo":
        raise TutorError(f"{destination} must end in .nemo; that is what NeMo and Riva expect.")
    if graph is not None and graph.suffix != ".onnx":
        raise TutorError(f"{graph} must end in .onnx; that is what ONNX Runtime and its clients expect.")
    for path in (destination, graph):
        if path is not None and path.is_dir():
            raise TutorError(f"{path} is a folder; give the name of a file to write.")
    if graph is None and (sherpa or tuple(precisions) != ("fp32",)):
        raise TutorError(
            "other precisions and the graph for sherpa-onnx are ONNX files; say where with --onnx OUT.onnx."
        )
    if verify and summary_path(destination).exists() and not is_summary(summary_path(destination)):
        raise TutorError(
            f"{summary_path(destination)} is no summary of a student, and would be replaced by one; give "
            f"{destination.name} "
            f"another name or place."
        )


def _verified(
    student: NemoArchive,
    graphs: Sequence[OnnxFile],
    model: Any,
    source: Path | None,
    averaged: AverageInfo | None = None,
) -> Verification:
    from nemo_tutornet.export.verify import verify_student

    verification = verify_student(student, [graph.path for graph in graphs], reference=model)
    if not verification.passed:
        raise TutorError(
            f"{student.path.name} failed its verification and was not written: {verification.failures}"
        )
    others = [
        path
        for folder in {g.path.parent for g in graphs}
        for path in sorted(folder.iterdir())
        if path != student.path
    ]
    if source is not None and source.is_dir():  # an unpacked archive is a folder and has no checksum
        source = None
    sources = averaged.checkpoints if averaged is not None else () if source is None else (source,)
    write_summary(summary_path(student.path), verification, others, *sources)
    return verification
