# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of stock `.nemo` and exported `.onnx` models on a manifest.

It measures WER and CER (by jiwer) with bootstrap intervals, size, and speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.data.transcripts import never_written
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import bootstrap_interval, count_errors, sum_errors
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.evaluation.transcribe import time_fastest, transcribe
from nemo_tutornet.export.onnx_export import PRECISIONS, write_onnx
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.restore import labels_of, restore_ctc
from nemo_tutornet.nemo_io.stock_config import ctc_class
from nemo_tutornet.utils.progress import PartReport, no_report

RUNTIMES = ("nemo", "onnx")


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one manifest.

    Attributes:
        model: the model's file.
        runtime: the runtime that computed the hypotheses: `nemo`, or `onnx` with the precision of the
            weights.
        utterances: number of evaluated utterances. Rows without a transcript are left out.
        hours: duration of the audio in hours.
        wer: word error rate, as a fraction.
        wer_low: lower end of the WER's 95 % bootstrap interval over utterances.
        wer_high: upper end of that interval.
        cer: character error rate, as a fraction.
        substitutions: number of substituted words.
        deletions: number of words left out.
        insertions: number of words too many.
        reference_words: number of words in the transcripts.
        parameters: number of parameters of the model.
        megabytes: size on disk in megabytes (10^6 bytes).
        real_time_factor: seconds of computing per second of audio.
        untranscribed: number of rows without a transcript, which were left out.
        never_written: characters of the transcripts that the model has no label for, the most frequent
            first. Each of them is an error.
    """

    model: str
    runtime: str
    utterances: int
    hours: float
    wer: float
    wer_low: float
    wer_high: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    parameters: int
    megabytes: float
    real_time_factor: float
    untranscribed: int = 0
    never_written: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Converts the results to plain values, for JSON."""
        return asdict(self)


def evaluate(
    models: Sequence[Path],
    manifest: Path,
    batch_size: int = 16,
    runtime: str = "nemo",
    precisions: Sequence[str] = PRECISIONS,
    report: PartReport = no_report,
) -> list[Evaluation]:
    """Transcribes a manifest with each model, as a user would, and counts the errors.

    Args:
        models: `.nemo` files of CTC recognisers, which NeMo's own class restores, or `.onnx` files that the
            export wrote.
        manifest: NeMo manifest, JSON lines with `text`. Rows without `text` are left out. An empty `text`
            means that the audio contains no speech.
        batch_size: number of utterances that NeMo transcribes together. ONNX Runtime processes them one by
            one, because the graphs have no masks.
        runtime: `nemo`, or `onnx` to run `.nemo` files in ONNX Runtime too, in each precision. `.onnx` files
            always run in ONNX Runtime.
        precisions: precisions for the runtime `onnx`, any of `fp32`, `fp16` and `int8`.
        report: shows the model that transcribes, and how many utterances it has transcribed.

    Returns:
        One evaluation per model, or with the runtime `onnx` one per `.nemo` file and precision. Real-time
        factors are comparable within one runtime only.

    Raises:
        TutorError: the runtime or a precision is unknown, a model cannot be read or is not supported, or the
            manifest is invalid or has no transcripts.
    """
    if runtime not in RUNTIMES:
        raise TutorError(f"there is no runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}.")
    archives = {path: NemoArchive(path) for path in models if path.suffix != ".onnx"}
    for path in models:
        if path in archives:
            ctc_class(archives[path].config, path, "a model to evaluate")
        elif not path.is_file():
            raise TutorError(f"there is no file {path}; give .nemo and .onnx files.")
    rows, untranscribed = read_transcribed(Path(manifest))
    results: list[Evaluation] = []
    for path in models:
        if path.suffix == ".onnx" or runtime == "nemo":
            results.append(evaluate_model(archives.get(path, path), rows, batch_size, report=report)[0])
        else:
            with tempfile.TemporaryDirectory() as folder:
                report(f"writing {path} as ONNX")
                graphs = write_onnx(archives[path], Path(folder) / "model.onnx", precisions)
                results += [_evaluate_graph(path, graph.path, rows, 1, report)[0] for graph in graphs]
    return [replace(result, untranscribed=untranscribed) for result in results]


def read_transcribed(manifest: Path) -> tuple[list[Utterance], int]:
    """Reads the rows of a manifest that have a transcript.

    Args:
        manifest: NeMo manifest.

    Returns:
        The rows with a `text`, and the number of rows without one.

    Raises:
        TutorError: the manifest is invalid, or no row has a word.
    """
    read = read_manifest(manifest)
    rows = [row for row in read if row.text is not None]
    if not any(row.text and row.text.split() for row in rows):
        raise TutorError(f"{manifest} has no transcripts; error rates need a text in its rows.")
    return rows, len(read) - len(rows)


def evaluate_model(
    model: NemoArchive | Path,
    rows: Sequence[Utterance],
    batch_size: int,
    passes: int = 1,
    report: PartReport = no_report,
) -> tuple[Evaluation, list[str]]:
    """Transcribes utterances with one model in its own runtime, and counts the errors.

    Args:
        model: archive of a CTC recogniser, or the path of an `.onnx` file that the export wrote.
        rows: utterances with transcripts.
        batch_size: number of utterances that NeMo transcribes together.
        passes: how often the computing is timed; the fastest counts.
        report: shows how many utterances are transcribed.

    Returns:
        The evaluation, and the hypotheses in the order of the rows.

    Raises:
        TutorError: the model cannot be restored, or an audio file cannot be read.
    """
    if isinstance(model, NemoArchive):
        return _evaluate_nemo(model, rows, batch_size, passes, report)
    return _evaluate_graph(model, model, rows, passes, report)


def no_faster(results: Sequence[Evaluation]) -> list[str]:
    """Reports each model that is smaller than another one but not faster in the same runtime.

    Fewer parameters do not always mean more speed.

    Args:
        results: the evaluations to compare.

    Returns:
        One sentence for each such pair of models.
    """
    sentences = []
    for small in results:
        for large in results:
            # A teacher with its adapter and the same teacher alone are one file: there is nothing to say.
            comparable = small.runtime == large.runtime and small.model != large.model
            smaller = comparable and small.parameters < large.parameters
            if smaller and small.real_time_factor >= large.real_time_factor:
                ratio, speeds = (
                    large.parameters / small.parameters,
                    (small.real_time_factor, large.real_time_factor),
                )
                sentences.append(
                    f"{small.model} has {ratio:.1f} x fewer parameters than {large.model}, but is no faster "
                    "here "
                    f"({small.runtime}): RTF {speeds[0]:.4f} against {speeds[1]:.4f}."
                )
    return sentences


def _evaluate_nemo(
    archive: NemoArchive, rows: Sequence[Utterance], batch_size: int, passes: int, report: PartReport
) -> tuple[Evaluation, list[str]]:
    report(f"loading {archive.path}")  # by itself, because the time left is computed from the mean speed
    model = restore_ctc(archive)
    part = f"transcribing with {archive.path}"
    report(part, 0, len(rows))
    hypotheses, seconds = transcribe(
        model, rows, batch_size, passes, lambda done: report(part, done, len(rows))
    )
    parameters = sum(p.numel() for p in model.parameters())
    result = score(archive.path, "nemo", rows, hypotheses, seconds, parameters)
    return _with_never_written(result, rows, labels_of(model, model.decoder)), hypotheses


def _evaluate_graph(
    name: Path, graph: Path, rows: Sequence[Utterance], passes: int, report: PartReport
) -> tuple[Evaluation, list[str]]:
    recogniser = OnnxCTCModel(graph)
    part = f"transcribing with {name} ({recogniser.precision})"
    report(part, 0, len(rows))
    audio = [read_samples(row, recogniser.sample_rate) for row in rows]
    recogniser.transcribe([max(audio, key=len)])  # the first call includes warm-up, so it is not timed

    def compute() -> list[str]:
        hypotheses: list[str] = []
        for samples in audio:
            hypotheses += recogniser.transcribe([samples])
            report(part, len(hypotheses), len(rows))
        return hypotheses

    hypotheses, seconds = time_fastest(compute, passes)
    runtime = f"onnx {recogniser.precision}"
    size = graph.stat().st_size
    result = score(name, runtime, rows, hypotheses, seconds, recogniser.parameters, size)
    return _with_never_written(result, rows, recogniser.labels), hypotheses


def _with_never_written(result: Evaluation, rows: Sequence[Utterance], labels: Sequence[str]) -> Evaluation:
    never = never_written((row.text or "" for row in rows), labels)
    return replace(result, never_written=never)


def size_on_disk(path: Path) -> int:
    """Returns the size in bytes of a `.nemo` file, or of all files of an unpacked one."""
    return sum(
        file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
    )


def score(
    path: Path,
    runtime: str,
    rows: Sequence[Utterance],
    hypotheses: Sequence[str],
    seconds: float,
    parameters: int,
    size: int | None = None,
) -> Evaluation:
    """Counts the errors of hypotheses that a model computed.

    Args:
        path: the model's file.
        runtime: the runtime that computed the hypotheses.
        rows: utterances with transcripts.
        hypotheses: the texts, in the order of the rows.
        seconds: computing time.
        parameters: number of parameters of the model.
        size: bytes on disk; None for those of `path`.

    Returns:
        The evaluation.
    """
    references = [row.text or "" for row in rows]
    words = [count_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    characters = [count_errors(r, h, "character") for r, h in zip(references, hypotheses, strict=True)]
    total = sum_errors(words)
    low, high = bootstrap_interval(words)
    duration = sum(row.duration for row in rows)
    return Evaluation(
        model=str(path),
        runtime=runtime,
        utterances=len(rows),
        hours=duration / 3600,
        wer=total.rate,
        wer_low=low,
        wer_high=high,
        cer=sum_errors(characters).rate,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        reference_words=total.reference,
        parameters=parameters,
        megabytes=(size_on_disk(path) if size is None else size) / 1e6,
        real_time_factor=seconds / duration,
    )
