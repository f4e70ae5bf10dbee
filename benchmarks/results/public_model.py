# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a recogniser that anybody can install makes of a test set: PocketSphinx, with the English model in its
package (`pip install pocketsphinx`).

    python benchmarks/results/public_model.py MANIFESTS/an4_test.jsonl [--texts-of MANIFESTS/an4_train.jsonl]
    [--lines FILE]

It has a dictionary of 135,000 words and a trigram language model. `--texts-of` replaces that model by bigrams
of another manifest's transcripts, which is what a user with a closed domain gives it.
"""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import typer
from lines import add_other
from rich.progress import track

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.evaluation.error_rates import bootstrap_interval, count_errors, sum_errors
from nemo_tutornet.evaluation.evaluate import read_transcribed

SAMPLE_RATE = 16000


def bigrams(texts: Sequence[str]) -> str:
    """A bigram language model of transcripts in the ARPA format, smoothed after Witten and Bell.

    Every word may follow every other one, with a probability that falls to that of the word itself.
    """
    sentences = [["<s>", *text.split(), "</s>"] for text in texts]
    follows: dict[str, Counter[str]] = {}
    for first, second in (pair for sentence in sentences for pair in pairwise(sentence)):
        follows.setdefault(first, Counter())[second] += 1
    single = Counter(word for sentence in sentences for word in sentence[1:])
    total = single.total()

    def share(first: str) -> float:
        """What is left for words that never followed this one."""
        seen = follows[first]
        return len(seen) / (len(seen) + seen.total())

    unigrams = [f"-99 <s> {math.log10(share('<s>')):.5f}"]
    for word, count in sorted(single.items()):
        backoff = f" {math.log10(share(word)):.5f}" if word in follows else ""
        unigrams.append(f"{math.log10(count / total):.5f} {word}{backoff}")
    pairs = [
        f"{math.log10((1 - share(first)) * count / seen.total() + share(first) * single[word] / total):.5f} "
        f"{first} {word}"
        for first, seen in sorted(follows.items())
        for word, count in sorted(seen.items())
    ]
    counts = [f"ngram 1={len(unigrams)}", f"ngram 2={len(pairs)}"]
    blocks = [["\\data\\", *counts], ["\\1-grams:", *unigrams], ["\\2-grams:", *pairs], ["\\end\\"]]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main(
    manifest: Path = typer.Argument(..., exists=True, dir_okay=False, help="A NeMo manifest with texts."),
    texts_of: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="A manifest; its texts make the language model."
    ),
    lines: Path | None = typer.Option(None, help="A file of lines that gets the result, or has it anew."),
) -> None:
    """Prints the word and character error rate in percent, and the real-time factor on one core."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise SystemExit("error: PocketSphinx is not installed; pip install pocketsphinx") from None
    model = f"PocketSphinx {importlib.metadata.version('pocketsphinx')}, en-us"
    with tempfile.TemporaryDirectory() as folder:
        adapted = {}
        if texts_of is not None:
            rows, _ = read_transcribed(texts_of)
            adapted["lm"] = str(Path(folder) / "bigrams.lm")
            Path(adapted["lm"]).write_text(bigrams([row.text or "" for row in rows]), encoding="utf-8")
            model += f", bigrams of {texts_of.stem}"
        decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", **adapted)
    utterances, _ = read_transcribed(manifest)
    texts, seconds, begun = [], 0.0, time.process_time()
    for utterance in track(utterances, "transcribing"):
        samples = read_samples(utterance, SAMPLE_RATE)
        seconds += len(samples) / SAMPLE_RATE
        decoder.start_utt()
        decoder.process_raw((samples.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        texts.append(best.hypstr if best else "")
    factor = (time.process_time() - begun) / seconds
    references = [utterance.text or "" for utterance in utterances]
    counts = [count_errors(*pair) for pair in zip(references, texts, strict=True)]
    characters = [count_errors(*pair, "character") for pair in zip(references, texts, strict=True)]
    low, high = bootstrap_interval(counts)
    whose = {"kind": "public model", "name": model, "set": manifest.stem}
    values = {
        "utterances": len(utterances),
        "wer": sum_errors(counts).rate,
        "wer_interval": [low, high],
        "cer": sum_errors(characters).rate,
        "real_time_factor": round(factor, 3),
    }
    typer.echo(
        f"{model} on {manifest.name}: WER {100 * values['wer']:.2f} % ({100 * low:.2f} to "
        f"{100 * high:.2f}), CER {100 * values['cer']:.2f} %, {factor:.3f} times real time"
    )
    if lines is not None:
        add_other(lines, whose, values)


if __name__ == "__main__":
    typer.run(main)
