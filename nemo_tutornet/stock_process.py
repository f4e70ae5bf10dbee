# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What NeMo makes of a student where this package is not installed: a program of its own, run by `nemo_tutornet.verify`.

    python stock_process.py REQUEST.json REPORT.json

It imports nothing of this package, and makes importing it an error. REQUEST names the student, ONNX files and a safetensors
file of probes (`signal_0`, and `log_probs_0` where there is a source to compare with); REPORT holds checks and facts.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

EQUAL = 1e-5  # log-probabilities of the same weights by the same code on the same machine
AGREE = 1e-4  # of another runtime
DECODER = "decoder.decoder_layers.0."

Record = Callable[[str, bool, str], bool]


def main(request_file: str, report_file: str) -> None:
    """Runs the checks; a check that cannot run because an earlier one failed is left out."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    report: Dict[str, Any] = {"checks": [], "facts": {}}

    def check(name: str, passed: bool, found: str) -> bool:
        report["checks"].append({"name": name, "passed": passed, "found": found})
        return passed

    state = _weights(request["student"], check)
    model = None if state is None else _restored(request["student"], state, check, report["facts"])
    if model is not None:
        from safetensors.torch import load_file

        probes = load_file(request["probes"])
        _log_probabilities(model, probes, check, report["facts"])
        for path in request["onnx"]:
            _onnx(model, probes, path, check)
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


def _weights(student: str, check: Record) -> Optional[Dict[str, Any]]:
    """The state as it is in the file, tensors only."""
    import torch
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    connector = SaveRestoreConnector()
    with tempfile.TemporaryDirectory() as folder:
        connector._unpack_nemo_file(student, folder)
        weights = Path(folder) / connector.model_weights_ckpt
        if not check("weights", weights.is_file(), "present" if weights.is_file() else f"the archive has no {weights.name}"):
            return None
        try:
            return torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes torch raise
            check("weights", False, f"{weights.name} cannot be read ({_first_line(error)})")
            return None


def _restored(student: str, state: Dict[str, Any], check: Record, facts: Dict[str, Any]) -> Any:
    """Compares the file's keys with a fresh instance's, then restores the student as anybody would."""
    from nemo.collections.asr import models
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    class Fresh(SaveRestoreConnector):
        """Stops where the state would be loaded: the instance is NeMo's own, with NeMo's own keys."""

        def load_instance_with_state_dict(self, instance: Any, state_dict: Any, strict: bool) -> None:
            self.fresh = instance

    connector = Fresh()
    try:
        # The class itself: restored as an ASRModel, what cannot be built is "an abstract class" and the reason is lost.
        getattr(models, _class_name(student)).restore_from(student, map_location="cpu", save_restore_connector=connector)
    except Exception as error:  # NeMo raises whatever the config makes it raise
        check("builds", False, f"stock NeMo cannot build a model from the file's config: {_first_line(error)}")
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
    check("restore", stock, f"{name}" if stock else f"restores as {name}, but its target is {model.cfg.target}")
    check("no plugin", sys.modules.get("nemo_tutornet") is None, "nemo_tutornet was not importable")
    facts.update(
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=list(model.decoder.vocabulary),
        sample_rate=int(model.preprocessor._sample_rate),
        class_name=name,
    )
    return model


def _class_name(student: str) -> str:
    from nemo.collections.asr.models import ASRModel

    target = str(ASRModel.restore_from(student, return_config=True).target)
    return target.rsplit(".", 1)[-1]


def _labels(fresh: Any, found: Dict[str, Any], check: Record) -> bool:
    labels, shape = len(fresh.decoder.vocabulary), found.get(f"{DECODER}weight")
    if shape is not None and shape[0] != labels + 1:
        outputs = f"{shape[0]} outputs ({shape[0] - 1} and the blank)"
        return check("labels", False, f"the config has {labels} labels, but the decoder's weights give {outputs}")
    told = fresh.cfg.get("labels")
    if told is not None and list(told) != list(fresh.decoder.vocabulary):
        return check("labels", False, "the config's labels are not those of its decoder.vocabulary")
    return check("labels", True, f"{labels} and the blank")


def _keys(expected: Dict[str, Any], found: Dict[str, Any], check: Record) -> bool:
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    wrong = []
    if missing:
        wrong.append(f"NeMo's {_some(missing)} missing in the file")
    if surplus:
        wrong.append(f"{_some(surplus)} in the file but not NeMo's")
    if shapes:
        first = shapes[0]
        wrong.append(f"{_some(shapes)} of another shape ({list(found[first])} in the file, {list(expected[first])} in NeMo's)")
    return check("keys", not wrong, "; ".join(wrong) or f"{len(found)}, exactly those of a fresh instance")


def _some(names: List[str]) -> str:
    more = f" and {len(names) - 3} more are" if len(names) > 3 else " is" if len(names) == 1 else " are"
    return ", ".join(names[:3]) + more


def _log_probabilities(model: Any, probes: Dict[str, Any], check: Record, facts: Dict[str, Any]) -> None:
    import torch

    signals = [probes[f"signal_{i}"] for i in range(sum(name.startswith("signal_") for name in probes))]
    differences, finite, frames = [], True, []
    for i, signal in enumerate(signals):
        with torch.no_grad():
            log_probs, lengths, _ = model(input_signal=signal[None], input_signal_length=torch.tensor([len(signal)]))
        log_probs = log_probs[0, : int(lengths[0])]
        finite = finite and bool(torch.isfinite(log_probs).all())
        frames.append(int(lengths[0]))
        if f"log_probs_{i}" in probes:
            expected = probes[f"log_probs_{i}"]
            same = expected.shape == log_probs.shape
            differences.append(float((expected - log_probs).abs().max()) if same else float("inf"))
    seconds = [len(signal) / facts["sample_rate"] for signal in signals]
    facts["frame_ms"] = _frame_ms(model, facts["sample_rate"])
    lengths = ", ".join(f"{s:.2f}" for s in seconds)
    check(
        "finite", finite, f"{sum(frames)} frames on {lengths} s" if finite else f"log-probabilities on {lengths} s are not finite"
    )
    if differences:
        worst = max(differences)
        words = f"largest difference from the source {worst:.1e} (limit {EQUAL:.0e})"
        check("log-probabilities", worst <= EQUAL, words)


def _frame_ms(model: Any, sample_rate: int) -> float:
    """Milliseconds of audio a frame, between two probes so that edges do not count."""
    import torch

    frames = []
    for seconds in (2.56, 5.12):
        samples = int(seconds * sample_rate)
        with torch.no_grad():
            lengths = model(input_signal=torch.zeros(1, samples), input_signal_length=torch.tensor([samples]))[1]
        frames.append(int(lengths[0]))
    return round(2560 / (frames[1] - frames[0]), 3)


def _onnx(model: Any, probes: Dict[str, Any], path: str, check: Record) -> None:
    """The graph's interface and, for single precision, its log-probabilities on unpadded features of several lengths."""
    import onnxruntime

    name = Path(path).name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class
        check(f"{name}: opens", False, f"ONNX Runtime cannot open it: {_first_line(error)}")
        return
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    right = inputs in (["audio_signal"], ["audio_signal", "length"]) and outputs == ["logprobs"]
    wanted = "" if right else "; NeMo's clients feed audio_signal (and length) and read logprobs"
    check(f"{name}: graph", right, f"opset {_opset(path)}, {', '.join(inputs)} -> {', '.join(outputs)}{wanted}")
    metadata = session.get_modelmeta().custom_metadata_map
    if "labels" in metadata:
        try:
            same = json.loads(metadata["labels"]) == _vocabulary(model)
        except (ValueError, RecursionError):  # no JSON: nobody's labels
            same = False
        check(f"{name}: labels", same, "the student's" if same else "its metadata has other labels than the student")
    if right and metadata.get("precision", "fp32") == "fp32":
        _agreement(model, session, probes, name, inputs, check)


def _opset(path: str) -> int:
    import onnx

    imported = onnx.load(path, load_external_data=False).opset_import
    return next(operators.version for operators in imported if operators.domain in ("", "ai.onnx"))


def _vocabulary(model: Any) -> List[str]:
    """Labels by output; NeMo lists a WordPiece model's in whatever order its tokenizer's dictionary has in this process."""
    tokenizer = getattr(getattr(model, "tokenizer", None), "tokenizer", None)
    pieces = tokenizer.get_vocab() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else None
    if isinstance(pieces, dict) and pieces.keys() == set(model.decoder.vocabulary):
        return sorted(pieces, key=pieces.__getitem__)
    return list(model.decoder.vocabulary)


def _agreement(model: Any, session: Any, probes: Dict[str, Any], name: str, inputs: List[str], check: Record) -> None:
    import numpy
    import torch

    worst, lengths = 0.0, []
    for key in sorted(probes):
        if not key.startswith("signal_"):
            continue
        signal = probes[key]
        with torch.no_grad():
            features, valid = model.preprocessor(input_signal=signal[None], length=torch.tensor([len(signal)]))
            features = features[:, :, : int(valid[0])]  # the graph has no masks: padding must not enter
            expected = model(processed_signal=features, processed_signal_length=valid)[0]
        feed = {"audio_signal": features.numpy(), "length": valid.numpy().astype(numpy.int64)}
        got = session.run(["logprobs"], {i: feed[i] for i in inputs})[0]
        same = got.shape == tuple(expected.shape)
        worst = max(worst, float(numpy.abs(got - expected.numpy()).max()) if same else float("inf"))
        lengths.append(int(valid[0]))
    words = f"largest difference from PyTorch {worst:.1e} on {', '.join(map(str, lengths))} feature frames (limit {AGREE:.0e})"
    check(f"{name}: agrees", worst <= AGREE, words)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.path.pop(0)  # the package's own folder, whose modules have everyday names
    sys.modules["nemo_tutornet"] = None  # type: ignore[assignment]  # the documented way to forbid an import
    main(*sys.argv[1:])
