# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Metadata of an exported `.onnx` file, sufficient to transcribe with the file without NeMo."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError, shown
from nemo_tutornet.nemo_io.stock_config import CTC_CLASSES

PRECISIONS = ("fp32", "fp16", "int8")
TOKENIZERS = ("char", "bpe", "wpe", "agg")
SHA256 = re.compile("[0-9a-f]{64}")
WORD = "\u2581"  # SentencePiece's sign for a space, or the beginning of a word
_AGAIN = "write it again with nemo-tutornet export --onnx"
# Lowest and highest allowed value of each number of the front end. The limits keep a file from elsewhere from
# requiring gigabytes of memory. Dither and padding must be off, because a graph without `length` has no
# masks. Frame splicing must be off, because NeMo's gives lengths that do not fit.
_RANGES = {
    "sample_rate": (1000, 192000),
    "window_size": (0.001, 1.0),
    "window_stride": (0.001, 1.0),
    "n_window_size": (1, 65536),
    "n_window_stride": (1, 65536),
    "features": (1, 1024),
    "n_fft": (16, 65536),
    "preemph": (0.0, 1.0),
    "lowfreq": (0, 96000),
    "highfreq": (0, 96000),
    "log_zero_guard_value": (0.0, 1.0),
    "dither": (0, 0),
    "pad_to": (0, 0),
    "frame_splicing": (1, 1),
    "mag_power": (0.1, 4.0),
}
_WORDS = {
    "window": ("hann", "hamming", "blackman", "bartlett"),
    "normalize": ("per_feature", "all_features", "NA", None),
    "log": (True, False),
    "log_zero_guard_type": ("add", "clamp"),
    "exact_pad": (False,),
    "mel_norm": ("slaney", None),
}
_OPTIONAL = (
    "window_size",
    "window_stride",
    "n_window_size",
    "n_window_stride",
    "n_fft",
    "preemph",
    "highfreq",
)


@dataclass(frozen=True)
class OnnxMetadata:
    """Facts that a client needs to run an exported graph.

    Attributes:
        target: the model's NeMo class.
        labels: characters or pieces in the order of the output, without the blank, which is last.
        tokenizer: how to turn labels into text, one of `TOKENIZERS`.
        parameters: number of parameters of the model.
        front_end: all arguments of NeMo's `AudioToMelSpectrogramPreprocessor` that matter to a trained model.
        subsampling_factor: number of frames of the front end per frame of the output.
        precision: precision of the weights, one of `PRECISIONS`.
        receptive_field: number of frames of the front end before and behind its own that a frame of the
            output depends on; None where that is the whole utterance, or not known.
        weights_sha256: checksum of the weights that were exported (`nemo_io.weights.weights_sha256`); None
            where it is not known.
    """

    target: str
    labels: list[str]
    tokenizer: str
    parameters: int
    front_end: dict[str, Any]
    subsampling_factor: int
    precision: str
    receptive_field: tuple[int, int] | None = None
    weights_sha256: str | None = None

    @property
    def ms_per_frame(self) -> float:
        """Milliseconds from one frame of the output to the next."""
        return round(
            1000
            * samples_of(self.front_end, "stride")
            * self.subsampling_factor
            / self.front_end["sample_rate"],
            3,
        )

    def spelled_labels(self) -> list[str]:
        r"""Spells the labels as SentencePiece does, which sherpa-onnx and onnx-asr join to a text.

        A space is U+2581. A WordPiece label that begins a word gets U+2581 in front, and one that continues
        a word loses its `##`.

        Returns:
            The labels in the order of the output, without the blank.

        Example:
            >>> OnnxMetadata("", ["o", "##ff"], "wpe", 0, {}, 2, "fp32").spelled_labels()
            ['▁o', 'ff']
        """
        if self.tokenizer == "wpe":
            return [label[2:] if label.startswith("##") else WORD + label for label in self.labels]
        return [WORD if label == " " else label for label in self.labels]

    def as_strings(self) -> dict[str, str]:
        """Converts the metadata to the entries of an ONNX file."""
        from nemo_tutornet import __version__

        return {
            "class": self.target,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "blank_id": str(len(self.labels)),
            "tokenizer": self.tokenizer,
            "parameters": str(self.parameters),
            "preprocessor": json.dumps(self.front_end),
            "ms_per_frame": f"{self.ms_per_frame:g}",
            "precision": self.precision,
            **({} if self.receptive_field is None else {"receptive_field": json.dumps(self.receptive_field)}),
            **({} if self.weights_sha256 is None else {"weights_sha256": self.weights_sha256}),
            # The following entries are for sherpa-onnx.
            "vocab_size": str(len(self.labels)),
            "normalize_type": str(self.front_end["normalize"] or "NA"),
            "subsampling_factor": str(self.subsampling_factor),
            "model_type": self.target.rsplit(".", 1)[-1],
            "version": "1",
            "model_author": "nemo_tutornet",
            "comment": f"written by nemo_tutornet {__version__} with NeMo's exporter; the front end is not "
            "in the graph",
        }

    @classmethod
    def from_strings(cls, entries: Mapping[str, str], path: Path) -> OnnxMetadata:
        """Parses the metadata entries of an untrusted ONNX file.

        Args:
            entries: the entries as they are in the file.
            path: the file, for error messages.

        Returns:
            The metadata.

        Raises:
            TutorError: an entry is missing or invalid.
        """
        labels = _json(entries, "labels", path)
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise TutorError(f"{path}: labels in its metadata are no list of texts; {_AGAIN}.")
        if _value(entries, "blank_id", path) != str(len(labels)):
            raise TutorError(
                f"{path}: blank_id in its metadata is {entries['blank_id']!r}, not {len(labels)}; {_AGAIN}."
            )
        front_end = _json(entries, "preprocessor", path)
        wrong = wrong_front_end(front_end)
        if wrong is not None:
            raise TutorError(
                f"{path}: preprocessor in its metadata is not NeMo's mel front end ({wrong}); {_AGAIN}."
            )
        return cls(
            target=_choice(entries, "class", tuple(CTC_CLASSES.values()), path),
            labels=labels,
            tokenizer=_choice(entries, "tokenizer", TOKENIZERS, path),
            parameters=_whole(entries, "parameters", path),
            front_end=front_end,
            subsampling_factor=_whole(entries, "subsampling_factor", path),
            precision=_choice(entries, "precision", PRECISIONS, path),
            receptive_field=_receptive_field(entries, path),
            weights_sha256=_sha256(entries, path),
        )


def front_end_of(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Reads the parameters of a model's front end, and fills in NeMo's defaults.

    Dither and padding are set to 0.

    Args:
        section: the `preprocessor` section of a model's config, with every interpolation resolved.
        path: the model's file, for error messages.

    Returns:
        The value of each parameter, by name.

    Raises:
        TutorError: the front end is not NeMo's mel spectrogram, or the metadata cannot hold its parameters.
    """
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    name = str(section.get("_target_")).rsplit(".", 1)[-1]
    if name != AudioToMelSpectrogramPreprocessor.__name__:
        raise TutorError(
            f"{path} has the front end {name}; ONNX is written for models with NeMo's mel spectrogram, "
            f"{AudioToMelSpectrogramPreprocessor.__name__}."
        )
    parameters = inspect.signature(AudioToMelSpectrogramPreprocessor.__init__).parameters
    front_end = {key: section.get(key, parameters[key].default) for key in (*_RANGES, *_WORDS)}
    front_end.update(dither=0, pad_to=0)
    wrong = wrong_front_end(front_end)
    if wrong is not None:
        raise TutorError(f"{path} has a front end that the metadata of an ONNX file cannot hold: {wrong}.")
    return front_end


def wrong_front_end(values: Any) -> str | None:
    """Checks that the parameters of a front end are complete, consistent and within their ranges.

    Args:
        values: the parameters, by name; any other object is reported as an error.

    Returns:
        A short description of the first error; None if there is none.
    """
    if not isinstance(values, dict):
        return "no mapping"
    differing = sorted({*_RANGES, *_WORDS} ^ set(values))
    if differing:
        return f"missing or unknown: {', '.join(map(str, differing))}"
    for key, value in values.items():
        if value is None:
            good = key in _OPTIONAL or None in _WORDS.get(key, ())
        elif key in _WORDS:
            good = isinstance(value, (str, bool)) and value in _WORDS[key]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            good = _RANGES[key][0] <= value <= _RANGES[key][1]
        else:
            good = key == "log_zero_guard_value" and value in ("tiny", "eps")
        if not good:
            return f"{key} is {value!r}"
    for seconds, samples in (("window_size", "n_window_size"), ("window_stride", "n_window_stride")):
        if (values[seconds] is None) == (values[samples] is None):
            return (
                f"neither {seconds} nor {samples}"
                if values[seconds] is None
                else f"both {seconds} and {samples}"
            )
    if values["n_fft"] is not None and samples_of(values, "window") > values["n_fft"]:
        return f"n_fft is {values['n_fft']}, shorter than the window"
    if not values["lowfreq"] < (values["highfreq"] or values["sample_rate"] / 2) <= values["sample_rate"] / 2:
        return f"lowfreq is {values['lowfreq']} and highfreq {values['highfreq']}"
    return None


def samples_of(front_end: Mapping[str, Any], what: str) -> int:
    """Computes the length of a front end's window or stride in samples.

    Args:
        front_end: the parameters of the front end.
        what: `window` or `stride`.

    Returns:
        Number of samples.
    """
    given = {"window": ("n_window_size", "window_size"), "stride": ("n_window_stride", "window_stride")}[what]
    samples, seconds = (front_end[key] for key in given)
    return int(samples if samples is not None else seconds * front_end["sample_rate"])


def _value(entries: Mapping[str, str], key: str, path: Path) -> str:
    if key not in entries:
        raise TutorError(
            f"{path} has no {key} in its metadata, so it was not written by nemo_tutornet; {_AGAIN}."
        )
    return entries[key]


def _choice(entries: Mapping[str, str], key: str, choices: tuple[str, ...], path: Path) -> str:
    value = _value(entries, key, path)
    if value not in choices:
        raise TutorError(
            f"{path}: {key} in its metadata is {value!r}, which is none of {', '.join(choices)}; {_AGAIN}."
        )
    return value


def _receptive_field(entries: Mapping[str, str], path: Path) -> tuple[int, int] | None:
    if "receptive_field" not in entries:
        return None
    value = _json(entries, "receptive_field", path)
    if not (
        isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 <= n < 10**6 for n in value)
    ):
        raise TutorError(
            f"{path}: receptive_field in its metadata is {shown(value)}, not two numbers of frames; {_AGAIN}."
        )
    return value[0], value[1]


def _sha256(entries: Mapping[str, str], path: Path) -> str | None:
    value = entries.get("weights_sha256")
    if value is not None and not SHA256.fullmatch(value):
        raise TutorError(
            f"{path}: weights_sha256 in its metadata is {shown(value)}, which is no checksum; {_AGAIN}."
        )
    return value


def _whole(entries: Mapping[str, str], key: str, path: Path) -> int:
    value = _value(entries, key, path)
    if not (value.isascii() and value.isdigit() and len(value) < 15 and int(value)):
        raise TutorError(
            f"{path}: {key} in its metadata is {value!r}, which is no positive number; {_AGAIN}."
        )
    return int(value)


def _json(entries: Mapping[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(_value(entries, key, path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TutorError(f"{path}: {key} in its metadata is no JSON ({error}); {_AGAIN}.") from None
