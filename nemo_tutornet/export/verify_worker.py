# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a student in a process that cannot import this package; `nemo_tutornet.export.verify` runs it.

    python verify_worker.py REQUEST.json REPORT.json

The program imports nothing of this package, and turns an import of it into an error; it only runs the
files `verify_graphs.py` and `nemo_io/model_size.py`, which import nothing of the package either. REQUEST
names the student, the ONNX files, and a safetensors file of probes: signals `signal_0`, ... `[N]`, and the
source's log-probabilities `log_probs_0`, ... `[T, V]` where there is a source to compare with. REPORT has the
checks, facts of the student, and the name, precision and metadata of each graph.

Legend: `N` samples, `T` frames, `V` labels with the blank last.
"""

import json
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Largest difference between log-probabilities of the same weights in the same code on the same machine.
EQUAL = 1e-5
PROBE_FRAMES = 1600  # frames of the front end; so many that rounding at the edges does not matter
MODEL_SIZE = Path(__file__).resolve().parents[1] / "nemo_io" / "model_size.py"
DECODER = "decoder.decoder_layers.0."

_graphs = runpy.run_path(str(Path(__file__).with_name("verify_graphs.py")))
check_graphs, first_line, largest = (_graphs[name] for name in ("check_graphs", "first_line", "largest"))

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
        labels = report["facts"]["vocabulary"]
        report["graphs"] = check_graphs(
            model, labels, probes, request["onnx"], request.get("onnx_asr"), check
        )
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
            check("weights", False, f"{weights.name} cannot be read ({first_line(error)})")
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
        check("builds", False, f"stock NeMo cannot build a model from the file's config: {first_line(error)}")
        return None
    expected = {name: tuple(tensor.shape) for name, tensor in connector.fresh.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if not (_labels(connector.fresh, found, check) and _keys(expected, found, check)):
        return None
    try:
        model = models.ASRModel.restore_from(student, map_location="cpu").eval()
    except Exception as error:
        check("restore", False, f"ASRModel.restore_from fails: {first_line(error)}")
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
            differences.append(largest(probes[f"log_probs_{i}"].numpy(), log_probs.numpy()))
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


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules could hide others of the same name
    sys.modules["nemo_tutornet"] = None  # type: ignore[assignment]  # the documented way to block an import
    main(*sys.argv[1:])
