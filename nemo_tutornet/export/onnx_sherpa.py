# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The requirements of sherpa-onnx for a NeMo CTC model: two inputs, a token table, and its own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_metadata import WORD, OnnxMetadata, samples_of

# sherpa-onnx computes the features of a NeMo CTC model with these settings. Neither its API nor the metadata
# of the graph can change them. Measured on 2.0.0 and 2.0.1 with a graph that returns its features as tokens;
# up to 1.13 it clamped the power at 2^-23.
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
    """Compares sherpa-onnx's features with those that the model was trained on.

    A different window or a different floor of the logarithm costs little accuracy (measured on AN4), so it
    gives a warning. Every other difference gives features that the model was never trained on, so it is an
    error.

    Args:
        metadata: metadata of the model.
        path: the model's file, for the message.

    Returns:
        A warning, one sentence; None where the features are equal.

    Raises:
        TutorError: sherpa-onnx cannot compute the features of this model, or cannot decode its labels.
    """
    front_end = metadata.front_end
    rate = front_end["sample_rate"]
    window, stride = samples_of(front_end, "window"), samples_of(front_end, "stride")
    unsupported = [
        f"{key}={front_end[key]!r}" for key, allowed in _FIXED.items() if front_end[key] not in allowed
    ]
    if stride * 1000 != _STRIDE_MS * rate:
        unsupported.append(f"a stride of {1000 * stride / rate:g} ms")
    if front_end["highfreq"] not in (None, 0, rate / 2):
        unsupported.append(f"highfreq={front_end['highfreq']!r}")
    transform = 1 << (rate * _WINDOW_MS // 1000 - 1).bit_length()
    if (front_end["n_fft"] or 1 << (window - 1).bit_length()) != transform:
        unsupported.append(f"n_fft={front_end['n_fft']!r}")
    if any(not label or set(label) & set(" \t\n\r\f\v") for label in metadata.spelled_labels()):
        unsupported.append("an empty label or one with white space in it")
    if metadata.tokenizer == "wpe" and any(WORD in label for label in metadata.labels):
        unsupported.append(f"a WordPiece label with {WORD} in it")
    if unsupported:
        raise TutorError(
            f"{path} has {', '.join(unsupported)}, which sherpa-onnx does not support; export without the "
            "graph for sherpa-onnx."
        )
    differing = []
    if window * 1000 != _WINDOW_MS * rate:
        differing.append(f"a window of {_WINDOW_MS} ms, not {1000 * window / rate:g} ms")
    if (front_end["log_zero_guard_type"], front_end["log_zero_guard_value"]) != ("add", 2**-24):
        differing.append("the logarithm of the power plus 2^-24")
    if not differing:
        return None
    return (
        f"sherpa-onnx will compute {' and '.join(differing)}, so its transcripts can differ from NeMo's; "
        "train the student with window_size=0.025 and NeMo's default log_zero_guard to avoid that."
    )


def with_length(graph: Any) -> Any:
    """Copies an ONNX model and adds the input `length` `[B]`, int64, where the model has none.

    sherpa-onnx always feeds two inputs. With a graph of one input, its C++ code has undefined behaviour.

    Args:
        graph: an `onnx.ModelProto` with the input `audio_signal` `[B, F, T]`.

    Returns:
        The copy.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    if "length" not in [item.name for item in proto.graph.input]:
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info("length", onnx.TensorProto.INT64, [batch])
        )
    return proto


def sherpa_tokens(metadata: OnnxMetadata) -> str:
    """Returns the content of `tokens.txt`: on each line a label, in SentencePiece spelling, and a number."""
    return "".join(
        f"{label} {number}\n" for number, label in enumerate([*metadata.spelled_labels(), "<blk>"])
    )
