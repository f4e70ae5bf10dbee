# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The facts about a teacher that are stored beside its cached targets, and their check when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import sha256_of_model
from nemo_tutornet.nemo_io.layers import CHECKED_SECONDS, Layer
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.teachers.adapter import OLD_KERNELS
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.utils.files import read_regular_file

HEAD = "head.safetensors"
_HEAD_BYTES = 1 << 30


def binding(
    teacher: LiveTeacher, path: Path, device: torch.device, hidden: bool, tokenizer: str | None
) -> dict[str, Any]:
    """Collects the facts about a teacher that its cached targets depend on, and that a student needs.

    Args:
        teacher: the live teacher.
        path: the teacher's file, or the folder that it was unpacked to.
        device: the device on which the teacher will run.
        hidden: whether the cache holds the hint layer.
        tokenizer: NeMo's type of the teacher's tokenizer, whose files are stored beside the shards. None for
            a character model.

    Returns:
        The facts by name, as JSON values. `frames` is a list of pairs of an audio length in seconds and the
        number of teacher frames.
    """
    info = describe_model(teacher.model)
    # Only where there is one, because the caches of earlier versions lack these keys and must stay valid.
    further: dict[str, Any] = {} if teacher.adapter is None else {"adapter": _adapter_to_disk(teacher)}
    if teacher.prompt:
        further["prompt"] = teacher.prompt
    if hidden and teacher.further_hint_layers:
        further["further_hints"] = list(map(_layer_to_disk, teacher.further_hint_layers))
    return {
        **further,
        "sha256": sha256_of_model(path),
        "class": info.class_name,
        "front_end": info.preprocessor,
        "precision": teacher.precision_on(device),
        "sample_rate": info.front_end.sample_rate,
        "labels": teacher.labels,
        "transducer": not teacher.has_posteriors,  # the name on disk; true for an attention model, too
        "encoder": _layer_to_disk(teacher.encoder_layer),
        "hint": _layer_to_disk(teacher.hint_layer) if hidden else None,
        "ends_in_layer_norm": teacher.ends_in_layer_norm,
        "frames": [[seconds, teacher.frames_of(seconds)] for seconds in CHECKED_SECONDS],
        "tokenizer": tokenizer,
    }


def head_file(teacher: LiveTeacher) -> dict[str, bytes]:
    """Serialises the teacher's CTC decoder, which the warm start of the student's decoder uses.

    Args:
        teacher: the live teacher.

    Returns:
        The file's content by file name; empty if the decoder is not a single 1x1 convolution.
    """
    from safetensors.torch import save

    decoder = teacher.ctc_projection()
    if decoder is None:
        return {}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in decoder.named_parameters()}
    return {HEAD: save(tensors)}


def read_head(path: Path, shape: tuple[int, int, int]) -> nn.Conv1d:
    """Reads and checks a file that `head_file` wrote, which is untrusted input like the rest of a cache.

    Args:
        path: the file.
        shape: labels with the blank, width of the encoder's output, 1.

    Returns:
        The teacher's CTC decoder, frozen.

    Raises:
        TutorError: it cannot be read, has tensors of other shapes, or values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(read_regular_file(path, _HEAD_BYTES))
    except (OSError, ValueError, SafetensorError) as error:
        raise TutorError(f"{path} is not readable ({str(error)[:200]}); build the cache again.") from None
    wanted = {"weight": shape, "bias": shape[:1]} if "bias" in tensors else {"weight": shape}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted or not all(
        tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()
    ):
        raise TutorError(
            f"{path} is damaged: its shapes or values are not those of the teacher's decoder, {shape[0]} "
            f"labels from {shape[1]} channels; build the cache again."
        )
    projection = nn.Conv1d(shape[1], shape[0], kernel_size=1, bias="bias" in tensors)
    projection.load_state_dict(tensors)
    return projection.requires_grad_(False)


def _adapter_to_disk(teacher: LiveTeacher) -> dict[str, Any]:
    assert teacher.adapter is not None
    # A cache of an older adapter, which does not say its kernels, can be extended.
    info = asdict(teacher.adapter)
    info = {name: info[name] for name in info if name not in OLD_KERNELS or info[name] != OLD_KERNELS[name]}
    info.pop("labels")  # they stand in the provenance already
    return {"sha256": teacher.adapter_sha256, "info": info}


def _layer_to_disk(layer: Layer) -> dict[str, Any]:
    """Returns a layer with the field names of the format on disk, where `frame_ms` is called `shift`."""
    return {"path": layer.path, "width": layer.width, "time_axis": layer.time_axis, "shift": layer.frame_ms}


def layer_from_disk(stored: Mapping[str, Any]) -> Layer:
    """Returns a layer from its fields on disk."""
    return Layer(stored["path"], stored["width"], stored["time_axis"], stored["shift"])


def checked_facts(facts: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Returns the binding after a check of all parts that are read, because a cache is untrusted input."""
    kinds: dict[str, Any] = {
        "sample_rate": int,
        "labels": list,
        "transducer": bool,
        "encoder": dict,
        "hint": (dict, type(None)),
        "ends_in_layer_norm": bool,
        "frames": list,
        "front_end": dict,
        "sha256": (str, type(None)),
    }
    prompt, further_hints = facts.get("prompt", {}), facts.get("further_hints", [])
    layers = [layer for layer in (facts.get("encoder"), facts.get("hint")) if isinstance(layer, dict)]
    fields: dict[str, Any] = {"path": str, "width": int, "time_axis": int, "shift": (int, float)}
    sound = all(isinstance(facts.get(name, ...), kind) for name, kind in kinds.items())
    sound = sound and isinstance(further_hints, list)
    sound = sound and all(isinstance(layer, dict) for layer in further_hints)
    layers += further_hints if sound else []
    sound = sound and all(isinstance(label, str) for label in facts["labels"])
    sound = sound and [pair[:1] for pair in facts["frames"] if isinstance(pair, list) and len(pair) == 2] == [
        [seconds] for seconds in CHECKED_SECONDS
    ]
    sound = sound and all(type(frames) is int and 0 <= frames < 2**31 for _, frames in facts["frames"])
    sound = sound and isinstance(prompt, dict) and all(isinstance(value, str) for value in prompt.values())
    adapter = facts.get("adapter", {"sha256": None, "info": {}})
    sound = sound and isinstance(adapter, dict) and adapter.keys() == {"sha256", "info"}
    sound = sound and isinstance(adapter["info"], dict)
    sound = sound and all(
        layer.keys() == fields.keys()
        and all(isinstance(layer[name], kind) for name, kind in fields.items())
        and 0 < layer["width"] < 2**31
        and 0 < layer["shift"] < 1e6
        for layer in layers
    )
    if not sound:
        raise TutorError(
            f"{folder} does not say what its teacher was ({json.dumps(dict(facts))[:100]}); build it again."
        )
    return facts
