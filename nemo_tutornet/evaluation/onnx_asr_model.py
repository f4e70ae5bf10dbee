# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs a folder of the package onnx-asr with that package, as its user would. The folder is untrusted input.

onnx-asr computes the features itself, so an error rate measured here is the client's, and not that of the
graph on NeMo's features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.errors import TutorError, reason_of, shown
from nemo_tutornet.export.onnx_metadata import PRECISIONS, SHA256
from nemo_tutornet.nemo_io.archive import MODEL_CONFIG
from nemo_tutornet.utils.files import read_regular_file

CONFIG = "config.json"
# onnx-asr's model types with NeMo's front end, and the decoder of each.
_DECODERS = {
    "nemo-conformer-ctc": "ctc",
    "nemo-conformer-rnnt": "rnnt",
    "nemo-conformer-tdt": "rnnt",
    "nemo-conformer-aed": "attention",
}
_JSON_BYTES, _VOCABULARY_BYTES = 1 << 20, 16 << 20


def is_onnx_asr_folder(path: Path) -> bool:
    """Tells whether a path is a folder for onnx-asr, and not one that a `.nemo` was unpacked to."""
    return path.is_dir() and (path / CONFIG).exists() and not (path / MODEL_CONFIG).exists()


class OnnxAsrModel:
    """A recogniser in a folder for onnx-asr.

    Args:
        folder: with `config.json`, `vocab.txt` and the graphs (`model.onnx` of a CTC model).
        precision: `fp32` for the graphs as they are named above, or that in their names: `int8` for
            `model.int8.onnx`.

    Attributes:
        folder: the folder.
        precision: the argument.
        decoder: `ctc`, `rnnt` or `attention`.
        sample_rate: samples per second of the audio.
        labels: the labels of `vocab.txt` without the blank.

    Raises:
        TutorError: the package is missing, or the folder is not one for it.
    """

    sample_rate = 16000  # of every NeMo model in onnx-asr

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        self.folder, self.precision = Path(folder), precision
        kind = _model_type(self.folder)
        self.decoder = _DECODERS[kind]
        self.labels = _labels(self.folder)
        self._graphs = graphs_of(self.folder, precision)
        self._model = _load(self.folder, kind, precision)

    @property
    def parameters(self) -> int:
        """Number of weights in the graphs; of a file that our export wrote, the model's own count."""
        import onnx

        total = 0
        for path in self._graphs:
            graph = onnx.load(str(path), load_external_data=False)
            stored = [item.value for item in graph.metadata_props if item.key == "parameters"]
            own = sum(int(np.prod(item.dims)) for item in graph.graph.initializer)
            total += int(stored[0]) if stored and stored[0].isascii() and stored[0].isdigit() else own
        return total

    @property
    def weights_sha256(self) -> str | None:
        """Checksum of the exported weights, from the metadata of a graph that our export wrote; else None."""
        import onnx

        found = {
            item.value
            for path in self._graphs
            for item in onnx.load(str(path), load_external_data=False).metadata_props
            if item.key == "weights_sha256" and SHA256.fullmatch(item.value)
        }
        return found.pop() if len(found) == len(self._graphs) == 1 else None

    @property
    def size(self) -> int:
        """Bytes of the graphs, with the files beside them that hold their weights."""
        return sum(
            file.stat().st_size
            for path in self._graphs
            for file in (path, path.with_name(f"{path.name}.data"))
            if file.is_file()
        )

    def transcribe(self, audio: Sequence[np.ndarray]) -> list[str]:
        """Transcribes utterances, one by one.

        Args:
            audio: waveforms `[N]`, -1 to 1, at `sample_rate`.

        Returns:
            The text of each.

        Raises:
            TutorError: onnx-asr cannot transcribe one.
        """
        texts = []
        for samples in audio:
            try:
                texts.append(str(self._model.recognize(samples, sample_rate=self.sample_rate)))
            except Exception as error:  # onnx-asr's, numpy's and ONNX Runtime's have no common base class
                raise TutorError(
                    f"onnx-asr cannot transcribe {len(samples) / self.sample_rate:.2f} s of audio with "
                    f"{self.folder} ({reason_of(error)}); leave the utterance out, or write the folder again."
                ) from None
        return texts


def graphs_of(folder: Path, precision: str = "fp32") -> list[Path]:
    """Lists the graphs of a folder in a precision; empty where it has none.

    Args:
        folder: a folder for onnx-asr.
        precision: as for `OnnxAsrModel`.
    """
    graphs = sorted(folder.glob("*.onnx"))
    if precision != "fp32":
        return [path for path in graphs if path.stem.endswith(f".{precision}")]
    return [path for path in graphs if path.stem.rpartition(".")[2] not in PRECISIONS]


def folder_decoder(folder: Path) -> str:
    """Returns the decoder of a folder's model: `ctc`, `rnnt` or `attention`.

    Args:
        folder: a folder for onnx-asr.

    Raises:
        TutorError: it is not one with a NeMo model.
    """
    return _DECODERS[_model_type(folder)]


def require_onnx_asr() -> None:
    """Checks that the package onnx-asr can be imported.

    Raises:
        TutorError: it cannot.
    """
    try:
        import onnx_asr  # noqa: F401
    except ImportError as error:
        raise TutorError(
            f"a folder for onnx-asr is evaluated with that package, which cannot be imported ({error}); "
            "install it with pip install onnx-asr."
        ) from None


def _model_type(folder: Path) -> str:
    path = folder / CONFIG
    try:
        config = json.loads(read_regular_file(path, _JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise TutorError(f"{path} cannot be read ({reason_of(error)}); write the folder again.") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in _DECODERS:
        raise TutorError(
            f"{path} has the model_type {shown(kind)}; a folder to evaluate holds a NeMo model "
            f"({', '.join(_DECODERS)})."
        )
    return kind


def _labels(folder: Path) -> list[str]:
    path = folder / "vocab.txt"
    try:
        lines = read_regular_file(path, _VOCABULARY_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise TutorError(f"{path} cannot be read ({reason_of(error)}); write the folder again.") from None
    return [line.rpartition(" ")[0] for line in lines if line.rpartition(" ")[0] != "<blk>"]


def _load(folder: Path, kind: str, precision: str) -> Any:
    require_onnx_asr()
    import onnx_asr
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    # As for our own graphs (`onnx_model.py`), so that the speeds can be compared.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        # The folder exists, so that nothing is looked for on the hub.
        return onnx_asr.load_model(
            kind,
            folder,
            quantization=None if precision == "fp32" else precision,
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnx-asr's and ONNX Runtime's have no common base class
        raise TutorError(
            f"onnx-asr cannot load {folder} ({reason_of(error)}); write the folder again."
        ) from None
