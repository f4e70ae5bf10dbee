# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sequence-level targets: the teacher's hypotheses as CTC targets (pseudo-labels).

They are filtered as in Distil-Whisper (arXiv 2311.00430). Teacher and student need neither a common
vocabulary nor a common frame rate. A subword teacher can therefore train a character student.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.config import PseudoLabelsConfig
from nemo_tutornet.data.teacher_text import TeacherText
from nemo_tutornet.distill.rank_agreement import sum_counts
from nemo_tutornet.nemo_io.missing_labels import student_parser
from nemo_tutornet.teachers.targets import Hypothesis

# `kept`, and the reasons for which a hypothesis is dropped.
FATES = ("kept", "empty", "low_confidence", "not_in_vocabulary", "high_wer", "too_long")


_SHOWN = 12  # characters in a message


def encoding_of(student: Any) -> tuple[Callable[[str], list[int] | None], Callable[[list[int]], str]]:
    """Returns how a student encodes and decodes text, for `TeacherText`.

    Args:
        student: a NeMo CTC model, subword or character. Of a character model the parser of its training data
            is used.

    Returns:
        A function from text to labels, which returns None if a character has no label, and its inverse.
    """
    if hasattr(student, "tokenizer"):
        tokenizer = student.tokenizer
        unknown = getattr(tokenizer, "unk_id", None)

        def pieces(text: str) -> list[int] | None:
            ids = tokenizer.text_to_ids(text)
            return None if unknown is not None and unknown in ids else ids

        # A transcript may hold <unk>, for a full stop for example, which is no word.
        return pieces, lambda ids: tokenizer.ids_to_text([i for i in ids if i != unknown])
    labels, parser = list(student.decoder.vocabulary), student_parser(student)
    normalised, known = student_parser(student, do_tokenize=False), {*labels, " "}

    def characters(text: str) -> list[int] | None:
        # The parser leaves out what has no label, so its normalised text is compared first. A label of
        # several characters is a word.
        found = normalised(text)
        if found is None or any(word not in known and set(word) - known for word in found.split(" ")):
            return None
        return parser(text)

    return characters, lambda ids: "".join(labels[i] for i in ids)


class PseudoLabels:
    """A filter that converts a teacher's hypotheses to the student's labels, and counts those that it drops.

    Args:
        config: the checked `tutor.pseudo_labels` section.
        encode: converts a text to the student's labels; returns None if a character has no label.
        decode: converts the student's labels to a text.

    Attributes:
        decode: the argument `decode`.
        counts: number of utterances of each outcome since the last `report`: `kept`; `empty` (the hypothesis
            has no text); `low_confidence` (below `min_confidence`); `not_in_vocabulary` (the student has no
            labels for the text in any form that `TeacherText` allows); `high_wer` (above `max_wer` against
            the transcript); `too_long` (CTC cannot align so many labels with the student's frames).
    """

    def __init__(
        self,
        config: PseudoLabelsConfig,
        encode: Callable[[str], list[int] | None],
        decode: Callable[[list[int]], str],
    ) -> None:
        self._config, self.decode, self._text = config, decode, TeacherText(encode, decode)
        self.counts: Counter[str] = Counter()

    @classmethod
    def for_student(cls, config: PseudoLabelsConfig, student: Any) -> PseudoLabels:
        """Creates a filter from the student's tokenizer, or from the parser of its training data.

        Args:
            config: the checked `tutor.pseudo_labels` section.
            student: a NeMo CTC model, subword or character.

        Returns:
            The filter.
        """
        return cls(config, *encoding_of(student))

    def targets(
        self,
        hypotheses: Sequence[Hypothesis],
        transcripts: Tensor,
        transcript_lengths: Tensor,
        frames: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Converts the hypotheses of a batch to padded labels, and counts each outcome.

        Args:
            hypotheses: `B` hypotheses, one for each utterance.
            transcripts: the student's labels of the true transcripts `[B, L]`.
            transcript_lengths: number of labels `[B]`; 0 for an utterance without a transcript.
            frames: number of the student's frames `[B]`.

        Returns:
            Labels `[B, L']` and their lengths `[B]`. A dropped hypothesis has length 0.
        """
        rows: list[list[int]] = []
        references, reference_lengths, frame_counts = (
            transcripts.tolist(),
            transcript_lengths.tolist(),
            frames.tolist(),
        )
        for i, hypothesis in enumerate(hypotheses):
            fate, labels = self._judge(hypothesis, references[i][: reference_lengths[i]], frame_counts[i])
            self.counts[fate] += 1
            rows.append(labels)
        widest = max(1, *map(len, rows))
        padded = torch.tensor([row + [0] * (widest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return padded.to(transcripts.device), lengths.to(transcripts.device)

    def _judge(self, hypothesis: Hypothesis, reference: list[int], frames: int) -> tuple[str, list[int]]:
        if not hypothesis.text.strip():
            return "empty", []
        if hypothesis.confidence is not None and hypothesis.confidence < self._config.min_confidence:
            return "low_confidence", []
        labels = self._text.labels(hypothesis.text)
        if labels is None:
            return "not_in_vocabulary", []
        # Compare both texts in the student's labels, so that capitals and punctuation that the student lacks
        # do not count as errors. A transcript that is then empty cannot be compared with.
        transcript = self.decode(reference)
        if self._config.max_wer is not None and transcript.strip():
            from jiwer import wer

            if wer(transcript, self.decode(labels)) > self._config.max_wer:
                return "high_wer", []
        # CTC needs a blank between equal neighbours. Labels that do not fit would have no effect, because
        # NeMo's loss is then 0.
        needed = len(labels) + sum(a == b for a, b in pairwise(labels))
        return ("kept", list(labels)) if needed <= frames else ("too_long", [])

    def in_student_labels(self, text: str) -> str:
        """Returns a text as the student would write it, or unchanged where the student has no labels for
        it.
        """
        written = self._text.written(text)
        return text if written is None else written

    def gather(self) -> None:
        """Sums the counts over the ranks of a distributed training, which call this method together."""
        self.counts, self._text.missing = sum_counts(self.counts), sum_counts(self._text.missing)

    def report(self) -> str:
        """Returns one line with the outcomes since the last report, and resets the counts."""
        total = sum(self.counts.values())
        dropped = [f"{self.counts[fate]} {fate}" for fate in FATES[1:] if self.counts[fate]]
        line = f"pseudo-labels: {self.counts['kept']} of {total} hypotheses used"
        line += f", dropped: {', '.join(dropped)}" if dropped else ""
        missing = " ".join(repr(c) for c, _ in self._text.missing.most_common(_SHOWN))
        self.counts.clear()
        self._text.missing.clear()
        return line + (f" (no labels for {missing})." if missing else ".")
