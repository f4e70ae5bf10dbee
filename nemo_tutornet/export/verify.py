# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Verification that a student is what NeMo and its clients expect.

The file is checked in this process. Restoring and running the student is checked in a process that cannot
import this package.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.scrub import paths_in_tokenizers
from nemo_tutornet.export.summary import Check, Verification, check_summary, summary_path
from nemo_tutornet.nemo_io.archive import MODEL_CONFIG, MODEL_WEIGHTS, NemoArchive
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.stock_config import CTC_CLASSES, STOCK_BPE, names_data, target_of
from nemo_tutornet.utils.files import read_regular_file

if TYPE_CHECKING:
    from nemo_tutornet.export.onnx_metadata import OnnxMetadata

PROBE_SECONDS = (0.8, 1.71, 3.33)  # odd numbers of frames, so that errors of strides and padding show
RATES = range(1000, 192001)  # samples per second; a hostile rate would make probes that fill the memory
_PATH = re.compile(r"^(file:|/|~|[A-Za-z]:[\\/]|\\\\).+|.*\.(nemo|ckpt)$", re.DOTALL)
_MOST_BYTES = 16 << 20  # of a text file
# These keys hold texts, not paths: a label may be a slash.
_NO_PATHS = ("labels", "vocabulary")
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
    checks = [Check("archive", True, "complete and readable"), _target(config), _config(config)]
    checks += [_artifacts(archive), _tokenizer(archive)]
    if not checks[1].passed:  # NeMo would refuse to restore the file, or run a class that is not its own
        return Verification(path, checks, {})
    sample_rate = _sample_rate(config)
    if sample_rate is None:
        words = f"the config's sample_rate is no number of samples per second from {RATES[0]} to {RATES[-1]}"
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


def _target(config: DictConfig) -> Check:
    target, stock = target_of(config), list(CTC_CLASSES.values())
    wrong = f"the config's target is {target}, but a student is one of NeMo's {' and '.join(stock)}"
    return Check("target", target in stock, target if target in stock else wrong)


def _config(config: DictConfig) -> Check:
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    content.pop("target", None)  # has its own check
    found = sorted(_leaks(content))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    if found:
        return Check("config", False, f"the config still tells of the training: {', '.join(found[:3])}{more}")
    return Check("config", True, "no tutor section, no path of another machine")


def _leaks(node: Any, key: str = "") -> Iterator[str]:
    """Yields the entries of a config that must not be in an exported file."""
    name = key.rsplit(".", 1)[-1]
    if isinstance(node, dict):
        for child, value in node.items():
            if child == "tutor":
                yield f"{key}.tutor".lstrip(".")
            else:
                yield from _leaks(value, f"{key}.{child}".lstrip("."))
    elif (
        names_data(name) and node and not isinstance(node, (int, float)) and not str(node).startswith("nemo:")
    ):
        yield f"{key}={node}"
    elif isinstance(node, list) and name not in _NO_PATHS:
        for i, value in enumerate(node):
            yield from _leaks(value, f"{key}[{i}]")
    elif (
        isinstance(node, str)
        and not node.startswith("nemo:")
        and (_PATH.match(node) or "nemo_tutornet" in node)
    ):
        yield f"{key}={node}"


def _artifacts(student: NemoArchive) -> Check:
    """Checks that the archive holds every file that the config names, and no other.

    The config of a subword model must name the files of its tokenizer.
    """
    values = _strings(OmegaConf.to_container(student.config, resolve=False))
    named = [value.removeprefix("nemo:") for value in values if value.startswith("nemo:")]
    members = student.members
    # A file that nothing reads would be copied along, into Riva's archive too.
    others = sorted(set(members) - {MODEL_CONFIG, MODEL_WEIGHTS, *named})
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return Check(
            "artifacts",
            False,
            f"the archive holds {', '.join(others[:3])}{more}, which the config does not name",
        )
    missing = [name for name in named if name not in members]
    if missing:
        return Check(
            "artifacts", False, f"the config names {', '.join(missing)}, which the archive does not hold"
        )
    if student.target == STOCK_BPE and not named:
        return Check(
            "artifacts", False, "a subword model, but its config names no tokenizer file inside the archive"
        )
    return Check("artifacts", True, ", ".join(named) or "none needed")


def _tokenizer(student: NemoArchive) -> Check:
    paths = paths_in_tokenizers(student)
    told = f"the tokenizer still tells of its training: {', '.join(paths[:2])}; export the student again"
    return Check("tokenizer", not paths, told if paths else "no path of another machine")


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _strings(child)


def _sample_rate(config: DictConfig) -> int | None:
    """Reads the samples per second from a config; None if the value cannot be a sample rate.

    A config without a sample rate gets NeMo's default.
    """
    try:
        rate = int(
            OmegaConf.select(config, "sample_rate")
            or OmegaConf.select(config, "preprocessor.sample_rate")
            or 16000
        )
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError):
        return None
    return rate if rate in RATES else None


def _metadata(
    graph: dict[str, Any], facts: dict[str, Any], subsampling_factor: int, config: DictConfig, student: Path
) -> Check:
    """Compares a graph's metadata with the metadata that `write_onnx` would write for this student.

    Only entries that the graph has and that clients compute with are compared.
    """
    name, told = f"{graph['name']}: metadata", graph["metadata"]
    found = _expected(facts, subsampling_factor, config, student, graph["precision"])
    if isinstance(found, str):
        # `write_onnx` refuses such a student, but the graph may come from NeMo's exporter.
        return Check(name, "preprocessor" not in told, found)
    expected = found.as_strings()
    compared = [key for key in expected if key in told and key not in _NOT_COMPARED]
    wrong = [key for key in compared if _value(told[key]) != _value(expected[key])]
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
        told = json.loads(report.read_text(encoding="utf-8"))
    return [Check(**check) for check in told["checks"]], told["facts"], told["graphs"]
