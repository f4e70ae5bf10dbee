# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a student to ONNX files, whose metadata lets a client run them without NeMo."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_metadata import PRECISIONS, OnnxMetadata, front_end_of
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
from nemo_tutornet.utils.files import expand_user, staging_directory

# The default of NeMo 3.0.0's exporter. nemo2riva makes its own graph, with opset 16.
OPSET = 17
# Operators with integer kernels on the CPU for dynamic quantization.
QUANTIZED = ("Conv", "MatMul")
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
) -> list[OnnxFile]:
    """Exports a stock `.nemo` file to ONNX with NeMo's own exporter.

    The graph computes log-probabilities from features. Its input is `audio_signal` `[B, F, T]` (and `length`
    `[B]` if the encoder needs it). Its output is `logprobs` `[B, T', V + 1]` with the blank last. NeMo
    disables masked convolutions in the graph, so the input must contain valid frames only: one utterance at
    a time, or several of the same length. The front end is not in the graph. Its parameters are in the
    file's metadata.

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
    archive = NemoArchive.of(nemo_file)
    called = called or archive.path
    model, metadata = restore_for_onnx(archive, called)
    note = sherpa_note(metadata, called) if sherpa else None
    plain = _graph(model, called)
    metadata = replace(metadata, receptive_field=receptive_field(plain))
    files: dict[Path, Any] = {}
    for name in PRECISIONS:
        if name in precisions:
            path = destination if name == "fp32" else destination.with_suffix(f".{name}.onnx")
            files[path] = with_metadata(
                _converted(plain, name), replace(metadata, precision=name).as_strings()
            )
    if sherpa:
        files[destination.with_suffix(".sherpa.onnx")] = with_metadata(
            with_length(plain), metadata.as_strings()
        )
        if is_cache_aware(model) and metadata.front_end["normalize"] not in ("NA", None):
            note = " ".join(filter(None, (note, _NOT_STREAMED)))
        elif is_cache_aware(model):
            refuse_large_context(model, called)
            # NeMo's exporter has changed the model, so the second graph needs a fresh one.
            fresh = restore_ctc(archive)
            with exports_chunks(fresh):
                chunks = _graph(fresh, called)
            files[destination.with_suffix(".streaming.onnx")] = with_metadata(
                chunks, {**metadata.as_strings(), **streaming_entries(fresh)}
            )
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
    return [_describe(path, note if path.name.endswith(".sherpa.onnx") else None) for path in files]


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
    )


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


def _converted(plain: Any, precision: str) -> Any:
    """Converts a copy of the fp32 graph to another precision."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(plain)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one warning for each weight below fp16's smallest number
            converted = convert_float_to_float16(proto, keep_io_types=True)
        # The conversion appends the casts of the inputs at the end, but ONNX requires each node to follow
        # the nodes whose outputs it reads.
        OnnxModel(converted).topological_sort()
        return converted
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder, _quiet_root_logger():
            path = Path(folder) / "int8.onnx"
            # Signed weights would run five times slower, because ONNX Runtime has a fast integer convolution
            # for unsigned weights only.
            quantize_dynamic(proto, path, op_types_to_quantize=list(QUANTIZED), weight_type=QuantType.QUInt8)
            return onnx.load(str(path))
    return proto


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hides warnings of the root logger.

    The quantizer recommends a preparation that NeMo's exporter has already done, so nothing is left to fuse.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


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


def _describe(path: Path, note: str | None) -> OnnxFile:
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
