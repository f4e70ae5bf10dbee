# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher adapter (ours): a small CTC head on the frozen encoder of any NeMo teacher.

The head outputs the student's labels at the student's frame rate. A subword, transducer or attention teacher
with long frames therefore teaches a character student with posteriors, not only with hidden vectors.
`nemo-tutornet adapt` trains it; `tutor.teacher.adapter` names its file.

Legend: `B` utterances, `T` frames of the teacher, `r` adapter frames for each teacher frame, `D` width of the
teacher's encoder, `A` width of the adapter, `V` labels with the blank last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.nemo_io.layers import Layer
from nemo_tutornet.teachers.adapter_head import KERNEL, SECOND_KERNEL, AdapterHead
from nemo_tutornet.utils.files import atomic_write, expand_user, open_regular_file, sha256_of

# The name of the adapter's output as a layer: `tutor.rkd.hint_layer: adapter`.
ADAPTER = "adapter"
# Of files that do not say it: the first layer alone.
OLD_KERNELS = {"kernel": 3, "second_kernel": 0}
_WIDEST_KERNEL = 255
# The only key of the metadata, because safetensors writes several in any order, and files must be
# reproducible.
_DESCRIPTION = "nemo_tutornet_adapter_1"
# An adapter of 1,024 channels in, 8 frames of 1,024 out and 16,384 labels has 170 MB.
_MOST_BYTES = 1 << 30
_MOST_UPSAMPLING = 64
_GOOD_RATIO = 1.15


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is: the student that it was made for, the teacher that it belongs to, and how good it
    is.

    Attributes:
        labels: the student's labels in the order of the posteriors, without the blank, which is last.
        frame_ms: milliseconds from one frame of the adapter to the next.
        upsampling: adapter frames for each teacher frame, `r`.
        teacher_width: width of the teacher's encoder, `D`.
        width: width of the adapter's hidden vectors, `A`.
        teacher_outputs: outputs of the teacher's own CTC head that the adapter reads, `V_T`; 0 where the
            teacher has none.
        teacher_sha256: checksum of the teacher's file; None if the teacher was a folder.
        teacher_class: the teacher's NeMo class.
        wer: the adapter's word error rate on the validation set, as a fraction.
        teacher_wer: the teacher's own word error rate there, as a fraction.
        utterances: utterances of the validation set.
        kernel: frames of the teacher that the first layer reads, an odd number.
        second_kernel: frames of the adapter that the second layer reads, an odd number; 0 without a second
            layer.
    """

    labels: tuple[str, ...]
    frame_ms: float
    upsampling: int
    teacher_width: int
    width: int
    teacher_outputs: int
    teacher_sha256: str | None
    teacher_class: str
    wer: float
    teacher_wer: float
    utterances: int
    kernel: int = KERNEL
    second_kernel: int = SECOND_KERNEL

    @property
    def writes_hypotheses(self) -> bool:
        """Whether pseudo-labels are the adapter's hypotheses: it makes fewer errors than its teacher."""
        return self.wer < self.teacher_wer

    def in_words(self) -> str:
        """Returns one line for `nemo-tutornet check` and `inspect`."""
        return (
            f"{len(self.labels)} labels and the blank, {self.frame_ms:g} ms frames "
            f"({self.upsampling} for each frame of the teacher), WER {100 * self.wer:.1f} % on "
            f"{self.utterances} validation utterances (its teacher: {100 * self.teacher_wer:.1f} %)"
        )


@dataclass(frozen=True)
class Adapter:
    """An adapter as a live teacher uses it: frozen, in eval mode.

    Attributes:
        head: the network.
        info: what it is.
        sha256: checksum of its file; None before it is written.
    """

    head: AdapterHead
    info: AdapterInfo
    sha256: str | None = None

    @property
    def layer(self) -> Layer:
        """The adapter's hidden vectors as a layer."""
        return Layer(ADAPTER, self.info.width, 2, self.info.frame_ms)

    def check_owner(self, sha256: str | None, teacher: str, subject: str) -> None:
        """Refuses an adapter that was trained on another teacher's encoder.

        Args:
            sha256: checksum of the teacher's file; None if it is a folder.
            teacher: the teacher, for the message.
            subject: the key of the config and its value, for the message.

        Raises:
            TutorError: the adapter belongs to another teacher.
        """
        owner = self.info.teacher_sha256
        if owner != sha256:
            raise TutorError(
                f"{subject}, which was made for another teacher (sha256 {owner or 'none, a folder'}) than "
                f"{teacher} (sha256 {sha256 or 'none, a folder'}); make one for this teacher with "
                "`nemo-tutornet adapt`."
            )

    def save(self, path: Path) -> None:
        """Writes the adapter as safetensors, with its `info` as metadata, whole or not at all."""
        from safetensors.torch import save

        tensors = {
            name: value.detach().float().cpu().contiguous() for name, value in self.head.state_dict().items()
        }
        metadata = {_DESCRIPTION: json.dumps(asdict(self.info))}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            # `save_file` would make the file readable by its owner only.
            temporary.write_bytes(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, key: str = "model.tutor.teacher.adapter") -> Adapter:
        """Reads and checks the file of an adapter, which is untrusted input.

        Args:
            path: the file.
            key: the key of the config, for the message.

        Raises:
            TutorError: there is no such file, or it is not what `nemo-tutornet adapt` writes.
        """
        file = expand_user(path)
        if not file.is_file():
            raise TutorError(f"{key} is {path}, and there is no such file; `nemo-tutornet adapt` makes one.")
        if file.suffix == ".nemo":
            raise TutorError(
                f"{key} is {path}, which is a model; give a .safetensors file of `nemo-tutornet adapt`."
            )
        metadata, tensors = _read(file, key)
        info = _info_of(metadata)
        if info is None:
            raise TutorError(
                f"{key} is {path}, which is not a file of `nemo-tutornet adapt`; make one with that command."
            )
        sizes = info.teacher_width, info.width, info.upsampling, len(info.labels) + 1, info.teacher_outputs
        head = AdapterHead(*sizes, kernel=info.kernel, second_kernel=info.second_kernel)
        wanted = {name: tensor.shape for name, tensor in head.state_dict().items()}
        fits = {name: tensor.shape for name, tensor in tensors.items()} == wanted and all(
            tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()
        )
        if not fits:
            raise TutorError(
                f"{key} is {path}, whose tensors are damaged: names, shapes or values are not those of its "
                "description; make it again with `nemo-tutornet adapt`."
            )
        head.load_state_dict(tensors)
        return cls(head.requires_grad_(False).eval(), info, sha256_of(file))


def is_poor(wer: float, teacher_wer: float) -> bool:
    """Whether an adapter makes clearly more errors than its teacher (ours: more than 1.15 times).

    Args:
        wer: the adapter's word error rate.
        teacher_wer: its teacher's.

    Example:
        >>> is_poor(0.11, 0.10), is_poor(0.12, 0.10)
        (False, True)
    """
    return wer > _GOOD_RATIO * teacher_wer


def upsampling_for(teacher_ms: float, student_ms: float) -> int:
    """Returns the adapter frames for each teacher frame that a student needs.

    Args:
        teacher_ms: milliseconds from one frame of the teacher to the next.
        student_ms: the same of the student.

    Returns:
        The ratio where it is a whole number; 1 otherwise, and 1 for a student with longer frames, which pools
        the adapter's frames.

    Example:
        >>> upsampling_for(80.0, 20.0), upsampling_for(40.0, 40.0), upsampling_for(20.0, 80.0)
        (4, 1, 1)
    """
    ratio = teacher_ms / student_ms
    return round(ratio) if ratio >= 1 and abs(ratio - round(ratio)) < 1e-6 else 1


def _read(file: Path, key: str) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with open_regular_file(file.resolve()) as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise TutorError(
                f"{key} is {file}, which has more than 1 GB; an adapter is smaller, so give the right file."
            )
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return header.get("__metadata__") or {}, load(content)
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise TutorError(
            f"{key} is {file}, which cannot be read as an adapter ({first_line(error)[:200]}); make one with "
            "`nemo-tutornet adapt`."
        ) from None


def _info_of(metadata: Mapping[str, str]) -> AdapterInfo | None:
    """Returns the description in a file's metadata; None where it is none."""
    try:
        return adapter_info(json.loads(metadata.get(_DESCRIPTION, "")))
    except (ValueError, RecursionError):
        return None


def adapter_info(found: Any) -> AdapterInfo | None:
    """Checks the fields of a description that was read from disk.

    Args:
        found: what was read; untrusted.

    Returns:
        The description; None where a field is missing, unknown or of a wrong kind or size.
    """
    kinds: dict[str, Any] = {
        "labels": list,
        "frame_ms": (int, float),
        "upsampling": int,
        "teacher_width": int,
        "width": int,
        "teacher_outputs": int,
        "teacher_sha256": (str, type(None)),
        "teacher_class": str,
        "wer": (int, float),
        "teacher_wer": (int, float),
        "utterances": int,
        "kernel": int,
        "second_kernel": int,
    }
    assert kinds.keys() == {field.name for field in fields(AdapterInfo)}
    numbers = ("frame_ms", "wer", "teacher_wer")
    if isinstance(found, dict):
        found = {**OLD_KERNELS, **found}
    sound = (
        isinstance(found, dict)
        and found.keys() == kinds.keys()
        and all(isinstance(found[name], kind) for name, kind in kinds.items())
        and not any(isinstance(value, bool) for value in found.values())
        and all(isinstance(label, str) for label in found["labels"])
        # A comparison, because a JSON number may be too large for a float, or NaN.
        and all(0 <= found[name] < 1e6 for name in numbers)
        and found["frame_ms"] > 0
        and 1 <= found["upsampling"] <= _MOST_UPSAMPLING
        and min(found["teacher_width"], found["width"]) >= 1
        and found["teacher_outputs"] >= 0
        and found["kernel"] in range(1, _WIDEST_KERNEL + 1, 2)
        and found["second_kernel"] in (0, *range(1, _WIDEST_KERNEL + 1, 2))
        # A wrong size is found before a network of it is allocated.
        and _size(found) <= _MOST_BYTES
    )
    return AdapterInfo(**{**found, "labels": tuple(found["labels"])}) if sound else None


def _size(found: Mapping[str, Any]) -> int:
    """Returns the bytes of the largest tensors of an adapter."""
    inputs = found["teacher_width"] + found["teacher_outputs"]
    expand: int = inputs * found["width"] * found["upsampling"] * found["kernel"]
    second: int = found["width"] ** 2 * found["second_kernel"]
    decoders: int = found["teacher_width"] * found["teacher_outputs"] + len(found["labels"]) * found["width"]
    return 4 * (expand + second + decoders)
