# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a student to ONNX files, whose metadata lets a client run them without NeMo."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_calibration import calibration_features
from nemo_tutornet.export.onnx_fixed import frames_of, mobile_note, with_fixed_shapes
from nemo_tutornet.export.onnx_layout import in_fast_layout
from nemo_tutornet.export.onnx_length import PADDING_IS_IGNORED, ignores_padding, pads_safely, reads_length
from nemo_tutornet.export.onnx_metadata import PRECISIONS, OnnxMetadata, front_end_of
from nemo_tutornet.export.onnx_precision import in_precision
from nemo_tutornet.export.onnx_sherpa import sherpa_note, sherpa_tokens, with_length
from nemo_tutornet.export.onnx_streaming import (
    exports_chunks,
    is_cache_aware,
    refuse_large_context,
    streaming_entries,
)
from nemo_tutornet.export.receptive_field import receptive_field
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.layers import measure_encoder
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import ctc_class
from nemo_tutornet.nemo_io.weights import weights_sha256
from nemo_tutornet.utils.files import expand_user, staging_directory

# The default of NeMo 3.0.0's exporter. nemo2riva makes its own graph, with opset 16.
OPSET = 17
_PROTOBUF_LIMIT = 2_000_000_000
_NOT_STREAMED = (
    "The model is cache-aware, but no graph for streaming was written: its features are normalised over the "
    "whole utterance; train it with model.preprocessor.normalize=NA."
)


@dataclass(frozen=True)
class OnnxFile:
    """Description of one written ONNX file.

    Attributes:
        path: the `.onnx` file.
        precision: precision of the weights, one of `PRECISIONS`. Inputs and outputs are always fp32.
        megabytes: size of the file in megabytes (10^6 bytes).
        opset: version of ONNX's standard operators.
        note: a sentence for the user of the file; None if there is nothing to note.
    """

    path: Path
    precision: str
    megabytes: float
    opset: int
    note: str | None = None


def require(*packages: str) -> None:
    """Checks that packages of the `onnx` extra can be imported.

    Args:
        packages: names of the packages.

    Raises:
        TutorError: a package cannot be imported.
    """
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise TutorError(
                f'{package} cannot be imported ({error}); install it with pip install "nemo_tutornet[onnx]".'
            ) from None


def write_onnx(
    nemo_file: Path | NemoArchive,
    destination: Path,
    precisions: Sequence[str] = ("fp32",),
    sherpa: bool = False,
    called: Path | None = None,
    calibrate: Path | None = None,
    fixed_seconds: float | None = None,
) -> list[OnnxFile]:
    """Exports a stock `.nemo` file to ONNX with NeMo's own exporter.

    The graph computes log-probabilities from features. Its input is `audio_signal` `[B, F, T]` (and `length`
    `[B]` if the encoder needs it). Its output is `logprobs` `[B, T', V + 1]` with the blank last. A graph
    with `length` reads nothing behind it, so utterances may be padded. In a graph without it, NeMo's exporter
    has disabled the masked convolutions, so its input must contain valid frames only: one utterance at a
    time, or several of the same length. The front end is not in the graph. Its parameters are in the file's
    metadata.

    Legend: `B` utterances, `F` mel bins, `T` frames of the front end, `T'` frames of the network, `V` labels.

    Args:
        nemo_file: path or archive of a stock CTC model. The model is restored from it again, because the
            export changes a model in place.
        destination: `X.onnx`, the file for fp32. The other precisions are written beside it as `X.fp16.onnx`
            and `X.int8.onnx`.
        precisions: the precisions to write, of `PRECISIONS`.
        sherpa: also write `X.sherpa.onnx` and `X.tokens.txt` for sherpa-onnx, and for a cache-aware model
            `X.streaming.onnx` for its streaming recogniser.
        called: the model's name in error messages, for use when `nemo_file` is temporary.
        calibrate: a NeMo manifest. `int8` is then static quantization, calibrated on utterances of it, and
            otherwise dynamic quantization.
        fixed_seconds: writes graphs for one utterance of this length in seconds, without dynamic axes and
            without `length`.

    Returns:
        A description of each `.onnx` file that was written, in the order of `PRECISIONS`, and last those for
        sherpa-onnx.

    Raises:
        TutorError: a package is missing, a name or precision is invalid, the file is not a CTC model, the
            weights exceed the 2 GB of one ONNX file, the metadata cannot describe the front end, sherpa-onnx
            cannot run the model, or the destination cannot be written.
    """
    require("onnx", "onnxruntime")
    destination = Path(destination)
    _check_request(destination, precisions, sherpa, calibrate, fixed_seconds)
    archive = NemoArchive.of(nemo_file)
    called = called or archive.path
    model, metadata = restore_for_onnx(archive, called)
    note = sherpa_note(metadata, called) if sherpa else None
    frames = None if fixed_seconds is None else frames_of(metadata.front_end, fixed_seconds)
    features = None
    if calibrate is not None:
        features = calibration_features(metadata.front_end, calibrate)
    # In a graph of a fixed length nothing is padded, and converters for phones do not know all of the masks.
    masked = reads_length(model) and frames is None
    padding = PADDING_IS_IGNORED if pads_safely(model) else {}
    plain = graph_with_length(model, called) if masked else _graph(model, called)
    metadata = replace(metadata, receptive_field=receptive_field(plain))
    plain = in_fast_layout(plain)
    files: dict[Path, Any] = {}
    notes: dict[Path, str | None] = {}
    for name in (name for name in PRECISIONS if name in precisions):
        path = destination if name == "fp32" else destination.with_suffix(f".{name}.onnx")
        entries = {**replace(metadata, precision=name).as_strings(), **(padding if masked else {})}
        proto, notes[path], described = in_precision(plain, name, features)
        entries.update(described)
        if frames is not None:
            proto = with_fixed_shapes(proto, frames)
            entries["fixed_frames"] = str(frames)
            notes[path] = " ".join(filter(None, (notes[path], mobile_note(proto)))) or None
        files[path] = with_metadata(proto, entries)
    if sherpa:
        path, entries = destination.with_suffix(".sherpa.onnx"), {**metadata.as_strings(), **padding}
        proto = plain if masked else in_fast_layout(graph_with_length(restore_ctc(archive), called))
        files[path] = with_metadata(with_length(proto), entries)
        if is_cache_aware(model) and metadata.front_end["normalize"] not in ("NA", None):
            note = " ".join(filter(None, (note, _NOT_STREAMED)))
        elif is_cache_aware(model):
            refuse_large_context(model, called)
            streaming = destination.with_suffix(".streaming.onnx")
            files[streaming] = _streaming_graph(archive, metadata, called)
        notes[path] = note
    try:
        with staging_directory(expand_user(destination).parent.resolve()) as stage:
            for path, proto in files.items():
                (stage / path.name).write_bytes(proto.SerializeToString())
            if sherpa:
                (stage / destination.name).with_suffix(".tokens.txt").write_text(
                    sherpa_tokens(metadata), encoding="utf-8"
                )
    except OSError as error:
        raise TutorError(
            f"{called} cannot be written as {destination.name} ({error.strerror or error})."
        ) from None
    return [describe_onnx(path, notes.get(path)) for path in files]


def _check_request(
    destination: Path,
    precisions: Sequence[str],
    sherpa: bool,
    calibrate: Path | None,
    fixed_seconds: float | None,
) -> None:
    """Refuses arguments of `write_onnx` before any file is read."""
    if destination.suffix != ".onnx":
        raise TutorError(f"{destination} must end in .onnx.")
    if destination.is_dir():
        raise TutorError(f"{destination} is a folder; give the name of a file to write.")
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown or not (precisions or sherpa):
        raise TutorError(
            f"there is no ONNX precision {', '.join(unknown) or 'given'}; choose from "
            f"{', '.join(PRECISIONS)}."
        )
    if calibrate is not None and "int8" not in precisions:
        raise TutorError(f"{calibrate} calibrates int8, which was not asked for; add --int8.")
    if fixed_seconds is not None and sherpa:
        raise TutorError("sherpa-onnx reads audio of any length; export without --sherpa or --fixed-seconds.")


def _streaming_graph(archive: NemoArchive, metadata: OnnxMetadata, called: Path) -> Any:
    """Exports the graph of a cache-aware model that reads chunks, with its metadata.

    NeMo's exporter changes a model, so each graph needs a fresh one.
    """
    model = restore_ctc(archive)
    with exports_chunks(model):
        chunks = _graph(model, called)
    return with_metadata(chunks, {**metadata.as_strings(), **streaming_entries(model)})


def restore_for_onnx(archive: NemoArchive, called: Path) -> tuple[Any, OnnxMetadata]:
    """Restores a model to export, and describes it as the metadata of its fp32 graph do.

    Args:
        archive: the model's file.
        called: the model's name in error messages.

    Returns:
        The model in eval mode, and the metadata.

    Raises:
        TutorError: the file is not a CTC model, or the metadata cannot describe its front end.
    """
    target = ctc_class(archive.config, called, "a model to write as ONNX")
    model = restore_ctc(archive)
    info = describe_model(model)
    return model, OnnxMetadata(
        target=target,
        labels=list(info.labels),
        tokenizer=(info.tokenizer or "char").lower(),
        parameters=info.parameters,
        front_end=front_end_of(info.preprocessor, called),
        subsampling_factor=round(measure_encoder(model).frame_ms / info.front_end.stride_ms),
        precision="fp32",
        weights_sha256=weights_sha256(model),
    )


def graph_with_length(model: Any, called: Path) -> Any:
    """Exports a model's fp32 graph with the inputs `audio_signal` and `length`, which ignores padding.

    Args:
        model: the model, freshly restored. NeMo's exporter changes it, so it cannot be used afterwards.
        called: the model's name in error messages.

    Returns:
        The graph, an `onnx.ModelProto`.
    """
    with ignores_padding(model):
        return _graph(model, called)


def _graph(model: Any, called: Path) -> Any:
    """Exports the model's fp32 graph as an `onnx.ModelProto`."""
    import onnx

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > _PROTOBUF_LIMIT:
        raise TutorError(
            f"{called} has {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB at most, so it was not "
            "written."
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), suppress_nemo_logs():
        warnings.simplefilter("ignore")  # the tracer warns about NeMo's code
        path = str(Path(folder) / "model.onnx")
        model.export(path, onnx_opset_version=OPSET)
        return onnx.load(path)


def with_metadata(proto: Any, entries: Mapping[str, str]) -> Any:
    """Replaces all metadata entries of a graph, in place.

    Args:
        proto: the graph, an `onnx.ModelProto`.
        entries: the new entries.

    Returns:
        The same graph.
    """
    del proto.metadata_props[:]
    for key, value in entries.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def describe_onnx(path: Path, note: str | None) -> OnnxFile:
    """Describes an ONNX file that was written, and proves that ONNX Runtime can open it.

    Args:
        path: the file, with the metadata of this package.
        note: a sentence for the user of the file; None if there is nothing to note.
    """
    import onnx
    import onnxruntime

    # Creating a session proves that every operator has a kernel on this machine.
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    imported = onnx.load(str(path), load_external_data=False).opset_import
    return OnnxFile(
        path=path,
        precision=session.get_modelmeta().custom_metadata_map["precision"],
        megabytes=path.stat().st_size / 1e6,
        opset=next(item.version for item in imported if item.domain in ("", "ai.onnx")),
        note=note,
    )
