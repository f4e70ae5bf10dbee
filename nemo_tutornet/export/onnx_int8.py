# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Static quantization of an ONNX graph to int8, calibrated on utterances of a manifest.

Weights are signed 7-bit integers with one scale a channel, activations unsigned 8-bit integers with one scale
a tensor. The eighth bit of the weights is left unused, because on processors with AVX2 and without VNNI the
sum of two products of ONNX Runtime's kernel would saturate at 16 bits (its `reduce_range`).

Before that, the channels of each activation are brought closer to each other. A channel is divided by a
power of two in front of a ReLU, and the weights that read it are multiplied by the same number. That
changes no result: powers of two are exact, and a ReLU passes a positive factor on. It follows Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, 2019
(https://arxiv.org/abs/1906.04721), with the ranges of the activations in it, as Xiao et al., SmoothQuant,
2023 (https://arxiv.org/abs/2211.10438).

Legend: `F` mel bins, `T` frames, `C` channels.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs

MOST_UTTERANCES = 100
# Frames of the front end, 10 s of most. Longer utterances are cut, so that calibration needs little memory.
MOST_FRAMES = 1000
_HELD_OUT = 16  # utterances on which the quantized graph is compared with the fp32 graph, at most
# Share of frames by which a layer left in fp32 must raise the agreement.
_GAIN = 0.002
# Exponents of a channel's range and of the largest weight that reads it, chosen on AN4.
_RANGE, _WEIGHT = 0.3, 0.3


@dataclass(frozen=True)
class Quantized:
    """A statically quantized graph.

    Attributes:
        graph: the graph, an `onnx.ModelProto` with pairs of QuantizeLinear and DequantizeLinear.
        utterances: number of utterances it was calibrated on.
        agreement: share of the frames of held-out utterances whose best label is that of the fp32 graph.
        in_fp32: convolutions that were left in fp32, because that raised the agreement.
    """

    graph: Any
    utterances: int
    agreement: float
    in_fp32: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence for the user of the graph."""
        left = f", {len(self.in_fp32)} convolutions left in fp32" if self.in_fp32 else ""
        return (
            f"static int8, calibrated on {self.utterances} utterances{left}; {100 * self.agreement:.1f} % of "
            "the frames of utterances held out keep the best label of fp32."
        )


def calibration_features(front_end: Mapping[str, Any], manifest: Path) -> list[np.ndarray]:
    """Computes the features of utterances of a manifest, evenly spread over it.

    Args:
        front_end: the parameters of NeMo's front end, without dither and padding.
        manifest: NeMo manifest. Transcripts are not read.

    Returns:
        `[1, F, T]` for at most `MOST_UTTERANCES` utterances, valid frames only, at most `MOST_FRAMES` each.

    Raises:
        TutorError: the manifest is invalid, names fewer than two utterances with speech to measure, or a
            file cannot be read.
    """
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    rows = read_manifest(manifest)
    with suppress_nemo_logs():
        preprocessor = AudioToMelSpectrogramPreprocessor(**front_end).eval()
    sample_rate = int(front_end["sample_rate"])
    step = max(1, len(rows) // MOST_UTTERANCES)
    features = [_features(preprocessor, sample_rate, row) for row in rows[::step][:MOST_UTTERANCES]]
    features = [item for item in features if item.shape[2] > 1]
    if len(features) < 2:
        raise TutorError(
            f"{manifest} names fewer than two utterances of at least two frames; int8 needs some to "
            "calibrate with, and others to measure the result on."
        )
    return features


def _features(preprocessor: Any, sample_rate: int, row: Utterance) -> np.ndarray:
    import torch
    from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

    try:
        samples = AudioSegment.from_file(
            str(row.audio), target_sr=sample_rate, offset=row.offset, duration=row.duration
        ).samples
    except Exception as error:  # the readers behind NeMo's have no other common base class
        raise TutorError(
            f"{row.audio} cannot be read ({error}); fix the file or remove its line from the manifest."
        ) from None
    if samples.ndim != 1:
        raise TutorError(f"{row.audio} has {samples.shape[1]} channels; calibrate with mono files.")
    signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None]
    with torch.no_grad():
        features, length = preprocessor(input_signal=signal, length=torch.tensor([signal.shape[1]]))
    return features[:, :, : min(int(length), MOST_FRAMES)].numpy()


def quantize_static(graph: Any, features: Sequence[np.ndarray]) -> Quantized:
    """Quantizes a graph to int8 and leaves layers in fp32 where that keeps more frames' best labels.

    Args:
        graph: the fp32 graph, an `onnx.ModelProto` with the input `audio_signal` (and `length`).
        features: at least two utterances `[1, F, T]`. Every sixth, at most 16, is not calibrated on but
            held out, to measure the agreement.

    Returns:
        The quantized graph and its agreement.
    """
    every = max(2, min(6, len(features)))
    held_out = list(features[::every])[:_HELD_OUT]
    used = [item for i, item in enumerate(features) if i % every] or list(features)
    with tempfile.TemporaryDirectory() as folder, quiet_root_logger():
        equal = equalize_channels(graph, used)
        ranges = _ranges(equal, used, Path(folder))
        session = _session(graph)
        expected = [_best(session, item) for item in held_out]

        def attempt(in_fp32: tuple[str, ...]) -> Quantized:
            quantized = _quantized(equal, ranges, in_fp32, Path(folder))
            session = _session(quantized)
            found = [_best(session, item) for item in held_out]
            same = np.concatenate([a == b for a, b in zip(expected, found, strict=True)])
            return Quantized(quantized, len(used), float(same.mean()), in_fp32)

        best = attempt(())
        for layers in _sensitive(equal):
            tried = attempt((*best.in_fp32, *layers))
            if tried.agreement >= best.agreement + _GAIN:
                best = tried
    return best


def equalize_channels(graph: Any, features: Sequence[np.ndarray]) -> Any:
    """Copies a graph and brings the ranges of the channels of its activations closer to each other.

    It changes activations that convolutions write, through an addition and a ReLU or directly, and that only
    convolutions read. The results are the same to the bit, but for sums that leave the range of fp32.

    Args:
        graph: an `onnx.ModelProto` in fp32.
        features: utterances `[1, F, T]` to measure the ranges on.

    Returns:
        The copy.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    places = _places(proto.graph)
    largest = _largest_of_channels(proto, [name for name, _, _ in places], features)
    weights = {item.name: item for item in proto.graph.initializer}

    def scale(name: str, factors: np.ndarray, axis: int) -> None:
        values = numpy_helper.to_array(weights[name])
        shape = [1] * values.ndim
        shape[axis] = -1
        scaled = np.ascontiguousarray(values * factors.reshape(shape).astype(values.dtype))
        weights[name].CopyFrom(numpy_helper.from_array(scaled, name))

    for name, writers, readers in places:
        peaks = largest[name]
        dense = [node for node in readers if _groups(node) == 1]
        if not dense:
            continue  # a depthwise convolution has a scale for each channel anyway
        reach = np.max([_reach(numpy_helper.to_array(weights[node.input[1]])) for node in dense], axis=0)
        alive = peaks > 1e-4 * peaks.max()
        if not alive.any():
            continue
        factors = np.where(alive, peaks, 1.0) ** _RANGE / np.maximum(reach, 1e-2) ** _WEIGHT
        typical = np.exp(np.log(factors[alive]).mean())
        factors = np.where(alive, 2.0 ** np.round(np.log2(factors / typical)), 1.0)
        for node in writers:
            for item in node.input[1:]:
                scale(item, 1 / factors, axis=0)
        for node in readers:
            scale(node.input[1], factors, axis=1 if _groups(node) == 1 else 0)
    return proto


def _places(graph: Any) -> list[tuple[str, list[Any], list[Any]]]:
    """Finds activations whose channels can be scaled: name, convolutions that write it, and that read it."""
    writer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    initializers = {item.name for item in graph.initializer}
    outputs = {item.name for item in graph.output}

    def sole(name: str, kind: str) -> Any:
        node = writer.get(name)
        fits = node is not None and node.op_type == kind and len(readers[name]) == 1 and name not in outputs
        return node if fits else None

    def own_weights(node: Any) -> bool:
        return all(name in initializers and len(readers[name]) == 1 for name in node.input[1:])

    found = []
    for name, node in writer.items():
        after = readers.get(name, [])
        if name in outputs or not after or any(r.op_type != "Conv" or r.input[0] != name for r in after):
            continue
        source = node
        if source.op_type == "Relu":
            source = sole(source.input[0], "Conv") or sole(source.input[0], "Add")
        if source is None:
            continue
        if source.op_type == "Conv":
            writers = [source]
        elif source.op_type == "Add":
            writers = [sole(item, "Conv") for item in source.input]
        else:
            continue
        known = all(item is not None and own_weights(item) for item in (*writers, *after))
        # a grouped convolution that is not depthwise would need the factors group by group
        shapes = {item.name: item.dims for item in graph.initializer}
        if known and all(_groups(r) == 1 or _is_depthwise(r, shapes[r.input[1]]) for r in after):
            found.append((name, writers, after))
    return found


def _groups(node: Any) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def _is_depthwise(node: Any, shape: Sequence[int]) -> bool:
    return _groups(node) == shape[0] and shape[1] == 1


def _reach(weights: np.ndarray) -> np.ndarray:
    """Computes how large the weights that read each channel are, as a share of the largest of their row."""
    largest = np.abs(weights).reshape(*weights.shape[:2], -1).max(axis=2)
    return np.asarray((largest / np.maximum(largest.max(axis=1, keepdims=True), 1e-12)).max(axis=0))


def _largest_of_channels(proto: Any, names: list[str], features: Sequence[np.ndarray]) -> dict[str, Any]:
    """Measures the largest magnitude of each channel of activations `[1, C, ...]` over all utterances."""
    import onnx

    measured = onnx.ModelProto()
    measured.CopyFrom(proto)
    for name in names:
        measured.graph.output.append(onnx.ValueInfoProto(name=name))
    session = _session(measured)
    largest: dict[str, Any] = {}
    for item in features:
        for name, value in zip(names, session.run(names, _feed(session, item)) if names else (), strict=True):
            peaks = np.abs(value).max(axis=(0, *range(2, value.ndim)))
            largest[name] = np.maximum(largest.get(name, 0.0), peaks)
    return largest


def _operators(graph: Any) -> list[str]:
    """Operators to quantize. The products of attention stay in fp32: their ranges vary most."""
    has_attention = any(node.op_type == "Softmax" for node in graph.graph.node)
    return ["Conv"] if has_attention else ["Conv", "Relu", "Add"]


def _ranges(graph: Any, features: Sequence[np.ndarray], folder: Path) -> Any:
    """Measures the range of each activation, by the smallest and largest value."""
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    path = folder / "fp32.onnx"
    onnx.save(graph, str(path))
    calibrator = create_calibrator(
        path,
        _operators(graph),
        augmented_model_path=str(folder / "measured.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    names = {item.name for item in graph.graph.input}
    calibrator.collect_data(_Reader([_inputs(names, item) for item in features]))
    return calibrator.compute_data()


class _Reader:
    """An iterator over inputs, as onnxruntime's calibrators want it."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def _quantized(graph: Any, ranges: Any, in_fp32: Sequence[str], folder: Path) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    quantizer = QDQQuantizer(
        load_model_with_shape_infer(folder / "fp32.onnx"),
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=list(in_fp32),
        op_types_to_quantize=_operators(graph),
        extra_options={},
    )
    quantizer.quantize_model()
    result = folder / "int8.onnx"
    quantizer.model.save_model_to_file(str(result))
    return onnx.load(str(result))


def _sensitive(graph: Any) -> list[tuple[str, ...]]:
    """Groups of convolutions that are tried in fp32: the decoder, and the first depthwise and dense ones."""
    names = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    return [(names[-1],), tuple(names[:2])] if len(names) > 4 else []


def _best(session: Any, features: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(["logprobs"], _feed(session, features))[0][0].argmax(axis=-1))


def _session(graph: Any) -> Any:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised anyway
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _feed(session: Any, features: np.ndarray) -> dict[str, np.ndarray]:
    return _inputs({item.name for item in session.get_inputs()}, features)


def _inputs(names: set[str], features: np.ndarray) -> dict[str, np.ndarray]:
    feed: dict[str, np.ndarray] = {
        "audio_signal": np.ascontiguousarray(features, dtype=np.float32),
        "length": np.array([features.shape[2]], np.int64),
    }
    return {name: value for name, value in feed.items() if name in names}


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Hides warnings of the root logger: the quantizer recommends a preparation that is done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
