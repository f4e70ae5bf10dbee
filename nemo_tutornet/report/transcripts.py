# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where models err: aligned words, confusions, and error rates of parts of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.evaluation.error_rates import RESAMPLES, ErrorCounts, bootstrap_interval, sum_errors

EQUAL, SUBSTITUTION, DELETION, INSERTION = "equal", "substitution", "deletion", "insertion"
_KINDS = {"equal": EQUAL, "substitute": SUBSTITUTION, "delete": DELETION, "insert": INSERTION}


@dataclass(frozen=True)
class Edit:
    """One word of an alignment.

    Attributes:
        kind: `equal`, `substitution`, `deletion` or `insertion`.
        reference: word of the reference; empty for an insertion.
        hypothesis: word of the hypothesis; empty for a deletion.
    """

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Column:
    """One column of several hypotheses aligned with one reference.

    Attributes:
        reference: word of the reference; empty where a hypothesis has one word more.
        edits: one for each hypothesis; None where another hypothesis has an insertion.
    """

    reference: str
    edits: tuple[Edit | None, ...]


@dataclass(frozen=True)
class Part:
    """Error rates of several models on a part of the utterances.

    Attributes:
        name: name of the part.
        utterances: number of utterances.
        words: number of words in the transcripts.
        rates: by model: WER, lower and upper end of its 95 % interval, as fractions.
    """

    name: str
    utterances: int
    words: int
    rates: Mapping[str, tuple[float, float, float]]


def align_words(reference: str, hypothesis: str) -> list[Edit]:
    """Aligns a hypothesis with the reference by jiwer.

    Args:
        reference: the transcript.
        hypothesis: the output of a model.

    Returns:
        The words in order.

    Example:
        >>> [edit.kind for edit in align_words("turn on the light", "turn the light now")]
        ['equal', 'deletion', 'equal', 'equal', 'insertion']
    """
    import jiwer

    words, heard = reference.split(), hypothesis.split()
    if not words:  # jiwer 3 rejects an empty reference
        return [Edit(INSERTION, "", word) for word in heard]
    edits = []
    for chunk in jiwer.process_words(" ".join(words), " ".join(heard)).alignments[0]:
        kind = _KINDS[chunk.type]
        said = words[chunk.ref_start_idx : chunk.ref_end_idx]
        got = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for i in range(max(len(said), len(got))):
            edits.append(Edit(kind, said[i] if said else "", got[i] if got else ""))
    return edits


def align_hypotheses(reference: str, hypotheses: Sequence[str]) -> list[Column]:
    """Aligns several hypotheses with one reference, so that they can be shown below each other.

    Args:
        reference: the transcript.
        hypotheses: the outputs of the models.

    Returns:
        The columns in order.

    Example:
        >>> columns = align_hypotheses("a b", ["a b", "a x b"])
        >>> [(column.reference, [edit and edit.kind for edit in column.edits]) for column in columns]
        [('a', ['equal', 'equal']), ('', [None, 'insertion']), ('b', ['equal', 'equal'])]
    """
    words = reference.split()
    # For each hypothesis: the insertions in front of each word of the reference, and the word's own edit.
    insertions: list[list[list[Edit]]] = []
    own: list[list[Edit]] = []
    for hypothesis in hypotheses:
        before: list[list[Edit]] = [[]]
        at: list[Edit] = []
        for edit in align_words(reference, hypothesis):
            if edit.kind == INSERTION:
                before[-1].append(edit)
            else:
                at.append(edit)
                before.append([])
        insertions.append(before)
        own.append(at)
    columns = []
    for i in range(len(words) + 1):
        for k in range(max(len(before[i]) for before in insertions)):
            columns.append(
                Column("", tuple(before[i][k] if k < len(before[i]) else None for before in insertions))
            )
        if i < len(words):
            columns.append(Column(words[i], tuple(at[i] for at in own)))
    return columns


def count_confusions(references: Sequence[str], hypotheses: Sequence[str]) -> Counter[tuple[str, str]]:
    """Counts the word errors by their pair of words.

    Args:
        references: the transcripts.
        hypotheses: the outputs of a model, in the same order.

    Returns:
        The number of each pair of reference and hypothesis; a deletion has an empty hypothesis, an insertion
        an empty reference.

    Example:
        >>> count_confusions(["four or five", "four"], ["for five", "for"]).most_common()
        [(('four', 'for'), 2), (('or', ''), 1)]
    """
    counts: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for edit in align_words(reference, hypothesis):
            if edit.kind != EQUAL:
                counts[edit.reference, edit.hypothesis] += 1
    return counts


def rates_by_length(
    rows: Sequence[Utterance], errors: Mapping[str, Sequence[ErrorCounts]], parts: int = 5
) -> list[Part]:
    """Computes error rates by the duration of the utterances, in parts of about equal size.

    Args:
        rows: the utterances.
        errors: by model: the counts of each utterance.
        parts: number of parts; fewer where many utterances are equally long or the corpus is small.

    Returns:
        The parts, the shortest utterances first.
    """
    durations = np.array([row.duration for row in rows])
    parts = max(1, min(parts, len(rows) // 4))
    edges = np.unique(np.quantile(durations, np.linspace(0, 1, parts + 1)))
    found = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (durations >= low) & ((durations < high) | (high == edges[-1]))
        found.append((f"{low:.1f}–{high:.1f} s", np.flatnonzero(inside)))  # noqa: RUF001 - a range
    if not found:
        found = [(f"{edges[0]:.1f} s", np.arange(len(rows)))]
    return [_part(name, list(indices), errors) for name, indices in found if len(indices)]


def rates_by_speaker(rows: Sequence[Utterance], errors: Mapping[str, Sequence[ErrorCounts]]) -> list[Part]:
    """Computes error rates by speaker.

    Args:
        rows: the utterances. Those without a speaker are left out.
        errors: by model: the counts of each utterance.

    Returns:
        The speakers by the first model's error rate, the highest first; none if no row has a speaker.
    """
    speakers: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.speaker is not None:
            speakers.setdefault(row.speaker, []).append(i)
    parts = [_part(name, indices, errors) for name, indices in speakers.items()]
    first = next(iter(errors))
    return sorted((part for part in parts if part.words), key=lambda part: (-part.rates[first][0], part.name))


def _part(name: str, indices: Sequence[int], errors: Mapping[str, Sequence[ErrorCounts]]) -> Part:
    rates, words = {}, 0
    for model, counts in errors.items():
        chosen = [counts[i] for i in indices]
        total = sum_errors(chosen)
        words = total.reference
        rates[model] = (total.rate, *bootstrap_interval(chosen, RESAMPLES // 4))
    return Part(name, len(indices), words, rates)
