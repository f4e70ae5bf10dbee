# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs an exported `.onnx` with ONNX Runtime, from its metadata alone. The file is untrusted input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.export.onnx_export import require, restore_for_onnx
from nemo_tutornet.export.onnx_metadata import PRECISIONS, OnnxMetadata
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.label_text import join_labels
from nemo_tutornet.nemo_io.stock_config import ctc_class


class OnnxCTCModel:
    """A CTC model for speech recognition, from an `.onnx` file that `write_onnx` wrote.

    The settings come from the file's metadata. NeMo computes the features, and nothing else.

    Each utterance runs by itself, with its valid frames only. A graph without the input `length` has no
    masks, so it would convolve padded frames into valid ones, and NeMo's front end pads the time axis to a
    multiple of 16 where a model's config says so. The result equals that of the masked model on a padded
    batch.

    Legend: `B` utterances, `N` samples, `F` mel bins, `T` frames of the front end, `T'` frames of the
    network, `V` labels without the blank.

    Args:
        path: the `.onnx` file. ONNX Runtime uses as many threads as torch does.
        nemo: archive or path of the model's `.nemo`, which describes a graph without metadata, e.g. one that
            NeMo's exporter wrote. It is not opened where the graph has metadata.

    Attributes:
        path: the file.
        precision: `fp32`, `fp16` or `int8`.
        weights: the precision in words, `int8 static` for static quantization.
        parameters: number of parameters of the exported model.
        weights_sha256: checksum of its weights; None where the metadata have none.
        sample_rate: samples per second of the audio.
        labels: characters or subword pieces without the blank; the blank is the last output.

    Raises:
        TutorError: a package or the file is missing, the file is not readable ONNX, or its metadata are
            missing or invalid.
    """

    def __init__(self, path: Path, nemo: NemoArchive | Path | None = None) -> None:
        require("onnxruntime")
        self.path = Path(path)
        self._session = _open(self.path)
        try:
            entries = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise TutorError(
                f"{self.path} has metadata that are not text; copy the file from its source again."
            ) from None
        if "labels" in entries:
            metadata = OnnxMetadata.from_strings(entries, self.path)
        elif nemo is not None:
            metadata = _described_by(NemoArchive.of(nemo), self.path)
        else:
            raise TutorError(
                f"{self.path} has no labels in its metadata, so it was not written by nemo_tutornet; write "
                "it again with nemo-tutornet export --onnx, or put the model's .nemo beside it as "
                f"{model_name_of(self.path)}.nemo and use nemo-tutornet evaluate."
            )
        self.precision = metadata.precision
        is_static = entries.get("quantization") == "static" and self.precision == "int8"
        self.weights = "int8 static" if is_static else self.precision
        self.parameters = metadata.parameters
        self.weights_sha256 = metadata.weights_sha256
        self.sample_rate = int(metadata.front_end["sample_rate"])
        self.labels = metadata.labels
        self._tokenizer = metadata.tokenizer
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._check_graph(int(metadata.front_end["features"]))
        self._front_end = _build(metadata.front_end)
        self._punctuation = _punctuation_of(self.labels)

    def _check_graph(self, features: int) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if "cache_last_channel" in self._inputs:
            raise TutorError(
                f"{self.path} reads chunks, for a streaming client, and whole utterances are evaluated here; "
                f"give {self.path.name.replace('.streaming', '')}, which computes the same."
            )
        if self._inputs not in (["audio_signal"], ["audio_signal", "length"]) or [
            item.name for item in outputs
        ] != ["logprobs"]:
            raise TutorError(
                f"{self.path} has the inputs {', '.join(self._inputs)} and the outputs "
                f"{', '.join(item.name for item in outputs)}, not audio_signal and logprobs; give a file "
                "that nemo_tutornet exported."
            )
        if len(inputs[0].shape) != 3 or len(outputs[0].shape) != 3:
            raise TutorError(
                f"{self.path} has an input of shape {inputs[0].shape} and an output of shape "
                f"{outputs[0].shape}, but both must have three dimensions; export the model again."
            )
        if isinstance(inputs[0].shape[2], int):
            raise TutorError(
                f"{self.path} reads exactly {inputs[0].shape[2]} frames, but utterances have any length; "
                "evaluate the graph of an export without --fixed-seconds."
            )
        shapes = {
            "mel bins": (inputs[0].shape[1], features),
            "labels": (outputs[0].shape[2], len(self.labels) + 1),
        }
        for what, (found, declared) in shapes.items():
            if isinstance(found, int) and found != declared:
                raise TutorError(
                    f"{self.path} has {found} {what} in its graph and {declared} in its metadata; export the "
                    "model again."
                )

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Computes the features of an utterance with NeMo's front end.

        Args:
            samples: waveform `[N]`, -1 to 1, at `sample_rate`.

        Returns:
            `[1, F, T]`, valid frames only.

        Raises:
            TutorError: the waveform has several channels.
        """
        if np.ndim(samples) != 1:
            raise TutorError(
                f"audio of the shape {list(np.shape(samples))} has several channels, but {self.path} reads "
                "one; give the samples of one channel."
            )
        import torch

        front_end = self._front_end.featurizer
        if (
            front_end.normalize == "per_feature"
            and int(front_end.get_seq_len(torch.tensor(len(samples)))) == 1
        ):
            # A single frame normalised by itself is 0. On a machine with a GPU, NeMo raises an error instead,
            # even on the CPU.
            return np.zeros((1, front_end.nfilt, 1), dtype=np.float32)
        signal = torch.zeros(1, max(1, len(samples)))  # the front end rejects a signal without samples
        signal[0, : len(samples)] = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        with torch.no_grad():
            features, length = self._front_end(input_signal=signal, length=torch.tensor([len(samples)]))
        return features[:, :, : int(length)].numpy()

    def log_probs(self, features: np.ndarray) -> np.ndarray:
        """Runs the network on one utterance.

        Args:
            features: valid frames `[1, F, T]`, as `features` computes them.

        Returns:
            Log-probabilities `[T', V + 1]`, the blank last.

        Raises:
            TutorError: the graph cannot run on an utterance of this length.
        """
        frames = features.shape[2]
        feed = {
            "audio_signal": np.ascontiguousarray(features, dtype=np.float32),
            "length": np.array([frames], np.int64),
        }
        try:
            found = self._session.run(["logprobs"], {name: feed[name] for name in self._inputs})[0][0]
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class
            raise TutorError(
                f"{self.path} cannot run on {frames} frames of {features.shape[1]} mel bins "
                f"({first_line(error)}); NeMo's exporter limits the length of graphs with attention or "
                "squeeze-and-excitation, so cut the audio into shorter utterances."
            ) from None
        if np.isnan(found).any():
            raise TutorError(
                f"{self.path} computes NaN from {frames} frames; its weights are damaged, so export the "
                "model "
                "again."
            )
        return found

    def transcribe(self, audio: Sequence[np.ndarray]) -> list[str]:
        """Transcribes utterances by greedy CTC decoding.

        Args:
            audio: waveforms `[N]`, -1 to 1, at `sample_rate`.

        Returns:
            The text of each utterance. Audio without a single frame gives an empty text.

        Raises:
            TutorError: the graph cannot run on an utterance of this length, or a waveform has several
                channels.
        """
        texts = []
        for samples in audio:
            features = self.features(samples)
            texts.append(self.decode(self.log_probs(features)) if features.shape[2] else "")
        return texts

    def decode(self, log_probs: np.ndarray) -> str:
        """Decodes the best path: merges repeats, removes blanks and joins the labels.

        Args:
            log_probs: `[T', V + 1]`, the blank last.

        Returns:
            The text.
        """
        best = log_probs.argmax(axis=-1)
        changed = best[np.diff(best, prepend=-1) != 0]
        return join_labels(
            [self.labels[i] for i in changed if i < len(self.labels)], self._tokenizer, self._punctuation
        )


def model_name_of(graph: Path) -> str:
    """Returns the name of a graph's model: the file's name without the suffixes that an export adds.

    Example:
        >>> model_name_of(Path("m.v1.int8.onnx")), model_name_of(Path("student.sherpa.onnx"))
        ('m.v1', 'student')
    """
    name = graph.name.removesuffix(".onnx")
    for kind in (*PRECISIONS, "sherpa"):
        if name.endswith(f".{kind}"):
            return name.removesuffix(f".{kind}")
    return name


def _described_by(nemo: NemoArchive, graph: Path) -> OnnxMetadata:
    """Returns the metadata that the export would write for a model, with the precision of a graph of it."""
    import onnx

    from nemo_tutornet.export.verify_graphs import precision_of

    ctc_class(nemo.config, nemo.path, f"the model of {graph}, which has no metadata,")
    precision = precision_of(onnx.load(str(graph), load_external_data=False))
    # Nothing shows that the graph has the weights of this file.
    return replace(restore_for_onnx(nemo, nemo.path)[1], precision=precision, weights_sha256=None)


def _punctuation_of(labels: list[str]) -> Collection[str]:
    from nemo.collections.asr.parts.utils.tokenizer_utils import extract_punctuation_from_vocab

    return extract_punctuation_from_vocab(labels)


def _open(path: Path) -> Any:
    import onnxruntime
    import torch

    if not path.is_file():
        raise TutorError(f"there is no file {path}; give the path of an .onnx file.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Spinning threads of ONNX Runtime take the cores from the threads of the front end, which made a small
    # student several times slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised anyway
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        raise TutorError(
            f"{path} is not a readable .onnx file ({first_line(error)}); it may be truncated, so copy it "
            "again."
        ) from None


def _build(front_end: Mapping[str, Any]) -> Any:
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs

    with suppress_nemo_logs():
        return AudioToMelSpectrogramPreprocessor(**front_end).eval()
