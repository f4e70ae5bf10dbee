# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a student in a process that cannot import this package; `nemo_tutornet.export.verify` runs it.

    python verify_worker.py REQUEST.json REPORT.json

The program imports nothing of this package, and turns an import of it into an error; it only runs the
file `nemo_io/model_size.py`, which imports nothing of the package either. REQUEST names the student, the ONNX
files, and a safetensors file of probes: signals `signal_0`, ... `[N]`, and the source's
log-probabilities `log_probs_0`, ... `[T, V]` where there is a source to compare with. REPORT has the checks,
facts of the student, and the name, precision and metadata of each graph.

Legend: `N` samples, `T` frames, `V` labels with the blank last.
"""

import json
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Largest difference between log-probabilities: of the same weights in the same code on the same machine ...
EQUAL = 1e-5
# ... and of another runtime.
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
PROBE_FRAMES = 1600  # frames of the front end; so many that rounding at the edges does not matter
MODEL_SIZE = Path(__file__).resolve().parents[1] / "nemo_io" / "model_size.py"
_QUANTISED = re.compile(r"[Qq]uant|Integer|^Q[A-Z]|NBits")  # names of operators of ONNX and ONNX Runtime
DECODER = "decoder.decoder_layers.0."
CACHES = ["cache_last_channel", "cache_last_time", "cache_last_channel_len"]  # inputs of a streaming graph

Record = Callable[[str, bool, str], bool]


def main(request_file: str, report_file: str) -> None:
    """Runs the checks and writes the report.

    A check that cannot run because an earlier one failed is not in the report.

    Args:
        request_file: the JSON file with the request.
        report_file: the JSON file to write.
    """
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    report: dict[str, Any] = {"checks": [], "facts": {}, "graphs": []}

    def check(name: str, passed: bool, found: str) -> bool:
        report["checks"].append({"name": name, "passed": passed, "found": found})
        return passed

    state = _weights(request["student"], check)
    model = None
    if state is not None:
        limit_parameters = runpy.run_path(str(MODEL_SIZE))["limit_parameters"]
        with limit_parameters(Path(request["student"]).stat().st_size):
            model = _restored(request["student"], state, check, report["facts"])
    if model is not None:
        from safetensors.torch import load_file

        probes = load_file(request["probes"])
        _log_probabilities(model, probes, check, report["facts"])
        # A weight that the probes do not reach; one that they reach has its own sentence already.
        computes = all(found["passed"] for found in report["checks"])
        statistics = (pair for pair in model.named_buffers() if "running_" in pair[0])
        for name, value in (*model.named_parameters(), *statistics):
            if computes and not bool(value.isfinite().all()):
                check("weights", False, f"{name} is NaN or infinite")
                break
        folder = request.get("onnx_asr")
        found = [(path, Path(path).name) for path in request["onnx"]]
        if folder is not None:
            graphs = sorted(path for path in Path(folder).glob("model*.onnx") if path.is_file())
            found += [(str(path), f"{Path(folder).name}/{path.name}") for path in graphs]
            if not graphs:
                check(f"{Path(folder).name}: files", False, "it holds no model.onnx")
        described = [_onnx(model, probes, path, name, check) for path, name in found]
        report["graphs"] = [graph for graph in described if graph is not None]
        wanted = ("model.onnx", "vocab.txt", "config.json")  # no pipe, which a client would wait for
        if folder is not None and all(Path(folder, name).is_file() for name in wanted):
            _onnx_asr_agrees(model, probes, Path(folder), check)
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


def _weights(student: str, check: Record) -> dict[str, Any] | None:
    """Loads the state dict of the file, tensors only; None where it is missing or damaged."""
    import torch
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    connector = SaveRestoreConnector()
    with tempfile.TemporaryDirectory() as folder:
        connector._unpack_nemo_file(student, folder)
        weights = Path(folder) / connector.model_weights_ckpt
        if not check(
            "weights",
            weights.is_file(),
            "present" if weights.is_file() else f"the archive has no {weights.name}",
        ):
            return None
        try:
            return torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may make torch raise anything
            check("weights", False, f"{weights.name} cannot be read ({_first_line(error)})")
            return None


def _restored(student: str, state: dict[str, Any], check: Record, facts: dict[str, Any]) -> Any:
    """Compares the file's keys with those of a fresh instance, then restores the student with `ASRModel`.

    Returns:
        The restored model, or None where a check failed.
    """
    from nemo.collections.asr import models
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    class Fresh(SaveRestoreConnector):
        """Keeps the new instance and does not load the state into it, so that its keys are NeMo's own."""

        def load_instance_with_state_dict(self, instance: Any, state_dict: Any, strict: bool) -> None:
            self.fresh = instance

    connector = Fresh()
    try:
        # As an ASRModel, a model that cannot be built fails as "an abstract class", without the reason.
        getattr(models, _class_name(student)).restore_from(
            student, map_location="cpu", save_restore_connector=connector
        )
    except Exception as error:  # a config may make NeMo raise anything
        check(
            "builds", False, f"stock NeMo cannot build a model from the file's config: {_first_line(error)}"
        )
        return None
    expected = {name: tuple(tensor.shape) for name, tensor in connector.fresh.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if not (_labels(connector.fresh, found, check) and _keys(expected, found, check)):
        return None
    try:
        model = models.ASRModel.restore_from(student, map_location="cpu").eval()
    except Exception as error:
        check("restore", False, f"ASRModel.restore_from fails: {_first_line(error)}")
        return None
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    stock = name == model.cfg.target and name.startswith("nemo.collections.asr.")
    check(
        "restore", stock, f"{name}" if stock else f"restores as {name}, but its target is {model.cfg.target}"
    )
    check("no plugin", sys.modules.get("nemo_tutornet") is None, "nemo_tutornet was not importable")
    facts.update(
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=_vocabulary(model),
        sample_rate=int(model.preprocessor._sample_rate),
        class_name=name,
        tokenizer=str(model.cfg.tokenizer.type).lower() if hasattr(model, "tokenizer") else None,
    )
    return model


def _class_name(student: str) -> str:
    from nemo.collections.asr.models import ASRModel

    target = str(ASRModel.restore_from(student, return_config=True).target)
    return target.rsplit(".", 1)[-1]


def _labels(fresh: Any, found: dict[str, Any], check: Record) -> bool:
    labels, shape = len(fresh.decoder.vocabulary), found.get(f"{DECODER}weight")
    if shape is not None and shape[0] != labels + 1:
        outputs = f"{shape[0]} outputs ({shape[0] - 1} and the blank)"
        return check(
            "labels", False, f"the config has {labels} labels, but the decoder's weights give {outputs}"
        )
    declared = fresh.cfg.get("labels")
    if declared is not None and list(declared) != list(fresh.decoder.vocabulary):
        return check("labels", False, "the config's labels are not those of its decoder.vocabulary")
    return check("labels", True, f"{labels} and the blank")


def _keys(expected: dict[str, Any], found: dict[str, Any], check: Record) -> bool:
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    problems = []
    if missing:
        problems.append(f"NeMo's {_some(missing)} missing in the file")
    if surplus:
        problems.append(f"{_some(surplus)} in the file but not NeMo's")
    if shapes:
        first = shapes[0]
        problems.append(
            f"{_some(shapes)} of another shape ({list(found[first])} in the file, {list(expected[first])} in "
            "NeMo's)"
        )
    return check(
        "keys", not problems, "; ".join(problems) or f"{len(found)}, exactly those of a fresh instance"
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ", ".join(names[:3]) + more


def _log_probabilities(model: Any, probes: dict[str, Any], check: Record, facts: dict[str, Any]) -> None:
    import torch

    signals = [probes[f"signal_{i}"] for i in range(sum(name.startswith("signal_") for name in probes))]
    differences, finite, frames = [], True, []
    for i, signal in enumerate(signals):
        with torch.no_grad():
            log_probs, lengths, _ = model(
                input_signal=signal[None], input_signal_length=torch.tensor([len(signal)])
            )
        log_probs = log_probs[0, : int(lengths[0])]
        finite = finite and bool(torch.isfinite(log_probs).all())
        frames.append(int(lengths[0]))
        if f"log_probs_{i}" in probes:
            differences.append(_largest(probes[f"log_probs_{i}"].numpy(), log_probs.numpy()))
    seconds = [len(signal) / facts["sample_rate"] for signal in signals]
    facts["subsampling_factor"] = _subsampling_factor(model, signals[0])
    stride = 1000 * model.preprocessor.hop_length / facts["sample_rate"]
    facts["frame_ms"] = round(stride * facts["subsampling_factor"], 3)
    lengths = ", ".join(f"{s:.2f}" for s in seconds)
    check(
        "finite",
        finite,
        f"{sum(frames)} frames on {lengths} s"
        if finite
        else f"log-probabilities on {lengths} s are not finite",
    )
    if differences:
        worst = max(differences)
        found = f"largest difference from the source {worst:.1e} (limit {EQUAL:.0e})"
        check("log-probabilities", worst <= EQUAL, found)


def _subsampling_factor(model: Any, signal: Any) -> int:
    """Measures how many frames of the front end one frame of the network covers."""
    import torch

    with torch.no_grad():
        bins = model.preprocessor(input_signal=signal[None], length=torch.tensor([len(signal)]))[0].shape[1]
        silence, length = torch.zeros(1, bins, PROBE_FRAMES), torch.tensor([PROBE_FRAMES])
        lengths = model(processed_signal=silence, processed_signal_length=length)[1]
    return round(PROBE_FRAMES / int(lengths[0]))


def _onnx(model: Any, probes: dict[str, Any], path: str, name: str, check: Record) -> dict[str, Any] | None:
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
        check(f"{name}: opens", False, f"ONNX Runtime cannot open it: {_first_line(error)}")
        return None
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    usual = inputs in (["audio_signal"], ["audio_signal", "length"]) and outputs == ["logprobs"]
    chunked = inputs == ["audio_signal", "length", *CACHES] and outputs[0] == "logprobs" and len(outputs) == 5
    expected = "" if usual or chunked else "; NeMo's clients feed audio_signal (and length) and read logprobs"
    found = f"opset {_opset(proto)}, {', '.join(inputs)} -> {', '.join(outputs)}{expected}"
    check(f"{name}: graph", usual or chunked, found)
    if "labels" in metadata:
        try:
            same = json.loads(metadata["labels"]) == _vocabulary(model)
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


def _vocabulary(model: Any) -> list[str]:
    """Returns the labels in the order of the outputs.

    NeMo lists the labels of a WordPiece model in the order of its tokenizer's dictionary, which differs
    between processes.
    """
    tokenizer = getattr(getattr(model, "tokenizer", None), "tokenizer", None)
    pieces = tokenizer.get_vocab() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else None
    if isinstance(pieces, dict) and pieces.keys() == set(model.decoder.vocabulary):
        return sorted(pieces, key=pieces.__getitem__)
    return list(model.decoder.vocabulary)


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
            features = features[:, :, : int(valid[0])]  # the graph has no masks, so it gets no padding
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
        check(name, False, f"ONNX Runtime cannot run it: {_first_line(error)}")
        return
    if precision == "fp32":
        measure, worst, limit = "largest", max(map(_largest, expected, found)), AGREE
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
                differences.append(_largest(expected[0, : int(valid[0])].numpy(), found[: int(count)]))
    except Exception as error:  # a damaged folder may make the client raise anything
        check(name, False, f"onnx-asr {version} cannot run it: {_first_line(error)}")
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
        check(name, False, f"ONNX Runtime cannot run it: {_first_line(error)}")
        return
    worst = _largest(expected[:, : int(lengths[0])].numpy(), numpy.concatenate(found, axis=1))
    words = f"largest difference from PyTorch on the whole {worst:.1e} in {chunks} chunks (limit {AGREE:.0e})"
    check(name, worst <= AGREE, words)


def _largest(expected: Any, found: Any) -> float:
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
    if max(map(_largest, expected, found)) == float("inf"):
        return float("inf"), float(limit)
    return float(numpy.sqrt(numpy.square(frames - numpy.concatenate(found, axis=1)).mean())), float(limit)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules could hide others of the same name
    sys.modules["nemo_tutornet"] = None  # type: ignore[assignment]  # the documented way to block an import
    main(*sys.argv[1:])
