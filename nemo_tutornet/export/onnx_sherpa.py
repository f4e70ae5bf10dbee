# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What sherpa-onnx wants of a NeMo CTC model: two inputs, a table of tokens, and features as it computes
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_metadata import OnnxMetadata, samples_of

# sherpa-onnx computes the features of a NeMo CTC model with these, and neither its API nor the metadata can
# change them (2.0.0 and 2.0.1, by a graph that gives its features back as tokens; up to 1.13 it clamped the
# power at 2^-23).
_FIXED = {
    "normalize": ("per_feature", "NA", None),
    "preemph": (0.97,),
    "window": ("hann",),
    "lowfreq": (0,),
    "log": (True,),
    "mag_power": (2.0,),
    "mel_norm": ("slaney",),
}
_WINDOW_MS, _STRIDE_MS = 25, 10


def sherpa_note(metadata: OnnxMetadata, path: Path) -> str | None:
    """How sherpa-onnx's features differ from those that the model was trained on.

    A different window or floor of the logarithm costs little (measured on AN4), so these are told; everything
    else would give a model features that it has never seen, so it is refused.

    Args:
        metadata: of the model.
        path: its file, for the message.

    Returns:
        A sentence, or None where the features are the same.

    Raises:
        TutorError: sherpa-onnx cannot run this model as it was trained.
    """
    front_end = metadata.front_end
    rate = front_end["sample_rate"]
    window, stride = samples_of(front_end, "window"), samples_of(front_end, "stride")
    wrong = [f"{key}={front_end[key]!r}" for key, allowed in _FIXED.items() if front_end[key] not in allowed]
    if stride * 1000 != _STRIDE_MS * rate:
        wrong.append(f"a stride of {1000 * stride / rate:g} ms")
    if front_end["highfreq"] not in (None, 0, rate / 2):
        wrong.append(f"highfreq={front_end['highfreq']!r}")
    transform = 1 << (rate * _WINDOW_MS // 1000 - 1).bit_length()
    if (front_end["n_fft"] or 1 << (window - 1).bit_length()) != transform:
        wrong.append(f"n_fft={front_end['n_fft']!r}")
    if metadata.tokenizer == "wpe":
        wrong.append("a WordPiece tokenizer")
    if any(label != " " and (not label or set(label) & set(" \t\n\r\f\v")) for label in metadata.labels):
        wrong.append("a label with white space in it")
    if wrong:
        raise TutorError(f"{path} has {', '.join(wrong)}, which sherpa-onnx cannot do; leave its graph out.")
    differing = []
    if window * 1000 != _WINDOW_MS * rate:
        differing.append(f"a window of {_WINDOW_MS} ms, not {1000 * window / rate:g} ms")
    if (front_end["log_zero_guard_type"], front_end["log_zero_guard_value"]) != ("add", 2**-24):
        differing.append("the logarithm of the power plus 2^-24")
    if not differing:
        return None
    return (
        f"sherpa-onnx will compute {' and '.join(differing)}, so its transcripts can differ from NeMo's; a "
        "student trained with window_size=0.025 and NeMo's own log_zero_guard has no such difference."
    )


def with_length(plain: Any) -> Any:
    """A copy of a graph that also takes `length` `[B]`.

    sherpa-onnx always gives two inputs; a graph with one is undefined behaviour in its C++.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(plain)
    if "length" not in [item.name for item in proto.graph.input]:
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info("length", onnx.TensorProto.INT64, [batch])
        )
    return proto


def sherpa_tokens(metadata: OnnxMetadata) -> str:
    """The content of `tokens.txt`: a label and its number a line, a space as U+2581, the blank last."""
    labels = ["\u2581" if label == " " else label for label in metadata.labels]
    return "".join(f"{label} {number}\n" for number, label in enumerate([*labels, "<blk>"]))
