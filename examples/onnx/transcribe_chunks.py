# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcribe audio as it arrives with an exported convolutional student (QuartzNet, Jasper): numpy, librosa
and ONNX Runtime, no NeMo and no torch.

python transcribe_chunks.py STUDENT.onnx a.wav b.flac --chunk 1 --look-ahead 0.5

A frame of a convolutional network depends on a limited piece of the audio, its receptive field. So the
network reads a chunk with some audio before it (the left context) and behind it (the look-ahead), and only
the frames of the chunk are kept. With the whole receptive field on both sides they are those of the whole
utterance.

The features are the trap: the model was trained on features that are normalised over the whole utterance, and
a stream has no whole utterance. `--statistics` says what takes its place.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnxruntime
from transcribe_onnxruntime import joined, log_mel, read

STATISTICS = ("running", "session", "utterance")


class Statistics:
    """Mean and deviation of each mel bin over the frames so far."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, log: np.ndarray) -> None:
        """Adds frames [mel bins, frames]."""
        log = log.astype(np.float64)
        self.count += log.shape[1]
        self.total += log.sum(axis=1, keepdims=True)
        self.squares += (log**2).sum(axis=1, keepdims=True)

    def normalise(self, log: np.ndarray) -> np.ndarray:
        """Normalises features as NeMo does, [1, mel bins, frames]."""
        mean = self.total / self.count
        variance = (self.squares - self.count * mean**2) / max(1, self.count - 1)
        deviation = np.sqrt(np.maximum(variance, 0)) if self.count > 1 else 0
        return ((log - mean) / (deviation + 1e-5))[None].astype(np.float32)


class Features:
    """The features of a stream before normalisation, equal to those of the whole audio."""

    def __init__(self, front_end: dict) -> None:
        self.front_end = front_end
        window = front_end["n_window_size"] or int(front_end["window_size"] * front_end["sample_rate"])
        self.hop = front_end["n_window_stride"] or int(front_end["window_stride"] * front_end["sample_rate"])
        # Hops that the window of a frame reaches to either side, and one for the pre-emphasis.
        self.margin = -(-window // (2 * self.hop)) + 1
        self.audio, self.first, self.done = np.zeros(0, np.float32), 0, 0

    def accept(self, samples: np.ndarray, last: bool) -> np.ndarray:
        """Takes samples, and returns the frames that are complete with them, [mel bins, frames].

        `first` is the hop at which the kept audio begins, `done` the number of frames that were returned.
        """
        self.audio = np.append(self.audio, samples)
        hops = self.first + len(self.audio) // self.hop
        end = hops if last else hops - self.margin
        if end <= self.done:
            return np.zeros((self.front_end["features"], 0), np.float32)
        log = log_mel(self.audio, self.front_end)[:, self.done - self.first : end - self.first]
        self.done = end
        begin = max(0, end - self.margin)
        self.audio, self.first = self.audio[(begin - self.first) * self.hop :], begin
        return log


class ChunkTranscriber:
    """Transcribes one utterance in chunks.

    Give the audio to `accept`, piece by piece, and call `finish` behind the last piece. `labels` holds the
    best label of each frame so far.

    All times are in seconds. `left` and `look_ahead` are the receptive field's where they are None.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        chunk: float,
        look_ahead: float | None = None,
        left: float | None = None,
        statistics: Statistics | None = None,
        fixed: bool = False,
    ) -> None:
        metadata = session.get_modelmeta().custom_metadata_map
        if "receptive_field" not in metadata:
            raise SystemExit(
                "this model has no receptive field in its metadata: its attention or squeeze-and-excitation "
                "reads the whole utterance, or it was exported by an older version; export a QuartzNet or a "
                "Jasper again."
            )
        self.session, self.metadata = session, metadata
        front_end = json.loads(metadata["preprocessor"])
        if front_end["normalize"] not in ("per_feature", "NA", None):
            raise SystemExit("this example normalises per feature, or not at all")
        self.normalised = front_end["normalize"] == "per_feature"
        self.features = Features(front_end)
        self.stride = int(metadata["subsampling_factor"])
        field = json.loads(metadata["receptive_field"])
        rate = front_end["sample_rate"] / self.features.hop  # frames of the front end a second
        wanted = [
            field[0] if left is None else left * rate,
            field[1] if look_ahead is None else look_ahead * rate,
        ]
        # A chunk begins where a frame of the network does.
        self.left, self.look_ahead = (self.stride * -(-round(frames) // self.stride) for frames in wanted)
        self.chunk = self.stride * max(1, round(chunk * rate / self.stride))
        self.statistics = statistics or Statistics()
        self.fixed = fixed  # the statistics are those of the utterance already
        self.log = np.zeros((front_end["features"], 0), np.float32)
        self.first = self.next = 0  # frame at which the kept features begin, and the next chunk
        self.labels: list[int] = []

    def accept(self, samples: np.ndarray, last: bool = False) -> None:
        """Takes samples, and runs the network on each chunk whose look-ahead is there."""
        new = self.features.accept(samples, last)
        if not self.fixed:
            self.statistics.add(new)
        self.log = np.concatenate([self.log, new], axis=1)
        end = self.first + self.log.shape[1]
        while self.next < end and (last or self.next + self.chunk + self.look_ahead <= end):
            self._run(min(end, self.next + self.chunk + self.look_ahead))
            self.next += self.chunk
            kept = max(0, self.next - self.left)
            self.log, self.first = self.log[:, kept - self.first :], kept

    def _run(self, stop: int) -> None:
        begin = max(0, self.next - self.left)
        window = self.log[:, begin - self.first : stop - self.first]
        window = self.statistics.normalise(window) if self.normalised else window[None].astype(np.float32)
        feed = {"audio_signal": window, "length": np.array([window.shape[2]])}
        (found,) = self.session.run(
            ["logprobs"], {item.name: feed[item.name] for item in self.session.get_inputs()}
        )
        frames = slice((self.next - begin) // self.stride, (self.next - begin + self.chunk) // self.stride)
        self.labels += found[0, frames].argmax(axis=-1).tolist()

    def finish(self) -> None:
        """Transcribes what is left, at the end of the utterance."""
        self.accept(np.zeros(0, np.float32), last=True)

    def text(self) -> str:
        """The text so far."""
        labels = np.array(self.labels, np.int64)
        return joined(labels, json.loads(self.metadata["labels"]), self.metadata["tokenizer"])


def transcribe(
    session: onnxruntime.InferenceSession,
    samples: np.ndarray,
    chunk: float,
    look_ahead: float | None = None,
    left: float | None = None,
    kind: str = "running",
    statistics: Statistics | None = None,
) -> str:
    """Transcribes audio that arrives in pieces of a tenth of a second; `statistics` are those of a
    session.
    """
    front_end = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor"])
    if kind == "utterance":  # for a file that is there as a whole, e.g. a long one
        statistics = Statistics()
        if len(log := log_mel(samples, front_end)) and log.shape[1]:
            statistics.add(log)
    elif kind == "running":
        statistics = Statistics()
    stream = ChunkTranscriber(session, chunk, look_ahead, left, statistics, fixed=kind == "utterance")
    piece = front_end["sample_rate"] // 10
    for start in range(0, len(samples), piece):
        stream.accept(samples[start : start + piece])  # a live client shows stream.text() here
    stream.finish()
    return stream.text()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--chunk", type=float, default=1.0, help="seconds; default: 1")
    parser.add_argument("--look-ahead", type=float, help="seconds; default: the receptive field's")
    parser.add_argument("--left-context", type=float, help="seconds; default: the receptive field's")
    parser.add_argument(
        "--statistics",
        choices=STATISTICS,
        default="running",
        help="normalise by the audio of the utterance so far, of all files so far (session), or by the "
        "whole utterance (not for a live stream)",
    )
    given = parser.parse_args()
    if given.chunk <= 0 or min(given.look_ahead or 0, given.left_context or 0) < 0:
        parser.error("--chunk must be above 0 s, --look-ahead and --left-context not below")
    session = onnxruntime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    rate = json.loads(session.get_modelmeta().custom_metadata_map["preprocessor"])["sample_rate"]
    shared = Statistics()
    for file in given.files:
        found = transcribe(
            session,
            read(file, rate),
            given.chunk,
            given.look_ahead,
            given.left_context,
            given.statistics,
            shared,
        )
        print(f"{file}: {found}")


if __name__ == "__main__":
    main()
