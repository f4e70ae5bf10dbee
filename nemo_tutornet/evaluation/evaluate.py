# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""WER and CER with jiwer, bootstrap intervals, size and speed of stock `.nemo` and exported `.onnx` models on
a manifest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.error_rates import bootstrap_interval, count_errors, sum_errors
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel
from nemo_tutornet.export.onnx_export import PRECISIONS, write_onnx
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import ctc_class

RUNTIMES = ("nemo", "onnx")


@dataclass(frozen=True)
class Evaluation:
    """What one model does on one manifest.

    Attributes:
        model: its file.
        runtime: what computed it: `nemo`, or `onnx` with the precision of the weights.
        utterances: their number; rows without a transcript are left out.
        hours: of audio.
        wer, cer: word and character error rates, as fractions.
        wer_low, wer_high: 95 % bootstrap interval of the WER over utterances.
        substitutions, deletions, insertions: of words.
        reference_words: their number.
        parameters: their number.
        megabytes: on disk.
        real_time_factor: seconds of computing per second of audio.
        untranscribed: the number of rows that were left out.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate(
    models: Sequence[Path],
    manifest: Path,
    batch_size: int = 16,
    runtime: str = "nemo",
    precisions: Sequence[str] = PRECISIONS,
    progress: Callable[[str], None] | None = None,
) -> list[Evaluation]:
    """Transcribes a manifest with each model, as a user would, and counts errors.

    Args:
        models: `.nemo` files of CTC recognisers, restored by NeMo's own class, or `.onnx` files that export
            wrote.
        manifest: NeMo JSON lines with `text`; rows without one are left out, and an empty one says that
            nothing was spoken.
        batch_size: utterances transcribed together by NeMo; ONNX Runtime gets them one by one, because graphs
            have no masks.
        runtime: `nemo`, or `onnx` to run `.nemo` files in ONNX Runtime too, in each precision. `.onnx` files
            always run there.
        precisions: for the runtime `onnx`, of `fp32`, `fp16` and `int8`.
        progress: called with each model's name before its turn.

    Returns:
        One evaluation a model, or one a model and precision; real-time factors compare within one runtime.

    Raises:
        TutorError: an unknown runtime or precision, an unreadable or foreign model, or a bad manifest.
    """
    if runtime not in RUNTIMES:
        raise TutorError(f"there is no runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}.")
    archives = {path: NemoArchive(path) for path in models if path.suffix != ".onnx"}
    for path in models:
        if path in archives:
            ctc_class(archives[path].config, path, "a model to evaluate")
        elif not path.is_file():
            raise TutorError(f"there is no file {path}; give .nemo and .onnx files.")
    read = read_manifest(Path(manifest))
    rows = [row for row in read if row.text is not None]
    if not any(row.text and row.text.split() for row in rows):
        raise TutorError(f"{manifest} has no transcripts; error rates need a text in its rows.")
    results: list[Evaluation] = []
    for path in models:
        if progress is not None:
            progress(str(path))
        if path.suffix == ".onnx":
            results.append(_evaluate_graph(path, path, rows))
        elif runtime == "nemo":
            results.append(_evaluate_nemo(archives[path], rows, batch_size))
        else:
            with tempfile.TemporaryDirectory() as folder:
                graphs = write_onnx(archives[path], Path(folder) / "model.onnx", precisions)
                results += [_evaluate_graph(path, graph.path, rows) for graph in graphs]
    return [replace(result, untranscribed=len(read) - len(rows)) for result in results]


def no_faster(results: Sequence[Evaluation]) -> list[str]:
    """A sentence for each model that is smaller than another one and yet no faster in the same runtime: size
    is not speed.
    """
    sentences = []
    for small in results:
        for large in results:
            smaller = small.runtime == large.runtime and small.parameters < large.parameters
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


def _evaluate_nemo(archive: NemoArchive, rows: Sequence[Utterance], batch_size: int) -> Evaluation:
    path, model = archive.path, restore_ctc(archive)
    hypotheses, seconds = transcribe(model, rows, batch_size)
    parameters = sum(p.numel() for p in model.parameters())
    return _score(path, "nemo", rows, hypotheses, seconds, parameters, _size(path))


def _evaluate_graph(name: Path, graph: Path, rows: Sequence[Utterance]) -> Evaluation:
    recogniser = OnnxCTCModel(graph)
    audio = [_samples(row, recogniser.sample_rate) for row in rows]
    recogniser.transcribe([max(audio, key=len)])  # the first call pays for warming up
    start = time.perf_counter()
    hypotheses = recogniser.transcribe(audio)
    seconds = time.perf_counter() - start
    runtime = f"onnx {recogniser.precision}"
    return _score(name, runtime, rows, hypotheses, seconds, recogniser.parameters, graph.stat().st_size)


def _size(path: Path) -> int:
    """Bytes of a `.nemo`, or of the files in the folder that it was unpacked to."""
    return sum(
        file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
    )


def _score(
    path: Path,
    runtime: str,
    rows: Sequence[Utterance],
    hypotheses: Sequence[str],
    seconds: float,
    parameters: int,
    size: int,
) -> Evaluation:
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
        megabytes=size / 1e6,
        real_time_factor=seconds / duration,
    )


def transcribe(model: Any, rows: Sequence[Utterance], batch_size: int) -> tuple[list[str], float]:
    """Hypotheses of a NeMo CTC model, in the rows' order, and the seconds that computing them took.

    Reading the audio is not counted; the front end, the network and greedy decoding are.

    Raises:
        TutorError: a single frame of audio on a machine with a GPU.
    """
    audio = [_samples(row, int(model.preprocessor._sample_rate)) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(audio[i]))  # like lengths together: less padding
    hypotheses = [""] * len(rows)
    with suppress_nemo_logs():
        try:
            model.transcribe(
                [audio[order[-1]]], override_config=_as_is(model, 1)
            )  # the first call pays for warming up
            start = time.perf_counter()
            outputs = model.transcribe([audio[i] for i in order], override_config=_as_is(model, batch_size))
        except ValueError as error:
            if "tensor of length 1" not in str(error):
                raise
            raise TutorError(
                "an utterance of the manifest is a single frame of audio (10 to 20 ms), which NeMo refuses "
                "on a machine with a "
                "GPU; leave it out, or evaluate with --runtime onnx."
            ) from None
        seconds = time.perf_counter() - start
    for i, output in zip(order, outputs, strict=True):
        hypotheses[i] = output if isinstance(output, str) else output.text
    return hypotheses, seconds


def _as_is(model: Any, batch_size: int) -> Any:
    """NeMo 3 pads arrays below a second with silence, but no files; an utterance is the same however it
    comes.
    """
    config = model.get_transcribe_config()
    config.batch_size, config.num_workers, config.verbose, config.pad_min_duration = batch_size, 0, False, 0.0
    return config


def _samples(row: Utterance, sample_rate: int) -> np.ndarray:
    import librosa

    # librosa rounds down to whole samples, which in floating point can be one too few; a microsecond is less
    # than a sample.
    samples, _ = librosa.load(
        row.audio, sr=sample_rate, mono=True, offset=row.offset, duration=row.duration + 1e-6
    )
    return samples
