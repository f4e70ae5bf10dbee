# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation, and how it is computed from hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.evaluation.error_rates import bootstrap_interval, count_errors, sum_errors
from nemo_tutornet.evaluation.text_processing import TextProcessing
from nemo_tutornet.evaluation.unwritable import UnwritableCharacters, find_unwritable


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one manifest.

    Attributes:
        model: the model's file.
        runtime: the runtime that computed the hypotheses: `nemo`, or `onnx` or `onnx-asr` with the precision
            of the weights.
        utterances: number of evaluated utterances. Rows without a transcript are left out.
        hours: duration of the audio in hours.
        wer: word error rate, as a fraction.
        wer_low: lower end of the WER's 95 % bootstrap interval over utterances.
        wer_high: upper end of that interval.
        cer: character error rate, as a fraction.
        substitutions: number of substituted words.
        deletions: number of words left out.
        insertions: number of words too many.
        reference_words: number of words in the transcripts.
        parameters: number of parameters of the model.
        megabytes: size on disk in megabytes (10^6 bytes).
        real_time_factor: seconds of computing per second of audio.
        untranscribed: number of rows without a transcript, which were left out.
        never_written: characters of the transcripts that the model has no label for, the most frequent
            first. Each of them is an error.
        never_written_counts: the number of occurrences of each of these characters.
        never_written_transcripts: number of transcripts that hold such a character.
        never_written_remedies: what to do about them, a phrase each.
        decoder: `ctc`, `rnnt` or `attention`.
        text_processing: what was done to transcripts and hypotheses before errors were counted, under NeMo's
            names.
        channel: the channel that was read of audio with several: its number, or `average`; None where none
            was chosen.
        manifest: file name of the manifest, without its folder.
        weights_sha256: checksum of the model's weights, which is the same for a `.nemo` of a run, the
            student that was exported from it, and its graphs; None where it is not known.
    """

    model: str
    runtime: str
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
    untranscribed: int = 0
    never_written: str = ""
    never_written_counts: dict[str, int] = field(default_factory=dict)
    never_written_transcripts: int = 0
    never_written_remedies: tuple[str, ...] = ()
    decoder: str = "ctc"
    text_processing: dict[str, Any] = field(default_factory=lambda: TextProcessing().as_dict())
    channel: int | str | None = None
    manifest: str = ""
    weights_sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Converts the results to plain values, for JSON."""
        return asdict(self)

    @property
    def unwritable(self) -> UnwritableCharacters:
        """The characters of the transcripts that the model cannot write."""
        return UnwritableCharacters(
            self.never_written_counts,
            self.never_written_transcripts,
            self.utterances,
            self.never_written_remedies,
        )


def no_faster(results: Sequence[Evaluation]) -> list[str]:
    """Reports each model that is smaller than another one but not faster in the same runtime.

    Fewer parameters do not always mean more speed.

    Args:
        results: the evaluations to compare.

    Returns:
        One sentence for each such pair of models.
    """
    sentences = []
    for small in results:
        for large in results:
            # A teacher with its adapter and the same teacher alone are one file: there is nothing to say.
            comparable = small.runtime == large.runtime and small.model != large.model
            smaller = comparable and small.parameters < large.parameters
            if smaller and small.real_time_factor >= large.real_time_factor:
                ratio, speeds = (
                    large.parameters / small.parameters,
                    (small.real_time_factor, large.real_time_factor),
                )
                sentences.append(
                    f"{small.model} has {ratio:.1f} x fewer parameters than {large.model}, but is no faster "
                    "here "
                    f"({small.runtime}): RTF {speeds[0]:.4f} against {speeds[1]:.4f}."
                )
    return sentences


def size_on_disk(path: Path) -> int:
    """Returns the size in bytes of a `.nemo` file, or of all files of an unpacked one."""
    return sum(
        file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
    )


def score(
    path: Path,
    runtime: str,
    rows: Sequence[Utterance],
    hypotheses: Sequence[str],
    seconds: float,
    parameters: int,
    size: int | None = None,
    labels: Sequence[str] | None = None,
    decoder: str = "ctc",
    processing: TextProcessing | None = None,
    weights_sha256: str | None = None,
) -> Evaluation:
    """Counts the errors of hypotheses that a model computed.

    Args:
        path: the model's file.
        runtime: the runtime that computed the hypotheses.
        rows: utterances with transcripts.
        hypotheses: the texts, in the order of the rows.
        seconds: computing time.
        parameters: number of parameters of the model.
        size: bytes on disk; None for those of `path`.
        labels: the model's labels, by which characters that it cannot write are found; None to look for none.
        decoder: `ctc`, `rnnt` or `attention`.
        processing: of transcripts and hypotheses; None for none.
        weights_sha256: checksum of the model's weights; None if it is not known.

    Returns:
        The evaluation.
    """
    processing = processing or TextProcessing()
    transcripts = [row.text or "" for row in rows]
    references, hypotheses = (
        [processing.apply(text) for text in texts] for texts in (transcripts, hypotheses)
    )
    unwritable = (
        UnwritableCharacters() if labels is None else find_unwritable(transcripts, labels, processing)
    )
    words = [count_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    characters = [count_errors(r, h, "character") for r, h in zip(references, hypotheses, strict=True)]
    total = sum_errors(words)
    low, high = bootstrap_interval(words)
    duration = sum(row.duration for row in rows)
    return Evaluation(
        model=str(path),
        runtime=runtime,
        utterances=len(rows),
        hours=duration / 3600,
        wer=total.rate,
        wer_low=low,
        wer_high=high,
        cer=sum_errors(characters).rate,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        reference_words=total.reference,
        parameters=parameters,
        megabytes=(size_on_disk(path) if size is None else size) / 1e6,
        real_time_factor=seconds / duration,
        never_written="".join(unwritable.characters),
        never_written_counts=unwritable.characters,
        never_written_transcripts=unwritable.transcripts,
        never_written_remedies=unwritable.remedies,
        decoder=decoder,
        text_processing=processing.as_dict(),
        channel=rows[0].channel if rows else None,
        weights_sha256=weights_sha256,
    )
