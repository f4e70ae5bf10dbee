# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcribe with an exported student in ONNX Runtime: numpy and librosa for the features, no NeMo and no
torch.

python transcribe_onnxruntime.py STUDENT.onnx a.wav b.flac
"""

from __future__ import annotations

import functools
import json
import re
import sys
import unicodedata

import librosa
import numpy as np
import onnxruntime

mel_bank = functools.lru_cache(librosa.filters.mel)


def features(samples: np.ndarray, p: dict) -> np.ndarray:
    """NeMo's mel front end, [1, mel bins, frames]. `p` is the `preprocessor` of the file's metadata."""
    if p["normalize"] != "per_feature":
        sys.exit("this example computes per-feature normalised features only")
    log = log_mel(samples, p)
    frames = log.shape[1]
    if not frames:
        return log[None]
    deviation = log.std(axis=1, ddof=1, keepdims=True) if frames > 1 else 0
    return ((log - log.mean(axis=1, keepdims=True)) / (deviation + 1e-5))[None].astype(np.float32)


def log_mel(samples: np.ndarray, p: dict) -> np.ndarray:
    """Features before they are normalised over the utterance, [mel bins, frames]."""
    if p["window"] != "hann" or p["exact_pad"] or not p["log"]:
        sys.exit("this example computes log-mel features with a Hann window only")
    window = p["n_window_size"] or int(p["window_size"] * p["sample_rate"])
    hop = p["n_window_stride"] or int(p["window_stride"] * p["sample_rate"])
    frames = len(samples) // hop  # NeMo computes one more, which is not valid
    if not frames:
        return np.zeros((p["features"], 0), np.float32)
    n_fft = p["n_fft"] or 2 ** int(np.ceil(np.log2(window)))
    tiny = {"eps": np.finfo(np.float32).eps, "tiny": np.finfo(np.float32).tiny}.get(
        p["log_zero_guard_value"], p["log_zero_guard_value"]
    )
    bank = mel_bank(
        sr=p["sample_rate"],
        n_fft=n_fft,
        n_mels=p["features"],
        fmin=p["lowfreq"],
        fmax=p["highfreq"] or None,
        norm=p["mel_norm"],
    )

    emphasised = np.append(samples[:1], samples[1:] - (p["preemph"] or 0) * samples[:-1])
    spectrum = librosa.stft(
        emphasised,
        n_fft=n_fft,
        hop_length=hop,
        win_length=window,
        window=np.hanning(window),
        center=True,
        pad_mode="constant",
    )
    power = bank @ np.abs(spectrum[:, :frames]) ** p["mag_power"]
    return np.log(power + tiny if p["log_zero_guard_type"] == "add" else np.maximum(power, tiny))


def text(log_probs: np.ndarray, labels: list, tokenizer: str) -> str:
    """Greedy CTC: repeats merged, then blanks dropped, and the rest joined as in NeMo. The blank is the last
    label.
    """
    return joined(log_probs.argmax(axis=-1), labels, tokenizer)


def joined(best: np.ndarray, labels: list, tokenizer: str) -> str:
    """The text of the best label of each frame."""
    merged = best[np.diff(best, prepend=-1) != 0]
    pieces = [labels[i] for i in merged if i < len(labels)]
    joined = "".join(pieces)
    if tokenizer == "wpe":  # WordPiece: ## goes on with a word
        joined = " ".join(pieces).replace(" ##", "")
    elif tokenizer != "char":  # SentencePiece: U+2581 begins a word
        joined = re.sub("(<0x[0-9A-F]{2}>)+", from_bytes, joined.lstrip("\u2581").replace("\u2581", " "))
    # NeMo takes away one space before a mark that the labels have, an apostrophe too; [UNK], <unk>, ##' and
    # the like don't count.
    plain = "".join(label for label in labels if not re.match("\\[.*\\]$|<.*>$|##|\u2581", label))
    marks = re.escape("".join(c for c in plain if unicodedata.category(c).startswith("P")))
    return re.sub(rf"\s([{marks}])", r"\1", joined) if marks else joined


def from_bytes(pieces: re.Match) -> str:
    """The text of SentencePiece's bytes: <0xC3><0xA9> is an e with an acute accent, where the vocabulary has
    none.
    """
    return bytes.fromhex(re.sub("<0x|>", "", pieces[0])).decode(errors="replace")


def read(file: str, sample_rate: int) -> np.ndarray:
    """The samples of a mono file. The mean of several channels may be noise to a model."""
    samples, _ = librosa.load(file, sr=sample_rate, mono=False)
    if samples.ndim > 1:
        raise SystemExit(
            f"{file} has {len(samples)} channels; write the one that holds the speech to a mono file."
        )
    return samples


def main(model: str, files: list) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    front_end, labels = json.loads(metadata["preprocessor"]), json.loads(metadata["labels"])
    for file in files:
        samples = read(file, front_end["sample_rate"])
        signal = features(samples, front_end)
        # One utterance at a time and no padding: the graph has no masks. Some graphs also want the number of
        # frames.
        feed = {"audio_signal": signal, "length": np.array([signal.shape[2]])}
        found = ""
        if signal.shape[2]:  # audio shorter than a hop has no frame, and no graph takes that
            (log_probs,) = session.run(
                ["logprobs"], {item.name: feed[item.name] for item in session.get_inputs()}
            )
            found = text(log_probs[0], labels, metadata["tokenizer"])
        print(f"{file}: {found}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
