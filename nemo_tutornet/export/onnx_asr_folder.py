# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Export of a student as a folder that onnx-asr loads, and what onnx-asr can run exactly.

onnx-asr computes the features itself and knows two front ends of NeMo's, with 80 and with 128 mel bins. A
student with any other front end is refused, because its transcripts would differ from NeMo's.

Checked against onnx-asr 0.12.0: `onnx_asr/models/nemo.py`, `onnx_asr/asr.py` and `onnx_asr/preprocessors`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_calibration import calibration_features
from nemo_tutornet.export.onnx_export import (
    OnnxFile,
    describe_onnx,
    graph_with_length,
    require,
    restore_for_onnx,
    with_metadata,
)
from nemo_tutornet.export.onnx_layout import in_fast_layout
from nemo_tutornet.export.onnx_length import PADDING_IS_IGNORED, pads_safely
from nemo_tutornet.export.onnx_metadata import PRECISIONS, WORD, OnnxMetadata, samples_of
from nemo_tutornet.export.onnx_precision import in_precision
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.utils.files import read_regular_file

MODEL_TYPE = "nemo-conformer-ctc"  # its name for every CTC model of NeMo's
CONFIG, VOCABULARY, CARD = "config.json", "vocab.txt", "README.md"
_WRITTEN_BY = "nemo_tutornet"
_MOST_BYTES = 1 << 20
_BLANK = "<blk>"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_WHITEWORD = re.compile(r"\s")

# What onnx-asr computes for NeMo's models. Nothing of it but the number of mel bins can be set.
_FIXED = {
    "sample_rate": (16000,),
    "features": (80, 128),
    "normalize": ("per_feature",),
    "preemph": (0.97,),
    "window": ("hann",),
    "lowfreq": (0,),
    "highfreq": (None, 0, 8000),
    "log": (True,),
    "log_zero_guard_type": ("add",),
    "log_zero_guard_value": (2**-24,),
    "mag_power": (2.0,),
    "mel_norm": ("slaney",),
    "exact_pad": (False,),
}
_N_FFT, _WINDOW_MS, _STRIDE_MS = 512, 25, 10


def model_name(precision: str) -> str:
    """The name of a graph in the folder, which onnx-asr finds by `quantization="fp16"` or `"int8"`.

    Example:
        >>> model_name("fp32"), model_name("int8")
        ('model.onnx', 'model.int8.onnx')
    """
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


def write_onnx_asr(
    nemo_file: Path | NemoArchive,
    folder: Path,
    precisions: Sequence[str] = ("fp32",),
    called: Path | None = None,
    calibrate: Path | None = None,
) -> list[OnnxFile]:
    """Writes the files of an onnx-asr folder: `model.onnx`, `vocab.txt` and `config.json`.

    `onnx_asr.load_model("nemo-conformer-ctc", folder)` loads it.

    Args:
        nemo_file: path or archive of a stock CTC model.
        folder: the folder to write to; made if need be. The caller stages it.
        precisions: the precisions to write, of `PRECISIONS`. Without `fp32`, the model can be loaded with
            `quantization=` only.
        called: the model's name in error messages, for use when `nemo_file` is temporary.
        calibrate: a NeMo manifest for static int8, as in `write_onnx`.

    Returns:
        A description of each graph, in the order of `PRECISIONS`.

    Raises:
        TutorError: a package is missing, the file is not a CTC model, onnx-asr cannot run it exactly, or the
            weights exceed the 2 GB of one ONNX file.
        OSError: a file cannot be written.
    """
    require("onnx", "onnxruntime")
    archive = NemoArchive.of(nemo_file)
    called = called or archive.path
    model, metadata = restore_for_onnx(archive, called)
    refuse_for_onnx_asr(metadata, called)
    _refuse_encoder(model, metadata.subsampling_factor, called)
    note = onnx_asr_note(metadata)
    graph = in_fast_layout(graph_with_length(model, called))
    features = None if calibrate is None else calibration_features(metadata.front_end, calibrate)
    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[Path, str | None] = {}
    for precision in PRECISIONS:
        if precision in precisions:
            entries = {**replace(metadata, precision=precision).as_strings(), **PADDING_IS_IGNORED}
            path = folder / model_name(precision)
            proto, notes[path], described = in_precision(graph, precision, features)
            path.write_bytes(with_metadata(proto, {**entries, **described}).SerializeToString())
    (folder / VOCABULARY).write_bytes(onnx_asr_vocabulary(metadata).encode())
    (folder / CONFIG).write_text(json.dumps(onnx_asr_config(metadata), indent=2) + "\n", encoding="utf-8")
    first = next(iter(notes))
    notes[first] = " ".join(filter(None, (note, notes[first]))) or None
    return [describe_onnx(path, notes[path]) for path in notes]


def onnx_asr_config(metadata: OnnxMetadata) -> dict[str, Any]:
    """The content of `config.json`: what onnx-asr reads, and who wrote it.

    Args:
        metadata: metadata of the model.
    """
    from nemo_tutornet import __version__

    return {
        "model_type": MODEL_TYPE,
        "features_size": metadata.front_end["features"],
        "subsampling_factor": metadata.subsampling_factor,
        "written_by": f"{_WRITTEN_BY} {__version__}",
    }


def onnx_asr_vocabulary(metadata: OnnxMetadata) -> str:
    """The content of `vocab.txt`: a label and its number on each line, the blank last, a space as U+2581.

    WordPiece labels become SentencePiece's, which onnx-asr joins to the same text.

    Args:
        metadata: metadata of the model.
    """
    return "".join(f"{label} {number}\n" for number, label in enumerate([*metadata.spelled_labels(), _BLANK]))


def refuse_for_onnx_asr(metadata: OnnxMetadata, path: Path) -> None:
    """Refuses a model for which onnx-asr would compute other features, or write other texts, than NeMo.

    Args:
        metadata: metadata of the model.
        path: the model's file, for the message.

    Raises:
        TutorError: onnx-asr cannot run the model exactly.
    """
    front_end = metadata.front_end
    rate = front_end["sample_rate"]
    different = [
        f"{key}={front_end[key]!r}" for key, allowed in _FIXED.items() if front_end[key] not in allowed
    ]
    window, stride = samples_of(front_end, "window"), samples_of(front_end, "stride")
    if window * 1000 != _WINDOW_MS * rate:
        different.append(f"a window of {1000 * window / rate:g} ms")
    if stride * 1000 != _STRIDE_MS * rate:
        different.append(f"a stride of {1000 * stride / rate:g} ms")
    if (front_end["n_fft"] or 1 << (window - 1).bit_length()) != _N_FFT:
        different.append(f"n_fft={front_end['n_fft']!r}")
    if different:
        raise TutorError(
            f"{path} has {', '.join(different)} in its front end, which onnx-asr does not compute; train the "
            "student with front_end=deployable (80 mel bins, a window of 25 ms), or export it without "
            "--onnx-asr."
        )
    wrong = _unwritable(metadata)
    if wrong is not None:
        raise TutorError(f"{path} has {wrong}, which onnx-asr cannot write; export it without --onnx-asr.")


def _unwritable(metadata: OnnxMetadata) -> str | None:
    """Finds a label that onnx-asr would write as another text than NeMo."""
    for label in metadata.labels:
        if label == _BLANK:
            return f"the label {label!r}"
        if label != " " and _WHITEWORD.search(label):
            return f"the label {label!r} with white space in it"
        if metadata.tokenizer in ("char", "wpe") and WORD in label:
            return f"the label {label!r}, its sign for a space"
        if metadata.tokenizer in ("bpe", "agg") and _BYTE.fullmatch(label):
            return f"labels of single bytes ({label} and others)"
    return None


def _refuse_encoder(model: Any, subsampling_factor: int, called: Path) -> None:
    """Refuses an encoder whose frames onnx-asr would count otherwise, or that reads padding.

    onnx-asr keeps `(T - 1) // subsampling_factor + 1` frames of an utterance of `T` frames of features.
    """
    import torch

    if not pads_safely(model):
        raise TutorError(
            f"the encoder of {called} has convolutions without masks (conv_mask) or a normalisation over "
            "time, so it reads the padding that onnx-asr adds; export it without --onnx-asr."
        )
    given = torch.arange(33, 49)
    silence = torch.zeros(len(given), model.cfg.preprocessor.get("features", 64), int(given[-1]))
    with torch.no_grad():
        found = model(processed_signal=silence, processed_signal_length=given)[1]
    if not torch.equal(found.cpu().long(), (given - 1) // subsampling_factor + 1):
        raise TutorError(
            f"the encoder of {called} makes another number of frames than onnx-asr counts; export it without "
            "--onnx-asr."
        )


def onnx_asr_note(metadata: OnnxMetadata) -> str | None:
    r"""Tells in which texts onnx-asr's spaces can differ from NeMo's.

    onnx-asr removes a space before every character that is no letter, digit or underscore. NeMo removes it
    before the punctuation marks of the vocabulary.

    Args:
        metadata: metadata of the model.

    Returns:
        A sentence; None where both remove the same.
    """
    characters = sorted({c for label in metadata.labels if not label.startswith("<") for c in label})
    differing = [
        c
        for c in characters
        if c not in (" ", WORD) and (unicodedata.category(c).startswith("P") == bool(re.match(r"\w", c)))
    ]
    if not differing or (metadata.tokenizer == "wpe" and differing == ["#"]):
        return None
    more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
    return (
        f"onnx-asr and NeMo treat a space before {' '.join(differing[:8])}{more} differently, so a "
        "transcript can differ by it; the log-probabilities are the same."
    )


def check_onnx_asr_folder(folder: Path) -> None:
    """Checks that the folder can be written: it does not exist, is empty, or an earlier export wrote it.

    Args:
        folder: the folder that `--onnx-asr` names.

    Raises:
        TutorError: it is a file, or it holds something that an export did not write.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise TutorError(f"{folder} is no folder; give --onnx-asr the name of a folder to write.")
    known = {CONFIG, VOCABULARY, CARD, *map(model_name, PRECISIONS)}
    found = {path.name for path in folder.iterdir()}
    foreign = sorted(found - known)
    if found and not foreign and not _is_ours(folder / CONFIG):
        foreign = sorted(found)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise TutorError(
            f"{folder} holds {', '.join(foreign[:3])}{more}, which no earlier export wrote; give --onnx-asr "
            "another folder."
        )


def _is_ours(config: Path) -> bool:
    try:
        content = json.loads(read_regular_file(config, _MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, Mapping) and str(content.get("written_by")).startswith(_WRITTEN_BY)
