# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Sequence-level targets: the teacher's hypothesis as a CTC target (pseudo-labels, filtered as in
Distil-Whisper: 2311.00430).

They need no common vocabulary and no common frame rate: a teacher of pieces can so teach a student of
characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nemo_tutornet.config import PseudoLabelsConfig
from nemo_tutornet.teachers.targets import Hypothesis

# Why an utterance's hypothesis was not used, and `kept`.
FATES = ("kept", "empty", "low_confidence", "not_in_vocabulary", "high_wer", "too_long")


class PseudoLabels:
    """Turns a teacher's hypotheses into the student's labels, and counts what it drops.

    Args:
        config: the checked `tutor.pseudo_labels` section.
        encode: text to the student's labels; None where it has none for it.
        decode: labels to text.

    Attributes:
        decode: as given.
        counts: utterances by their fate since the last `report`: `kept`; `empty` (the teacher heard nothing);
            `low_confidence` (below `min_confidence`); `not_in_vocabulary` (the student has no labels for it,
            in lower case neither); `high_wer` (above `max_wer` against the transcript); `too_long` (more
            labels than CTC can put on the student's frames).
    """

    def __init__(
        self,
        config: PseudoLabelsConfig,
        encode: Callable[[str], list[int] | None],
        decode: Callable[[list[int]], str],
    ) -> None:
        self._config, self._encode, self.decode = config, encode, decode
        self.counts: Counter[str] = Counter()

    @classmethod
    def for_student(cls, config: PseudoLabelsConfig, student: Any) -> PseudoLabels:
        """With the student's tokenizer, or with the parser that its training data get."""
        if hasattr(student, "tokenizer"):
            tokenizer = student.tokenizer
            unknown = getattr(tokenizer, "unk_id", None)

            def pieces(text: str) -> list[int] | None:
                ids = tokenizer.text_to_ids(text)
                return None if unknown is not None and unknown in ids else ids

            return cls(config, pieces, tokenizer.ids_to_text)
        from nemo.collections.common.parts.preprocessing.parsers import make_parser

        labels, data = list(student.decoder.vocabulary), student.cfg.get("train_ds") or {}
        parser = make_parser(
            labels=labels,
            name=data.get("parser", "en"),
            do_normalize=data.get("normalize_transcripts", False),
        )

        def characters(text: str) -> list[int] | None:
            # NeMo's parser leaves out what it has no label for: right for punctuation, wrong for a letter or
            # a digit.
            ids = parser(text)
            spoken = sum(character.isalnum() for character in text)
            return None if ids is None or sum(labels[i].isalnum() for i in ids) < spoken else ids

        return cls(config, characters, lambda ids: "".join(labels[i] for i in ids))

    def targets(
        self,
        hypotheses: Sequence[Hypothesis],
        transcripts: Tensor,
        transcript_lengths: Tensor,
        frames: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The student's labels of each kept hypothesis.

        Args:
            hypotheses: one an utterance, `B` of them.
            transcripts: the student's labels of the true transcripts `[B, L]`.
            transcript_lengths: `[B]`, 0 where there is none.
            frames: of the student `[B]`.

        Returns:
            Labels `[B, L']` and their lengths `[B]`, 0 where the hypothesis was dropped.
        """
        rows: list[list[int]] = []
        references, told, heard = transcripts.tolist(), transcript_lengths.tolist(), frames.tolist()
        for i, hypothesis in enumerate(hypotheses):
            fate, labels = self._judge(hypothesis, references[i][: told[i]], heard[i])
            self.counts[fate] += 1
            rows.append(labels)
        lengths = torch.tensor([len(row) for row in rows], device=transcripts.device)
        padded = torch.zeros(
            len(rows), max(1, int(lengths.max())), dtype=torch.long, device=transcripts.device
        )
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return padded, lengths

    def _judge(self, hypothesis: Hypothesis, reference: list[int], frames: int) -> tuple[str, list[int]]:
        if not hypothesis.text.strip():
            return "empty", []
        if hypothesis.confidence is not None and hypothesis.confidence < self._config.min_confidence:
            return "low_confidence", []
        # Most students of characters have no capitals.
        labels = self._encode(hypothesis.text) or self._encode(hypothesis.text.lower())
        if not labels or not self.decode(labels).strip():
            return "not_in_vocabulary", []
        # Both as the student would write them: without the capitals and punctuation that it has not. A
        # transcript of nothing else is none to judge by.
        told = self.decode(reference)
        if self._config.max_wer is not None and told.strip():
            from jiwer import wer

            if wer(told, self.decode(labels)) > self._config.max_wer:
                return "high_wer", []
        # CTC needs a blank between equal neighbours; what does not fit would teach nothing (NeMo's loss is
        # then 0).
        needed = len(labels) + sum(a == b for a, b in pairwise(labels))
        return ("kept", list(labels)) if needed <= frames else ("too_long", [])

    def report(self) -> str:
        """One line about what was kept and dropped since the last one."""
        total = sum(self.counts.values())
        dropped = [f"{self.counts[fate]} {fate}" for fate in FATES[1:] if self.counts[fate]]
        line = f"pseudo-labels: {self.counts['kept']} of {total} hypotheses used"
        self.counts.clear()
        return line + (f", dropped: {', '.join(dropped)}." if dropped else ".")
