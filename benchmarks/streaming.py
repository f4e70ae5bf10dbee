# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Word error rates of an exported convolutional student that reads audio in chunks, by chunk size, look-ahead
and the statistics that the features are normalised by; the tables of docs/deployment/streaming.md.

python benchmarks/streaming.py student.onnx valid.jsonl [--left-context 4]

The client is examples/onnx/transcribe_chunks.py. Times are in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "onnx"))
import transcribe_chunks
import transcribe_onnxruntime

CHUNKS = (0.16, 0.32, 0.64, 1.28)
LOOK_AHEADS = (0.0, 0.16, 0.32, 0.64, None)


def offline(session: onnxruntime.InferenceSession, samples: np.ndarray) -> str:
    """The transcript of a whole utterance."""
    metadata = session.get_modelmeta().custom_metadata_map
    signal = transcribe_onnxruntime.features(samples, json.loads(metadata["preprocessor"]))
    feed = {"audio_signal": signal, "length": np.array([signal.shape[2]])}
    (found,) = session.run(["logprobs"], {item.name: feed[item.name] for item in session.get_inputs()})
    return transcribe_onnxruntime.text(found[0], json.loads(metadata["labels"]), metadata["tokenizer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--left-context", type=float, help="default: the receptive field's")
    parser.add_argument("--chunks", type=float, nargs="+", default=CHUNKS)
    parser.add_argument(
        "--look-aheads",
        type=lambda given: None if given == "all" else float(given),
        nargs="+",
        default=LOOK_AHEADS,
        help='"all" is the receptive field\'s',
    )
    parser.add_argument("--statistics", nargs="+", default=list(transcribe_chunks.STATISTICS))
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(given.model), options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    front_end = json.loads(metadata["preprocessor"])
    rows = read_manifest(given.manifest)
    audio = [read_samples(row, front_end["sample_rate"]) for row in rows]
    left, right = json.loads(metadata["receptive_field"])
    frame = float(metadata["ms_per_frame"]) / float(metadata["subsampling_factor"]) / 1000
    whole = [offline(session, samples) for samples in audio]

    def rate(texts: list[str]) -> str:
        errors = [count_errors(row.text or "", text) for row, text in zip(rows, texts, strict=True)]
        same = sum(a == b for a, b in zip(texts, whole, strict=True))
        return f"{100 * sum_errors(errors).rate:.2f} ({same})"

    print(f"{len(rows)} utterances, {sum(row.duration for row in rows) / len(rows):.1f} s on average")
    print(f"receptive field: {left * frame:.2f} s before and {right * frame:.2f} s behind a frame")
    print(f"whole utterance: WER {rate(whole)}; in parentheses: equal transcripts\n")
    for kind in given.statistics:
        aheads = given.look_aheads
        names = [f"{ahead:g} s" if ahead is not None else f"{right * frame:g} s" for ahead in aheads]
        print(f"statistics: {kind}\n\n| chunk | look-ahead {' | '.join(names)} |")
        print("|---" * (len(names) + 1) + "|")
        for chunk in given.chunks:
            cells = []
            for ahead in aheads:
                session_statistics = transcribe_chunks.Statistics()
                texts = [
                    transcribe_chunks.transcribe(
                        session, samples, chunk, ahead, given.left_context, kind, session_statistics
                    )
                    for samples in audio
                ]
                cells.append(rate(texts))
            print(f"| {chunk:g} s | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
