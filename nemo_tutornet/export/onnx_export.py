# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files of a student, with what a client needs to run them without NeMo in their metadata."""

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
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.layers import measure_encoder
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.stock_config import ctc_class
from nemo_tutornet.utils.files import staging_directory

# What NeMo 3.0.0's exporter takes by itself; nemo2riva makes its own graph, with opset 16.
OPSET = 17
# Dynamic quantization has integer kernels for these on the CPU.
QUANTIZED = ("Conv", "MatMul")
_PROTOBUF_LIMIT = 2_000_000_000


@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        path: the `.onnx` file.
        precision: one of `PRECISIONS`, of the weights; inputs and outputs are fp32 in every one.
        megabytes: its size.
        opset: version of ONNX's standard operators.
        note: what its user should know, a sentence; None where there is nothing.
    """

    path: Path
    precision: str
    megabytes: float
    opset: int
    note: str | None = None


def require(*packages: str) -> None:
    """Makes sure that the packages of the `onnx` extra are there.

    Raises:
        TutorError: one is not.
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
    """Writes a stock `.nemo` as ONNX with NeMo's own exporter.

    The graph goes from features to log-probabilities: input `audio_signal` `[B, F, T]` (and `length` `[B]`
    where the encoder needs it), output `logprobs` `[B, T', V + 1]` with the blank last. NeMo switches masked
    convolutions off in it, so only
    valid frames may enter: one utterance at a time, or several of the same length. The front end is not in
    the graph; its parameters are in the file's metadata.

    Legend: `B` utterances, `F` mel bins, `T` frames of the front end, `T'` frames of the network, `V` labels.

    Args:
        nemo_file: a stock CTC model, its path or its archive; it is restored once more, because exporting
            changes a model in place.
        destination: `X.onnx`, for fp32; the others are `X.fp16.onnx` and `X.int8.onnx` beside it.
        precisions: which of `PRECISIONS` to write.
        sherpa: also write `X.sherpa.onnx` and `X.tokens.txt` for sherpa-onnx.
        called: the model's name in messages, where its file is a temporary one.

    Raises:
        TutorError: a missing package, a bad name, a file that is no CTC model, a front end that the metadata
            cannot describe, a model that sherpa-onnx cannot run, or a destination that cannot be written.
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
    target = ctc_class(archive.config, called, "a model to write as ONNX")
    model = restore_ctc(archive)
    info = describe_model(model)
    metadata = OnnxMetadata(
        target=target,
        labels=list(info.labels),
        tokenizer=(info.tokenizer or "char").lower(),
        parameters=info.parameters,
        front_end=front_end_of(info.preprocessor, called),
        subsampling_factor=round(measure_encoder(model).frame_ms / info.front_end.stride_ms),
        precision="fp32",
    )
    note = sherpa_note(metadata, called) if sherpa else None
    plain = _graph(model, called)
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
    try:
        with staging_directory(destination.expanduser().parent.resolve()) as stage:
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


def _graph(model: Any, called: Path) -> Any:
    """The model's fp32 graph, as an `onnx.ModelProto`."""
    import onnx

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > _PROTOBUF_LIMIT:
        raise TutorError(
            f"{called} has {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB at most, so it was not "
            "written."
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), suppress_nemo_logs():
        warnings.simplefilter("ignore")  # the tracer's remarks about NeMo's code
        path = str(Path(folder) / "model.onnx")
        model.export(path, onnx_opset_version=OPSET)
        return onnx.load(path)


def _converted(plain: Any, precision: str) -> Any:
    """The fp32 graph in another precision; `plain` is not changed."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(plain)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one line for each weight below fp16's smallest number
            converted = convert_float_to_float16(proto, keep_io_types=True)
        # It appends the casts of the inputs at the end, and ONNX wants every node after those that it reads.
        OnnxModel(converted).topological_sort()
        return converted
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder, _quiet_root_logger():
            path = Path(folder) / "int8.onnx"
            # Signed weights would run five times slower: ONNX Runtime has a fast integer convolution for
            # unsigned ones only.
            quantize_dynamic(proto, path, op_types_to_quantize=list(QUANTIZED), weight_type=QuantType.QUInt8)
            return onnx.load(str(path))
    return proto


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """The quantizer advises a preparation that NeMo's exporter has done already: there is nothing left to
    fuse.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def with_metadata(proto: Any, entries: Mapping[str, str]) -> Any:
    """The graph, changed in place, with these entries and no others."""
    del proto.metadata_props[:]
    for key, value in entries.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def _describe(path: Path, note: str | None) -> OnnxFile:
    import onnx
    import onnxruntime

    # A session is what proves that every operator has a kernel here.
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    imported = onnx.load(str(path), load_external_data=False).opset_import
    return OnnxFile(
        path=path,
        precision=session.get_modelmeta().custom_metadata_map["precision"],
        megabytes=path.stat().st_size / 1e6,
        opset=next(item.version for item in imported if item.domain in ("", "ai.onnx")),
        note=note,
    )
