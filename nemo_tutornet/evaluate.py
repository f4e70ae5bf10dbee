# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""WER and CER with jiwer, bootstrap intervals, size and speed of stock `.nemo` models on a manifest."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from nemo_tutornet.checkpoints import ctc_class, quiet_nemo, read_nemo_config
from nemo_tutornet.data.manifest import Utterance, read_manifest
from nemo_tutornet.errors import TutorError
from nemo_tutornet.teacher import restore_ctc

RESAMPLES = 2000


@dataclass(frozen=True)
class Errors:
    """Error counts of one or many utterances.

    Attributes:
        substitutions, deletions, insertions: of words or characters.
        reference: words or characters of the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference: int

    @property
    def rate(self) -> float:
        """Errors per reference word or character; NaN without a reference."""
        total = self.substitutions + self.deletions + self.insertions
        return total / self.reference if self.reference else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """What one model does on one manifest.

    Attributes:
        model: its file.
        utterances: their number.
        hours: of audio.
        wer, cer: word and character error rates, as fractions.
        wer_low, wer_high: 95 % bootstrap interval of the WER over utterances.
        substitutions, deletions, insertions: of words.
        reference_words: their number.
        parameters: their number.
        megabytes: on disk.
        real_time_factor: seconds of computing per second of audio.
    """

    model: str
    utterances: int
    hours: float
    wer: float
    wer_low: float
    wer_high: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    parameters: int
    megabytes: float
    real_time_factor: float

    def as_dict(self) -> Dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate(
    models: Sequence[Path],
    manifest: Path,
    batch_size: int = 16,
    progress: Optional[Callable[[str], None]] = None,
) -> List[Evaluation]:
    """Transcribes a manifest with each model, as a user of NeMo would, and counts errors.

    Args:
        models: `.nemo` files of CTC recognisers, restored by NeMo's own class.
        manifest: NeMo JSON lines with `text`.
        batch_size: utterances transcribed together.
        progress: called with each model's name before its turn.

    Raises:
        TutorError: an unreadable or foreign model, or a bad manifest.
    """
    for path in models:
        ctc_class(read_nemo_config(Path(path)), Path(path), "a model to evaluate")
    rows = read_manifest(Path(manifest))
    if not any(row.text.split() for row in rows):
        raise TutorError(f"{manifest} has no transcripts; error rates need a text in its rows.")
    results = []
    for path in models:
        if progress is not None:
            progress(str(path))
        results.append(_evaluate_one(Path(path), rows, batch_size))
    return results


def _evaluate_one(path: Path, rows: Sequence[Utterance], batch_size: int) -> Evaluation:
    model = restore_ctc(path)
    hypotheses, seconds = transcribe(model, rows, batch_size)
    references = [row.text for row in rows]
    words = [count_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    characters = [count_errors(r, h, "character") for r, h in zip(references, hypotheses, strict=True)]
    total = add(words)
    low, high = bootstrap_interval(words)
    duration = sum(row.duration for row in rows)
    return Evaluation(
        model=str(path),
        utterances=len(rows),
        hours=duration / 3600,
        wer=total.rate,
        wer_low=low,
        wer_high=high,
        cer=add(characters).rate,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        reference_words=total.reference,
        parameters=sum(p.numel() for p in model.parameters()),
        megabytes=path.stat().st_size / 1e6,
        real_time_factor=seconds / duration,
    )


def transcribe(model: Any, rows: Sequence[Utterance], batch_size: int) -> Tuple[List[str], float]:
    """Hypotheses of a NeMo CTC model, in the rows' order, and the seconds that computing them took.

    Reading the audio is not counted; the front end, the network and greedy decoding are.
    """
    audio = [_samples(row, int(model.preprocessor._sample_rate)) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(audio[i]))  # like lengths together: less padding
    hypotheses = [""] * len(rows)
    with quiet_nemo():
        model.transcribe([audio[order[-1]]], batch_size=1, verbose=False)  # the first call pays for warming up
        start = time.perf_counter()
        outputs = model.transcribe([audio[i] for i in order], batch_size=batch_size, verbose=False, num_workers=0)
        seconds = time.perf_counter() - start
    for i, output in zip(order, outputs, strict=True):
        hypotheses[i] = output if isinstance(output, str) else output.text
    return hypotheses, seconds


def _samples(row: Utterance, sample_rate: int) -> np.ndarray:
    import librosa

    samples, _ = librosa.load(row.audio, sr=sample_rate, mono=True, offset=row.offset, duration=row.duration)
    return samples


def count_errors(reference: str, hypothesis: str, unit: str = "word") -> Errors:
    """Substitutions, deletions and insertions by jiwer's alignment.

    Args:
        reference: transcript.
        hypothesis: what the model made of it.
        unit: `word` or `character`; a space counts as a character.
    """
    import jiwer

    if not reference.strip():  # jiwer 3 refuses an empty reference
        return Errors(0, 0, len(hypothesis.split() if unit == "word" else hypothesis.strip()), 0)
    counted = (jiwer.process_words if unit == "word" else jiwer.process_characters)(reference, hypothesis)
    length = counted.hits + counted.substitutions + counted.deletions
    return Errors(counted.substitutions, counted.deletions, counted.insertions, length)


def add(errors: Sequence[Errors]) -> Errors:
    """The sum of counts."""
    return Errors(
        sum(e.substitutions for e in errors),
        sum(e.deletions for e in errors),
        sum(e.insertions for e in errors),
        sum(e.reference for e in errors),
    )


def bootstrap_interval(errors: Sequence[Errors], resamples: int = RESAMPLES, seed: int = 0) -> Tuple[float, float]:
    """95 % percentile bootstrap interval of an error rate, utterances drawn with replacement (Bisani and Ney, 2004).

    Args:
        errors: counts of each utterance.
        resamples: number of draws.
        seed: of the draws, so that a table can be made again.

    Returns:
        Low and high end, as fractions.
    """
    wrong = np.array([e.substitutions + e.deletions + e.insertions for e in errors])
    reference = np.array([e.reference for e in errors])
    drawn = np.random.default_rng(seed).integers(0, len(errors), size=(resamples, len(errors)))
    totals = reference[drawn].sum(axis=1)
    rates = wrong[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]
    if not len(rates):
        return float("nan"), float("nan")
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
