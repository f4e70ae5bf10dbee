# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Verification that a student is what NeMo and its clients expect.

The file is checked in this process. Restoring and running the student is checked in a process that cannot
import this package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.summary import Check, Verification, check_summary, summary_path
from nemo_tutornet.export.verify_archive import SAMPLE_RATES, archive_checks, sample_rate_of
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE
from nemo_tutornet.utils.files import read_regular_file

if TYPE_CHECKING:
    from nemo_tutornet.export.onnx_metadata import OnnxMetadata

PROBE_SECONDS = (0.8, 1.71, 3.33)  # odd numbers of frames, so that errors of strides and padding show
_MOST_BYTES = 16 << 20  # of a text file
# Entries of a graph's metadata that do not describe the student, and the labels, which have their own check.
_NOT_COMPARED = ("version", "model_author", "comment", "labels")


def verify_student(
    student: Path | NemoArchive,
    onnx: Sequence[Path] = (),
    reference: Any | None = None,
    onnx_asr: Path | None = None,
) -> Verification:
    """Verifies a student's file as its receiver would use it.

    This process checks the archive, the student's class, the files that its config names, and the tokenizer's
    files. A fresh process, in which this package cannot be imported, compares the keys with those of a fresh
    stock model, restores the file with `ASRModel.restore_from`, computes the log-probabilities, and runs the
    ONNX graphs in ONNX Runtime.

    Args:
        student: the `.nemo` file, or its archive.
        onnx: the student's ONNX graphs.
        reference: the model that the student was exported from, in eval mode. The log-probabilities of the
            file are compared with those of this model.
        onnx_asr: the student's folder for onnx-asr. Where onnx-asr is installed, it runs, too.

    Returns:
        The checks and the facts. A damaged file gives a failed check, not an exception.
    """
    path = student.path if isinstance(student, NemoArchive) else Path(student)
    # check the archive before any other program opens it: NeMo's own connector would skip a doubtful member
    try:
        archive = NemoArchive.of(student)
    except TutorError as error:
        return Verification(path, [Check("archive", False, str(error))], {})
    config = archive.config
    checks = [Check("archive", True, "complete and readable"), *archive_checks(archive)]
    if not checks[1].passed:  # NeMo would refuse to restore the file, or run a class that is not its own
        return Verification(path, checks, {})
    sample_rate = sample_rate_of(config)
    if sample_rate is None:
        lowest, highest = SAMPLE_RATES[0], SAMPLE_RATES[-1]
        words = f"the config's sample_rate is no number of samples per second from {lowest} to {highest}"
        return Verification(path, [*checks, Check("sample rate", False, words)], {})
    try:
        check_numbers(config, path.name)
    except TutorError as error:
        return Verification(path, [*checks, Check("builds", False, str(error))], {})
    more, facts, graphs = _in_stock_nemo(path, onnx, reference, sample_rate, onnx_asr)
    if facts:
        facts["kind"] = "subword" if facts.pop("class_name") == STOCK_BPE else "character"
        facts["class"] = str(config.target)
        subsampling_factor = facts.pop("subsampling_factor")
        more += [_metadata(graph, facts, subsampling_factor, config, path) for graph in graphs]
        if onnx_asr is not None:
            more += _onnx_asr_files(onnx_asr, _expected(facts, subsampling_factor, config, path, "fp32"))
    return Verification(path, checks + more, facts)


def verify_received(student: Path, onnx: Sequence[Path] = (), onnx_asr: Path | None = None) -> Verification:
    """Verifies a received file, and the summary beside it if there is one.

    Args:
        student: the `.nemo` file.
        onnx: the student's ONNX graphs.
        onnx_asr: the student's folder for onnx-asr.

    Returns:
        The checks of the summary and of the student, and the facts.

    Raises:
        TutorError: a file does not exist, the summary cannot be read, or ONNX graphs are given and `onnx` or
            `onnxruntime` cannot be imported.
    """
    for path in (student, *onnx):
        if not path.is_file():
            raise TutorError(
                f"there is no file {path}; give the student's .nemo and, with --onnx, its graphs."
            )
    if onnx_asr is not None and not onnx_asr.is_dir():
        raise TutorError(f"there is no folder {onnx_asr}; give --onnx-asr the student's folder for onnx-asr.")
    if onnx or onnx_asr is not None:
        from nemo_tutornet.export.onnx_export import require

        # Without these packages, the process that checks the graphs would report the student as faulty.
        require("onnx", "onnxruntime")
    summary = summary_path(student)
    folders = [] if onnx_asr is None else [onnx_asr]
    checks = check_summary(summary, student, onnx, folders) if summary.is_file() else []
    verification = verify_student(student, onnx, onnx_asr=onnx_asr)
    return replace(verification, checks=checks + verification.checks)


def probe_signals(sample_rate: int) -> list[Any]:
    """Generates audio of several lengths that excites every mel bin and is the same in every call.

    Args:
        sample_rate: samples per second.

    Returns:
        Waveforms `[N]` of `N` samples, fp32: a chirp in noise, one of each length in `PROBE_SECONDS`.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    signals = []
    for seconds in PROBE_SECONDS:
        time = torch.arange(int(seconds * sample_rate)) / sample_rate
        chirp = torch.sin(2 * torch.pi * (100 + 0.4 * sample_rate * time / (2 * seconds)) * time)
        signals.append((0.3 * chirp + 0.05 * torch.randn(len(time), generator=generator)).float())
    return signals


def probes(reference: Any | None, sample_rate: int) -> dict[str, Any]:
    """Computes the inputs of `verify_worker`, and the outputs that it must reproduce.

    Legend: `N` samples, `T` frames, `V` labels with the blank last.

    Args:
        reference: a NeMo CTC model in eval mode; None to return the audio only.
        sample_rate: samples per second.

    Returns:
        Waveforms `signal_i` `[N]`, and with a reference its log-probabilities `log_probs_i` `[T, V]` on the
        valid frames.
    """
    import torch

    tensors: dict[str, Any] = {}
    for i, signal in enumerate(probe_signals(sample_rate)):
        tensors[f"signal_{i}"] = signal
        if reference is not None:
            with torch.no_grad():
                log_probs, lengths, _ = reference(
                    input_signal=signal[None], input_signal_length=torch.tensor([len(signal)])
                )
            tensors[f"log_probs_{i}"] = log_probs[0, : int(lengths[0])].contiguous()
    return tensors


def _metadata(
    graph: dict[str, Any], facts: dict[str, Any], subsampling_factor: int, config: DictConfig, student: Path
) -> Check:
    """Compares a graph's metadata with the metadata that `write_onnx` would write for this student.

    Only entries that the graph has and that clients compute with are compared.
    """
    name, metadata = f"{graph['name']}: metadata", graph["metadata"]
    found = _expected(facts, subsampling_factor, config, student, graph["precision"])
    if isinstance(found, str):
        # `write_onnx` refuses such a student, but the graph may come from NeMo's exporter.
        return Check(name, "preprocessor" not in metadata, found)
    expected = found.as_strings()
    compared = [key for key in expected if key in metadata and key not in _NOT_COMPARED]
    wrong = [key for key in compared if _value(metadata[key]) != _value(expected[key])]
    return Check(
        name,
        not wrong,
        f"wrong in it: {', '.join(wrong)}" if wrong else f"the student's ({len(compared)} entries)",
    )


def _expected(
    facts: dict[str, Any], subsampling_factor: int, config: DictConfig, student: Path, precision: str
) -> OnnxMetadata | str:
    """The metadata that `write_onnx` would write for this student, or why it refuses it."""
    from nemo_tutornet.export.onnx_metadata import OnnxMetadata, front_end_of

    section = cast("dict[str, Any]", OmegaConf.to_container(config.preprocessor, resolve=True))
    try:
        return OnnxMetadata(
            target=facts["class"],
            labels=facts["vocabulary"],
            tokenizer=facts["tokenizer"] or "char",
            parameters=facts["parameters"],
            front_end=front_end_of(section, student),
            subsampling_factor=subsampling_factor,
            precision=precision,
        )
    except TutorError as error:
        return str(error)


def _onnx_asr_files(folder: Path, expected: OnnxMetadata | str) -> list[Check]:
    """Compares `config.json` and `vocab.txt` of a folder for onnx-asr with the student."""
    from nemo_tutornet.export.onnx_asr_folder import (
        CONFIG,
        VOCABULARY,
        onnx_asr_config,
        onnx_asr_vocabulary,
        refuse_for_onnx_asr,
    )

    name = f"{folder.resolve().name}: files"
    if isinstance(expected, str):
        return [Check(name, False, expected)]
    try:
        refuse_for_onnx_asr(expected, folder)
        config = json.loads(read_regular_file(folder / CONFIG, _MOST_BYTES).decode("utf-8"))
        vocabulary = read_regular_file(folder / VOCABULARY, _MOST_BYTES).decode("utf-8")
    except TutorError as error:
        return [Check(name, False, str(error))]
    except (OSError, ValueError, RecursionError) as error:
        return [Check(name, False, f"its {CONFIG} or {VOCABULARY} cannot be read ({_short(error)})")]
    wanted = {key: value for key, value in onnx_asr_config(expected).items() if key != "written_by"}
    config = config if isinstance(config, dict) else {}
    wrong = [key for key, value in wanted.items() if config.get(key) != value]
    if wrong:
        return [Check(name, False, f"wrong in {CONFIG}: {', '.join(wrong)}")]
    if vocabulary != onnx_asr_vocabulary(expected):
        return [Check(name, False, f"{VOCABULARY} has other labels than the student")]
    return [Check(name, True, f"{CONFIG} and {VOCABULARY} are the student's")]


def _short(error: Exception) -> str:
    return str(error)[:200]


def _value(entry: str) -> Any:
    """Parses an entry of a graph's metadata, so that the order of JSON keys does not matter.

    An entry that is not JSON is returned unchanged.
    """
    try:
        return json.loads(entry)
    except (ValueError, RecursionError):
        return entry


def _in_stock_nemo(
    student: Path, onnx: Sequence[Path], reference: Any | None, sample_rate: int, onnx_asr: Path | None
) -> tuple[list[Check], dict[str, Any], list[dict[str, Any]]]:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        request, report, tensors = (
            Path(folder) / name for name in ("request.json", "report.json", "probes.safetensors")
        )
        save_file(probes(reference, sample_rate), str(tensors))
        asked = {
            "student": str(student.resolve()),
            "onnx": [str(path.resolve()) for path in onnx],
            "probes": str(tensors),
            "onnx_asr": None if onnx_asr is None else str(onnx_asr.resolve()),
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        program = str(Path(__file__).with_name("verify_worker.py"))
        done = subprocess.run(
            [sys.executable, program, str(request), str(report)],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0 or not report.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return (
                [
                    Check(
                        "restore",
                        False,
                        f"the process that restores the file ended with {done.returncode}: {last}",
                    )
                ],
                {},
                [],
            )
        found = json.loads(report.read_text(encoding="utf-8"))
    return [Check(**check) for check in found["checks"]], found["facts"], found["graphs"]
