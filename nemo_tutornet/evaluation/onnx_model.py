# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Running an exported `.onnx` with ONNX Runtime, from its metadata alone; the file is untrusted input."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.errors import TutorError
from nemo_tutornet.export.onnx_export import require
from nemo_tutornet.export.onnx_metadata import OnnxMetadata

# What SentencePiece writes for the pieces that every model of it has and no transcript should.
_SURFACE = {"<unk>": " \u2047 ", "<s>": "", "</s>": ""}
_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+")


class OnnxCTCModel:
    """A CTC recogniser from an `.onnx` file that `write_onnx` wrote.

    Everything is read from the file's metadata; NeMo computes the features and nothing else. The graph has no
    masks, and NeMo's front end pads the time axis to a multiple of 16 where a model's config says so: padded
    frames would be convolved into the valid ones. So one utterance enters at a time, with its valid frames
    only; that equals what the masked model makes of a padded batch.

    Legend: `B` utterances, `F` mel bins, `T` frames of the front end, `T'` frames of the network, `V` labels.

    Args:
        path: the `.onnx` file. It computes with as many threads as torch does.

    Attributes:
        path: the file.
        precision: `fp32`, `fp16` or `int8`.
        parameters: of the model that was exported.
        megabytes: size of the file.
        sample_rate: samples per second of the audio.
        labels: characters or pieces, without the blank, which is last.
        ms_per_frame: milliseconds from one frame of the output to the next.

    Raises:
        TutorError: a missing package or file, no readable ONNX, or metadata that are missing or wrong.
    """

    def __init__(self, path: Path) -> None:
        require("onnxruntime")
        self.path = Path(path)
        self._session = _open(self.path)
        try:
            entries = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise TutorError(
                f"{self.path} has metadata that are no text; take the file from its source again."
            ) from None
        metadata = OnnxMetadata.from_strings(entries, self.path)
        self.precision = metadata.precision
        self.parameters = metadata.parameters
        self.megabytes = self.path.stat().st_size / 1e6
        self.sample_rate = int(metadata.front_end["sample_rate"])
        self.labels = metadata.labels
        self.ms_per_frame = metadata.ms_per_frame
        self._tokenizer = metadata.tokenizer
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._check_graph(int(metadata.front_end["features"]))
        self._front_end = _build(metadata.front_end)
        self._punctuation = _punctuation_of(self.labels)

    def _check_graph(self, features: int) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if self._inputs not in (["audio_signal"], ["audio_signal", "length"]) or [
            item.name for item in outputs
        ] != ["logprobs"]:
            raise TutorError(
                f"{self.path} has the inputs {', '.join(self._inputs)} and the outputs "
                f"{', '.join(item.name for item in outputs)}, not audio_signal and logprobs as nemo_tutornet "
                "writes them."
            )
        if len(inputs[0].shape) != 3 or len(outputs[0].shape) != 3:
            raise TutorError(
                f"{self.path} takes {inputs[0].shape} and gives {outputs[0].shape}, not three dimensions "
                "each."
            )
        shapes = {
            "mel bins": (inputs[0].shape[1], features),
            "labels": (outputs[0].shape[2], len(self.labels) + 1),
        }
        for what, (found, told) in shapes.items():
            if isinstance(found, int) and found != told:
                raise TutorError(f"{self.path} has {found} {what} in its graph and {told} in its metadata.")

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Valid frames of NeMo's front end.

        Args:
            samples: waveform `[N]`, -1 to 1.

        Returns:
            `[1, F, T]`, without what the front end pads.
        """
        import torch

        front_end = self._front_end.featurizer
        if (
            front_end.normalize == "per_feature"
            and int(front_end.get_seq_len(torch.tensor(len(samples)))) == 1
        ):
            # Normalised by itself, a frame is nothing; NeMo refuses it where there is a GPU, wherever it
            # computes.
            return np.zeros((1, front_end.nfilt, 1), dtype=np.float32)
        signal = torch.zeros(1, max(1, len(samples)))  # the front end does not take a signal without samples
        signal[0, : len(samples)] = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        with torch.no_grad():
            features, length = self._front_end(input_signal=signal, length=torch.tensor([len(samples)]))
        return features[:, :, : int(length)].numpy()

    def log_probs(self, features: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        """Log-probabilities of a batch, each utterance run by itself on its valid frames.

        Args:
            features: `[B, F, T]`.
            lengths: valid frames `[B]`.

        Returns:
            `[B, T', V + 1]`, the blank last. `T'` is the longest utterance's; frames that a shorter one does
            not have are NaN.
        """
        rows = [self._run(features[i : i + 1, :, : int(length)]) for i, length in enumerate(lengths)]
        padded = np.full(
            (len(rows), max(len(row) for row in rows), len(self.labels) + 1), np.nan, dtype=np.float32
        )
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded

    def transcribe(
        self, audio: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """Greedy CTC transcripts.

        Args:
            audio: waveforms `[N]`, -1 to 1, at `sample_rate`.
            progress: called with the number of utterances done, after each.

        Returns:
            A text each; an empty one for audio shorter than a hop, in which there is no frame.
        """
        texts = []
        for samples in audio:
            features = self.features(samples)
            texts.append(self.decode(self._run(features)) if features.shape[2] else "")
            if progress is not None:
                progress(len(texts))
        return texts

    def decode(self, log_probs: np.ndarray) -> str:
        """The text of the best path: repeats merged, blanks removed.

        Args:
            log_probs: `[T', V + 1]`, the blank last.
        """
        best = log_probs.argmax(axis=-1)
        changed = best[np.diff(best, prepend=-1) != 0]
        return join_labels(
            [self.labels[i] for i in changed if i < len(self.labels)], self._tokenizer, self._punctuation
        )

    def _run(self, features: np.ndarray) -> np.ndarray:
        frames = features.shape[2]
        feed = {
            "audio_signal": np.ascontiguousarray(features, dtype=np.float32),
            "length": np.array([frames], np.int64),
        }
        try:
            return self._session.run(["logprobs"], {name: feed[name] for name in self._inputs})[0][0]
        except Exception as error:  # ONNX Runtime's own classes have no common base but this
            raise TutorError(
                f"{self.path} does not take {frames} frames of {features.shape[1]} mel bins "
                f"({_first_line(error)}); graphs with attention or squeeze-and-excitation end where NeMo's "
                "exporter ended, so cut the audio into shorter utterances."
            ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def join_labels(labels: Sequence[str], tokenizer: str, punctuation: Collection[str] = ()) -> str:
    """Characters or pieces put together as NeMo does it, 2.7.3 as well as 3.0.

    Args:
        labels: in the order of speech.
        tokenizer: `char`, `bpe` (SentencePiece, a word begins with U+2581), `agg` (several of those) or `wpe`
            (WordPiece, a word goes on with `##`).
        punctuation: marks of the vocabulary, by NeMo's `extract_punctuation_from_vocab`: one space before
            each is taken away, whatever the tokenizer, and before an apostrophe too.
    """
    if tokenizer == "char":
        text = "".join(labels)
    elif tokenizer == "wpe":
        text = " ".join(labels).replace(" ##", "")
    else:
        text = "".join(_SURFACE.get(label, label) for label in labels).lstrip("\u2581").replace("\u2581", " ")
        text = _BYTES.sub(_from_bytes, text)
    return re.sub(rf"\s([{re.escape(''.join(punctuation))}])", r"\1", text) if punctuation else text


def _from_bytes(pieces: re.Match[str]) -> str:
    """SentencePiece's byte pieces, `<0xC3><0xA9>`, as UTF-8; each byte that belongs to no character becomes
    U+FFFD.
    """
    # Python's own errors="replace" writes one U+FFFD for a character cut short, however many bytes it has.
    text = bytes.fromhex(re.sub("<0x|>", "", pieces[0])).decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", "\ufffd", text)


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
    # Threads that wait by spinning keep the front end's from the cores: a small student was several times
    # slower with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised as well
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes have no common base but this
        raise TutorError(
            f"{path} is not a readable .onnx file ({_first_line(error)}); it may be truncated, copy it again."
        ) from None


def _build(front_end: Mapping[str, Any]) -> Any:
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs

    with suppress_nemo_logs():
        return AudioToMelSpectrogramPreprocessor(**front_end).eval()
