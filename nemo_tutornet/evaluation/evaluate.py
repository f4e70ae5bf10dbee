# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of NeMo recognisers, exported `.onnx` files and folders for onnx-asr on a manifest.

It measures WER and CER (by jiwer) with bootstrap intervals, size, and speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.errors import TutorError
from nemo_tutornet.evaluation.decoders import (
    ATTENTION,
    CTC,
    check_decoder,
    decoder_of,
    no_such_decoder,
    select_decoder,
)
from nemo_tutornet.evaluation.onnx_asr_model import (
    OnnxAsrModel,
    folder_decoder,
    graphs_of,
    is_onnx_asr_folder,
    require_onnx_asr,
)
from nemo_tutornet.evaluation.onnx_model import OnnxCTCModel, model_name_of
from nemo_tutornet.evaluation.options import EvaluationOptions
from nemo_tutornet.evaluation.scoring import Evaluation, score
from nemo_tutornet.evaluation.text_processing import TextProcessing
from nemo_tutornet.evaluation.transcribe import read_blocks, time_fastest, transcribe
from nemo_tutornet.export.onnx_export import PRECISIONS, write_onnx
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import ctc_class
from nemo_tutornet.nemo_io.weights import weights_sha256
from nemo_tutornet.utils.progress import PartReport, no_report

RUNTIMES = ("nemo", "onnx")


def evaluate(
    models: Sequence[Path],
    manifest: Path,
    batch_size: int = 16,
    runtime: str = "nemo",
    precisions: Sequence[str] = PRECISIONS,
    report: PartReport = no_report,
    options: EvaluationOptions | None = None,
    calibrate: Path | None = None,
) -> list[Evaluation]:
    """Transcribes a manifest with each model, as a user would, and counts the errors.

    Args:
        models: `.nemo` files of recognisers (CTC, hybrid, transducer, attention), which NeMo's own class
            restores; `.onnx` files that the export wrote, or that NeMo's exporter wrote of a CTC model whose
            `.nemo` has the same name and is beside the file or among `models`; folders for onnx-asr.
        manifest: NeMo manifest, JSON lines with `text`. Rows without `text` are left out. An empty `text`
            means that the audio contains no speech.
        batch_size: number of utterances that NeMo transcribes together. ONNX Runtime processes them one by
            one, because a graph without the input `length` has no masks.
        runtime: `nemo`, or `onnx` to run `.nemo` files of CTC models in ONNX Runtime too, in each precision.
            `.onnx` files always run in ONNX Runtime, folders in onnx-asr.
        precisions: precisions for the runtime `onnx`, any of `fp32`, `fp16` and `int8`. Of a folder for
            onnx-asr, those that it holds are evaluated.
        report: shows the model that transcribes, and how many utterances it has transcribed.
        options: decoder, text processing, channel and prompt; None for the defaults.
        calibrate: NeMo manifest; with the runtime `onnx`, also evaluates static int8 that is calibrated on
            its utterances, as `int8 static`. They should be others than those of `manifest`.

    Returns:
        One evaluation per model, or with the runtime `onnx` one per `.nemo` file and precision. Real-time
        factors are comparable within one runtime only.

    Raises:
        TutorError: the runtime, a precision or an option is unknown, a model cannot be read or is not
            supported, or lacks the decoder, or the manifest is invalid or has no transcripts.
    """
    options = options or EvaluationOptions()
    check_decoder(options.decoder)
    if runtime not in RUNTIMES:
        raise TutorError(f"there is no runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}.")
    if calibrate is not None and (runtime != "onnx" or "int8" not in precisions):
        raise TutorError(
            f"{calibrate} calibrates static int8, which is not evaluated here; add --runtime onnx (and "
            "--precision int8)."
        )
    models = [Path(path) for path in models]
    archives = _open_models(models, options, as_onnx=runtime == "onnx")
    rows, untranscribed = read_transcribed(Path(manifest), options.channel)
    results: list[Evaluation] = []
    for path in models:
        if path.suffix == ".onnx" and path not in archives:
            graph = OnnxCTCModel(path, _nemo_of(path, archives))
            results.append(_evaluate_graph(path, graph, rows, 1, report, options.processing)[0])
        elif path not in archives:
            held = [one for one in PRECISIONS if graphs_of(path, one)]
            for precision in [one for one in held if one in precisions] or held[:1]:
                results.append(_evaluate_folder(path, precision, rows, report, options.processing))
        elif runtime == "nemo":
            results.append(_evaluate_nemo(archives[path], rows, batch_size, 1, report, options)[0])
        else:
            with tempfile.TemporaryDirectory() as folder:
                report(f"writing {path} as ONNX")
                files = write_onnx(archives[path], Path(folder) / "model.onnx", precisions)
                if calibrate is not None:
                    static = Path(folder) / "static.onnx"
                    files += write_onnx(archives[path], static, ["int8"], calibrate=calibrate)
                for written in files:
                    graph = OnnxCTCModel(written.path)
                    results.append(_evaluate_graph(path, graph, rows, 1, report, options.processing)[0])
    name = Path(manifest).name
    return [replace(result, untranscribed=untranscribed, manifest=name) for result in results]


def _open_models(
    models: Sequence[Path], options: EvaluationOptions, as_onnx: bool
) -> dict[Path, NemoArchive]:
    """Checks that each model can be evaluated, before any of them is run.

    Args:
        models: as for `evaluate`.
        options: as for `evaluate`.
        as_onnx: whether `.nemo` files will be written as ONNX.

    Returns:
        The archives of the `.nemo` files and of the folders that one was unpacked to.

    Raises:
        TutorError: a model cannot be evaluated so.
    """
    archives = {}
    for path in models:
        if is_onnx_asr_folder(path):
            decoder = folder_decoder(path)
            if not any(graphs_of(path, precision) for precision in PRECISIONS):
                raise TutorError(f"{path} holds no .onnx file; write the folder again.")
            require_onnx_asr()
        elif path.suffix == ".onnx" and not path.is_dir():
            if not path.is_file():
                raise TutorError(
                    f"there is no file {path}; give .nemo and .onnx files, or folders of onnx-asr."
                )
            decoder = CTC
        elif path.is_dir() and any(path.glob("*.onnx")):
            raise TutorError(
                f"{path} is a folder with .onnx files and without config.json, which onnx-asr needs; give "
                "one of the files, or write the folder again."
            )
        else:
            archives[path] = NemoArchive(path)
            decoder = decoder_of(archives[path], options.decoder)
            if as_onnx:
                ctc_class(archives[path].config, path, "a model for --runtime onnx")
        if options.decoder not in (None, decoder):
            raise TutorError(no_such_decoder(path, options.decoder, decoder))
        if options.prompt and not (path in archives and decoder == ATTENTION):
            raise TutorError(
                f"{path} is no .nemo of an attention model, so it takes no prompt; leave out --prompt."
            )
    return archives


def _nemo_of(graph: Path, archives: Mapping[Path, NemoArchive]) -> NemoArchive | Path | None:
    """Finds the `.nemo` that describes a graph without metadata: one with the name of the graph's model.

    A file in the graph's folder comes before one from elsewhere. Another name is never taken, not even that
    of the only `.nemo` of the command: a graph does not show whether the order of its labels and its front
    end are those of that model, and with other ones its error rate would be wrong without a warning.
    """
    name = model_name_of(graph)
    beside = graph.with_name(f"{name}.nemo")
    given = [path for path in archives if path.name.removesuffix(".nemo") == name]
    near = [path for path in given if path.absolute().parent == graph.absolute().parent]
    if near or (len(given) == 1 and not beside.is_file()):
        return archives[(near or given)[0]]
    return beside if beside.is_file() else None


def read_transcribed(manifest: Path, channel: int | str | None = None) -> tuple[list[Utterance], int]:
    """Reads the rows of a manifest that have a transcript.

    Args:
        manifest: NeMo manifest.
        channel: as in `EvaluationOptions`.

    Returns:
        The rows with a `text`, and the number of rows without one.

    Raises:
        TutorError: the manifest is invalid, or no row has a word.
    """
    read = read_manifest(manifest, channel=channel)
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
        model: archive of a recogniser, or the path of an `.onnx` file that the export wrote.
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
        return _evaluate_nemo(model, rows, batch_size, passes, report, EvaluationOptions())
    return _evaluate_graph(model, OnnxCTCModel(model), rows, passes, report, TextProcessing())


def _evaluate_nemo(
    archive: NemoArchive,
    rows: Sequence[Utterance],
    batch_size: int,
    passes: int,
    report: PartReport,
    options: EvaluationOptions,
) -> tuple[Evaluation, list[str]]:
    report(f"loading {archive.path}")  # by itself, because the time left is computed from the mean speed
    model = restore_ctc(archive)
    checksum = weights_sha256(model)
    decoder = decoder_of(archive, options.decoder)
    select_decoder(model, decoder)
    part = f"transcribing with {archive.path}"
    report(part, 0, len(rows))
    hypotheses, seconds = transcribe(
        model, rows, batch_size, passes, lambda done: report(part, done, len(rows)), options.prompt
    )
    parameters = sum(p.numel() for p in model.parameters())
    labels = describe_model(model).labels
    result = score(
        archive.path,
        "nemo",
        rows,
        hypotheses,
        seconds,
        parameters,
        labels=labels,
        decoder=decoder,
        processing=options.processing,
        weights_sha256=checksum,
    )
    return result, hypotheses


def _evaluate_graph(
    name: Path,
    graph: OnnxCTCModel,
    rows: Sequence[Utterance],
    passes: int,
    report: PartReport,
    processing: TextProcessing,
) -> tuple[Evaluation, list[str]]:
    part = f"transcribing with {name} ({graph.weights})"
    hypotheses, seconds = _transcribe_one_by_one(graph, rows, passes, part, report)
    runtime, size = f"onnx {graph.weights}", graph.path.stat().st_size
    result = score(
        name,
        runtime,
        rows,
        hypotheses,
        seconds,
        graph.parameters,
        size,
        labels=graph.labels,
        processing=processing,
        weights_sha256=graph.weights_sha256,
    )
    return result, hypotheses


def _evaluate_folder(
    folder: Path, precision: str, rows: Sequence[Utterance], report: PartReport, processing: TextProcessing
) -> Evaluation:
    model = OnnxAsrModel(folder, precision)
    part = f"transcribing with {folder} ({precision})"
    hypotheses, seconds = _transcribe_one_by_one(model, rows, 1, part, report)
    return score(
        folder,
        f"onnx-asr {precision}",
        rows,
        hypotheses,
        seconds,
        model.parameters,
        model.size,
        labels=model.labels,
        decoder=model.decoder,
        processing=processing,
        weights_sha256=model.weights_sha256,
    )


def _transcribe_one_by_one(
    model: OnnxCTCModel | OnnxAsrModel, rows: Sequence[Utterance], passes: int, part: str, report: PartReport
) -> tuple[list[str], float]:
    report(part, 0, len(rows))
    longest = max(rows, key=lambda row: row.duration)
    # The first call includes warm-up, so it is not timed.
    model.transcribe([read_samples(longest, model.sample_rate)])

    def compute(audio: Sequence[np.ndarray], before: int) -> list[str]:
        texts: list[str] = []
        for samples in audio:
            texts += model.transcribe([samples])
            report(part, before + len(texts), len(rows))
        return texts

    hypotheses: list[str] = []
    seconds = 0.0
    for _, audio in read_blocks(rows, range(len(rows)), model.sample_rate):
        texts, fastest = time_fastest(partial(compute, audio, len(hypotheses)), passes)
        hypotheses, seconds = hypotheses + texts, seconds + fastest
    return hypotheses, seconds
