# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcribe with an exported student in sherpa-onnx, which computes the features itself.

python transcribe_sherpa_onnx.py STUDENT.sherpa.onnx STUDENT.tokens.txt a.wav b.flac
python transcribe_sherpa_onnx.py --streaming STUDENT.streaming.onnx STUDENT.tokens.txt a.wav b.flac
"""

from __future__ import annotations

import argparse

import librosa
import numpy as np
import sherpa_onnx

HOP_MS = 10


def centred(samples: np.ndarray, sample_rate: int, frame_ms: int = HOP_MS) -> np.ndarray:
    """The audio half a hop later, and silence up to a whole number of frames of the network.

    NeMo's frame t is centred on sample t * hop, sherpa-onnx's on t * hop + hop / 2. Silence of half a hop in
    front undoes that, and the cut leaves as many frames as NeMo makes. NeMo's network rounds its number of
    frames up, sherpa-onnx rounds it down, and with long frames a word goes with the last one.
    """
    hop = sample_rate * HOP_MS // 1000
    hops = len(samples) // hop
    missing = -hops % (frame_ms // HOP_MS)
    return np.pad(samples[: hops * hop - 1], (hop // 2, missing * hop))


def stream_transcript(
    recogniser: sherpa_onnx.OnlineRecognizer, samples: np.ndarray, sample_rate: int, frame_ms: int
) -> str:
    """Transcribes audio that comes in pieces of a tenth of a second.

    Two frames of the network in front of the audio fill the first chunk; the graph does not read them. Half a
    hop more centres the frames as `centred` says. Behind the audio two seconds of silence fill the last
    chunk.
    """
    hop = sample_rate * HOP_MS // 1000
    in_front = 2 * frame_ms * sample_rate // 1000 + hop // 2
    samples = np.pad(samples, (in_front, 2 * sample_rate))
    decoding = recogniser.create_stream()
    for piece in np.array_split(samples, max(1, 10 * len(samples) // sample_rate)):
        decoding.accept_waveform(sample_rate, piece)
        while recogniser.is_ready(decoding):
            recogniser.decode_stream(decoding)
            # a live client shows recogniser.get_result(decoding) here
    return recogniser.get_result(decoding)


def read(file: str, sample_rate: int) -> np.ndarray:
    """The samples of a mono file. The mean of several channels may be noise to a model."""
    samples, _ = librosa.load(file, sr=sample_rate, mono=False)
    if samples.ndim > 1:
        raise SystemExit(
            f"{file} has {len(samples)} channels; write the one that holds the speech to a mono file."
        )
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("files", nargs="+")
    parser.add_argument(
        "--mel-bins",
        type=int,
        default=64,
        help="of the student's front end: 64 for QuartzNet and Jasper, 80 for the others",
    )
    parser.add_argument(
        "--frame-ms",
        type=int,
        default=HOP_MS,
        help="of the student: 40 for a Conformer, 80 for Citrinet and FastConformer; not needed for frames "
        "of 20 ms",
    )
    parser.add_argument("--sample-rate", type=int, default=16000, help="of the student's front end")
    parser.add_argument("--streaming", action="store_true", help="MODEL is a .streaming.onnx")
    given = parser.parse_args()
    if given.streaming:
        online = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
            model=given.model, tokens=given.tokens, feature_dim=80, sample_rate=given.sample_rate
        )
        for file in given.files:
            samples = read(file, given.sample_rate)
            print(f"{file}: {stream_transcript(online, samples, given.sample_rate, 80)}")
        return
    recogniser = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=given.model, tokens=given.tokens, feature_dim=given.mel_bins, sample_rate=given.sample_rate
    )
    for file in given.files:
        samples = read(file, given.sample_rate)
        stream = recogniser.create_stream()
        stream.accept_waveform(given.sample_rate, centred(samples, given.sample_rate, given.frame_ms))
        recogniser.decode_stream(stream)
        print(f"{file}: {stream.result.text}")


if __name__ == "__main__":
    main()
