# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a student's ONNX graphs in ONNX Runtime and in onnx-asr, against the restored student.

`export.verify_worker` loads this file by its path, in a process that cannot import the package. So nothing of
the package is imported here.

Legend: `T` frames, `V` labels with the blank last.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Largest difference between log-probabilities: of another runtime than PyTorch ...
AGREE = 1e-4
# ... and of another runtime on features that another program computed. NeMo computes the spectrum in fp32,
# whose rounding changes the logarithm of quiet bins by up to 2e-4, and unlikely labels of a trained student
# by up to 3e-4 on the probes (1e-4 on AN4). A wrong window or a padded frame changes them by 0.1 and more.
OTHER_FEATURES = 1e-3
# Root mean square difference that rounding may cause, as a share of the variation of the log-probabilities
# over time. A largest difference would be no measure: int8 changed very unlikely labels by up to 2.2 in good
# students of AN4, while all log-probabilities of an untrained student vary by 0.1. Good graphs had 0.002
# (fp16) and 0.06 (int8). A graph that ignores its input has 1 or more, because no constant is closer than the
# mean.
ROUNDED = {"fp16": 0.05, "int8": 0.5}
# Frames of the encoder. The caches and the chunks of a hostile student would take any amount of memory.
MOST_CONTEXT = 10_000
_QUANTISED = re.compile(r"[Qq]uant|Integer|^Q[A-Z]|NBits")  # names of operators of ONNX and ONNX Runtime
CACHES = ["cache_last_channel", "cache_last_time", "cache_last_channel_len"]  # inputs of a streaming graph

Record = Callable[[str, bool, str], bool]


def check_graphs(
    model: Any,
    labels: list[str],
    probes: dict[str, Any],
    onnx: list[str],
    onnx_asr: str | None,
    check: Record,
) -> list[dict[str, Any]]:
    """Checks ONNX graphs, and those of a folder for onnx-asr with that client, too.

    Args:
        model: the restored student in eval mode.
        labels: its labels in the order of the outputs.
        probes: signals `signal_0`, ... `[N]` of `N` samples.
        onnx: paths of graphs.
        onnx_asr: the student's folder for onnx-asr; None for none.
        check: records a check.

    Returns:
        The name, precision and metadata of each graph that ONNX Runtime can open.
    """
    found = [(path, Path(path).name) for path in onnx]
    folder = None if onnx_asr is None else Path(onnx_asr)
    if folder is not None:
        graphs = sorted(path for path in folder.glob("model*.onnx") if path.is_file())
        found += [(str(path), f"{folder.name}/{path.name}") for path in graphs]
        if not graphs:
            check(f"{folder.name}: files", False, "it holds no model.onnx")
    described = [_onnx(model, labels, probes, path, name, check) for path, name in found]
    wanted = ("model.onnx", "vocab.txt", "config.json")  # no pipe, which a client would wait for
    if folder is not None and all((folder / name).is_file() for name in wanted):
        _onnx_asr_agrees(model, probes, folder, check)
    return [graph for graph in described if graph is not None]


def _onnx(
    model: Any, labels: list[str], probes: dict[str, Any], path: str, name: str, check: Record
) -> dict[str, Any] | None:
    """Checks a graph's inputs and outputs, and its log-probabilities on unpadded features of several lengths.

    Returns:
        The graph's name, precision and metadata, which `nemo_tutornet.export.verify` compares with the
        student; None where ONNX Runtime cannot open it.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        check(f"{name}: opens", False, f"ONNX Runtime cannot open it: {first_line(error)}")
        return None
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    usual = inputs in (["audio_signal"], ["audio_signal", "length"]) and outputs == ["logprobs"]
    chunked = inputs == ["audio_signal", "length", *CACHES] and outputs[0] == "logprobs" and len(outputs) == 5
    expected = "" if usual or chunked else "; NeMo's clients feed audio_signal (and length) and read logprobs"
    found = f"opset {_opset(proto)}, {', '.join(inputs)} -> {', '.join(outputs)}{expected}"
    check(f"{name}: graph", usual or chunked, found)
    if "labels" in metadata:
        try:
            same = json.loads(metadata["labels"]) == labels
        except (ValueError, RecursionError):  # not JSON
            same = False
        check(
            f"{name}: labels",
            same,
            "the student's" if same else "its metadata has other labels than the student",
        )
    precision = precision_of(proto)
    if usual:
        # Graphs of NeMo's own exporter and of earlier versions read padding, and do not say otherwise.
        padded = "length" in inputs and metadata.get("padding") == "ignored"
        size = session.get_inputs()[0].shape[2]
        # Only a graph that says so may read one length only.
        fixed = size if metadata.get("fixed_frames") == str(size) else None
        _agreement(model, session, probes, f"{name}: agrees", precision, padded, fixed, check)
    elif chunked:
        _chunks_agree(model, session, probes, metadata, f"{name}: agrees", check)
    return {"name": name, "precision": precision, "metadata": metadata}


def _opset(proto: Any) -> int:
    return next(operators.version for operators in proto.opset_import if operators.domain in ("", "ai.onnx"))


def precision_of(proto: Any) -> str:
    """Derives a graph's precision from its operators and weights, because its metadata may be wrong.

    Returns:
        `int8` or `fp16` where the graph shows it, otherwise `fp32`, which has the strictest limit.
    """
    if any(_QUANTISED.search(node.op_type) for node in proto.graph.node):
        return "int8"
    return "fp16" if any(tensor.data_type == tensor.FLOAT16 for tensor in proto.graph.initializer) else "fp32"


def _agreement(
    model: Any,
    session: Any,
    probes: dict[str, Any],
    name: str,
    precision: str,
    padded: bool,
    fixed: int | None,
    check: Record,
) -> None:
    import numpy
    import torch

    expected, found, lengths, utterances = [], [], [], []
    for key in sorted(probes):
        if not key.startswith("signal_"):
            continue
        signal = probes[key]
        if isinstance(fixed, int):  # the graph reads one length only
            samples = (fixed + 1) * model.preprocessor.hop_length
            signal = signal.repeat(1 + samples // len(signal))[:samples]
        with torch.no_grad():
            features, valid = model.preprocessor(
                input_signal=signal[None], length=torch.tensor([len(signal)])
            )
            if isinstance(fixed, int):
                valid = torch.full_like(valid, fixed)
            features = features[:, :, : int(valid[0])]  # a graph without `length` has no masks
            expected.append(model(processed_signal=features, processed_signal_length=valid)[0].numpy())
        utterances.append(features.numpy())
        lengths.append(int(valid[0]))
    batch = numpy.full((len(lengths), utterances[0].shape[1], max(lengths) + 17), 3.0, numpy.float32)
    for row, utterance in zip(batch, utterances, strict=True):
        row[:, : utterance.shape[2]] = utterance[0]
    try:
        for utterance in utterances:
            feed = {"audio_signal": utterance, "length": numpy.array([utterance.shape[2]], numpy.int64)}
            log_probs = session.run(["logprobs"], {i.name: feed[i.name] for i in session.get_inputs()})[0]
            found.append(numpy.asarray(log_probs, dtype=numpy.float32))
        if padded:
            feed = {"audio_signal": batch, "length": numpy.array(lengths, numpy.int64)}
            rows = zip(session.run(["logprobs"], feed)[0], tuple(expected), strict=True)
            found += [row[None, : log_probs.shape[1]] for row, log_probs in rows]
            expected += expected
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        check(name, False, f"ONNX Runtime cannot run it: {first_line(error)}")
        return
    if precision == "fp32":
        measure, worst, limit = "largest", max(map(largest, expected, found)), AGREE
    else:
        measure, (worst, limit) = "root mean square", _rounding(expected, found, ROUNDED[precision])
    words = (
        f"{measure} difference from PyTorch {worst:.1e} on {', '.join(map(str, lengths))} feature frames"
        f"{', one by one and padded to a batch' if padded else ''} (limit {limit:.0e})"
    )
    check(name, worst <= limit, words)


def _onnx_asr_agrees(model: Any, probes: dict[str, Any], folder: Path, check: Record) -> None:
    """Compares the log-probabilities of onnx-asr, which computes the features itself, with the student's.

    Nothing is checked where onnx-asr is not installed, or is another version with other internals.
    """
    import importlib.metadata

    import numpy
    import torch

    try:
        import onnx_asr
    except ImportError:
        return
    name, version = f"{folder.name}: onnx-asr", importlib.metadata.version("onnx-asr")
    signals = [probes[key] for key in sorted(probes) if key.startswith("signal_")]
    differences = []
    try:
        loaded = onnx_asr.load_model("nemo-conformer-ctc", folder, providers=["CPUExecutionProvider"])
        loaded.recognize(signals[0].numpy())
        asr = loaded.asr
        if not (hasattr(asr, "_preprocessor") and hasattr(asr, "_encode")):
            check(name, True, f"onnx-asr {version} loads and runs it; log-probabilities were not compared")
            return
        lengths = numpy.array([len(signal) for signal in signals])
        batch = numpy.zeros((len(signals), lengths.max()), numpy.float32)
        for row, signal in zip(batch, signals, strict=True):
            row[: len(signal)] = signal.numpy()
        runs = [(signal.numpy()[None], numpy.array([len(signal)])) for signal in signals]
        for waveforms, sizes in [*runs, (batch, lengths)]:
            log_probs, frames = asr._encode(*asr._preprocessor(waveforms, sizes))
            for found, count, waveform, size in zip(log_probs, frames, waveforms, sizes, strict=True):
                signal = torch.from_numpy(waveform[None, :size])
                with torch.no_grad():
                    expected, valid, _ = model(
                        input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]])
                    )
                differences.append(largest(expected[0, : int(valid[0])].numpy(), found[: int(count)]))
    except Exception as error:  # a damaged folder may make the client raise anything
        check(name, False, f"onnx-asr {version} cannot run it: {first_line(error)}")
        return
    worst = max(differences)
    words = (
        f"{version}: largest difference from NeMo {worst:.1e}, one by one and in a batch (limit "
        f"{OTHER_FEATURES:.0e})"
    )
    check(name, worst <= OTHER_FEATURES, words)


def _chunks_agree(
    model: Any, session: Any, probes: dict[str, Any], metadata: dict[str, str], name: str, check: Record
) -> None:
    """Compares a streaming graph, chunk after chunk, with the student on the whole utterance."""
    import numpy
    import torch

    encoder = model.encoder
    if getattr(encoder, "att_context_style", None) != "chunked_limited":
        check(name, False, "it reads chunks, and the student's attention does not")
        return
    context = max(encoder.att_context_size)
    if context > MOST_CONTEXT:
        check(name, False, f"the student's attention spans {context} frames (limit {MOST_CONTEXT})")
        return
    streaming, front = encoder.streaming_cfg, encoder.streaming_cfg.drop_extra_pre_encoded
    front *= encoder.subsampling_factor
    window, shift = streaming.chunk_size[1] + streaming.pre_encode_cache_size[1], streaming.shift_size[1]
    channel, time, length = (cache.numpy() for cache in encoder.get_initial_cache_state(batch_size=1))
    sizes = {"window_size": window, "chunk_shift": shift, "frames_in_front": front}
    for cache_name, cache in zip(CACHES[:2], (channel, time), strict=True):
        layers, _, *shape = cache.shape
        sizes.update({f"{cache_name}_dim{i}": size for i, size in enumerate((layers, *shape), 1)})
    wrong = [key for key, size in sizes.items() if metadata.get(key) != str(size)]
    if wrong:
        check(name, False, f"wrong in its metadata, which a client cuts chunks by: {', '.join(wrong)}")
        return
    signal = torch.cat([probes[key] for key in sorted(probes) if key.startswith("signal_")])
    signal = signal.repeat(1 + 3 * window * model.preprocessor.hop_length // len(signal))
    with torch.no_grad():
        features, _ = model.preprocessor(input_signal=signal[None], length=torch.tensor([len(signal)]))
        # As many frames as fill whole chunks: a client fills the last one with silence, which the attention
        # of that chunk would read.
        chunks = 1 + (features.shape[2] + front - window) // shift
        features = features[:, :, : window + (chunks - 1) * shift - front]
        expected, lengths, _ = model(
            processed_signal=features, processed_signal_length=torch.tensor([features.shape[2]])
        )
    # Any value will do in front, because the graph must not read it.
    padded = numpy.pad(features.numpy(), ((0, 0), (0, 0), (front, 0)), constant_values=-7.0)
    caches, found = [channel.swapaxes(0, 1), time.swapaxes(0, 1), length], []
    try:
        for i in range(chunks):
            chunk = padded[:, :, i * shift : i * shift + window]
            feed = {"audio_signal": chunk, "length": numpy.array([window], numpy.int64)}
            log_probs, _, *caches = session.run(None, {**feed, **dict(zip(CACHES, caches, strict=True))})
            found.append(log_probs)
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        check(name, False, f"ONNX Runtime cannot run it: {first_line(error)}")
        return
    worst = largest(expected[:, : int(lengths[0])].numpy(), numpy.concatenate(found, axis=1))
    words = f"largest difference from PyTorch on the whole {worst:.1e} in {chunks} chunks (limit {AGREE:.0e})"
    check(name, worst <= AGREE, words)


def largest(expected: Any, found: Any) -> float:
    """Computes the largest difference; infinite where the shapes differ or a difference is not finite.

    A plain `max` would ignore a NaN.
    """
    import numpy

    if expected.shape != found.shape:
        return float("inf")
    differences = numpy.abs(expected - found)
    return float(differences.max()) if numpy.isfinite(differences).all() else float("inf")


def _rounding(expected: list[Any], found: list[Any], share: float) -> tuple[float, float]:
    """Computes the root mean square difference of log-probabilities `[1, T, V]`, and its limit."""
    import numpy

    frames = numpy.concatenate(expected, axis=1)
    limit = share * numpy.sqrt(numpy.square(frames - frames.mean(axis=1)).mean()) + AGREE
    if max(map(largest, expected, found)) == float("inf"):
        return float("inf"), float(limit)
    return float(numpy.sqrt(numpy.square(frames - numpy.concatenate(found, axis=1)).mean())), float(limit)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
