# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What goes together, as a table: test_matrix.py runs each cell of it, and matrix_tables.py makes the
support matrix of the README and the documentation of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Teacher:
    """A kind of teacher.

    Attributes:
        encoder: its architecture.
        frame_ms: milliseconds a frame.
        head: `CTC`, `hybrid` (a transducer with a CTC head), `transducer` or `attention`.
        units: `characters`, `subwords` or `subwords of several languages` (a tokenizer of each).
        durations: whether a transducer predicts how many frames to skip (TDT, as in Parakeet).
    """

    encoder: str
    frame_ms: float
    head: str
    units: str
    durations: bool = False


@dataclass(frozen=True)
class Student:
    """A kind of student; each as characters and as subwords."""

    title: str
    frame_ms: float


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        teacher: key of `TEACHERS`.
        student: key of `STUDENTS`.
        labels: key of `LABELS`.
        pool_frames: `model.tutor.pool_frames`.
        transcripts: whether the training data have any.
        adapter: `model.tutor.teacher.adapter`.
    """

    teacher: str
    student: str = "quartznet"
    labels: str = "same"
    pool_frames: bool = False
    transcripts: bool = True
    adapter: bool = False

    def __str__(self) -> str:
        more = ["pooled"] * self.pool_frames + ["no transcripts"] * (not self.transcripts)
        more += ["adapter"] * self.adapter
        return ", ".join([self.teacher, self.student, self.labels, *more])

    @property
    def subwords(self) -> bool:
        """True where the student has subwords."""
        fixed = {"borrowed": True, "other characters": False, "other subwords": True}
        return fixed.get(self.labels, TEACHERS[self.teacher].units != "characters")

    @property
    def rate(self) -> float:
        """Student frames a teacher frame; below 1 the student is slower."""
        return TEACHERS[self.teacher].frame_ms / STUDENTS[self.student].frame_ms


SEVERAL = "subwords of several languages"
TEACHERS = {
    "conformer": Teacher("Conformer", 40.0, "CTC", "characters"),
    "conformer bpe": Teacher("Conformer", 40.0, "CTC", "subwords"),
    "fastconformer": Teacher("FastConformer", 80.0, "CTC", "characters"),
    "fastconformer bpe": Teacher("FastConformer", 80.0, "CTC", "subwords"),
    "quartznet": Teacher("QuartzNet", 20.0, "CTC", "characters"),
    "citrinet bpe": Teacher("Citrinet", 80.0, "CTC", "subwords"),
    "hybrid": Teacher("Conformer", 40.0, "hybrid", "characters"),
    "hybrid bpe": Teacher("FastConformer", 80.0, "hybrid", "subwords"),
    "transducer": Teacher("Conformer", 40.0, "transducer", "characters"),
    "transducer bpe": Teacher("FastConformer", 80.0, "transducer", "subwords"),
    "tdt bpe": Teacher("FastConformer", 80.0, "transducer", "subwords", durations=True),
    "canary": Teacher("FastConformer", 80.0, "attention", SEVERAL),
}
CLASSES = {
    ("CTC", "characters"): "EncDecCTCModel",
    ("CTC", "subwords"): "EncDecCTCModelBPE",
    ("hybrid", "characters"): "EncDecHybridRNNTCTCModel",
    ("hybrid", "subwords"): "EncDecHybridRNNTCTCBPEModel",
    ("transducer", "characters"): "EncDecRNNTModel",
    ("transducer", "subwords"): "EncDecRNNTBPEModel",
    ("attention", SEVERAL): "EncDecMultiTaskModel",
}
STUDENTS = {
    "quartznet": Student("QuartzNet", 20.0),
    "jasper": Student("Jasper", 20.0),
    "citrinet": Student("Citrinet", 80.0),
    "conformer": Student("Conformer", 40.0),
    "fastconformer bpe": Student("FastConformer", 80.0),
}
# Students that meet every teacher; the others have the same frames or labels as one of these.
MEET_ALL = ("quartznet", "jasper", "citrinet")
# The student's labels, and the documentation's column for them.
LABELS = {
    "same": "the same labels, in any order",
    "reordered": "the same labels, in any order",
    "borrowed": "`tokenizer: teacher`",
    "other characters": "other labels",
    "other subwords": "other labels",
}
LOSSES = {"rkd": "RKD", "skd": "SKD", "pseudo": "pseudo-labels"}


@dataclass(frozen=True)
class Rule:
    """A reason for which losses are refused.

    Attributes:
        applies: to which cells.
        losses: which of `LOSSES`.
        sentence: regular expression that the `TutorError` matches.
    """

    applies: Callable[[Cell], bool]
    losses: tuple[str, ...]
    sentence: str


RULES = {
    "no tokenizer": Rule(
        lambda cell: cell.labels == "borrowed" and TEACHERS[cell.teacher].units == "characters",
        ("rkd", "skd", "pseudo"),
        r"^model\.tokenizer takes the tokenizer of .* characters and no tokenizer; give a checkpoint with "
        r"one",
    ),
    "several tokenizers": Rule(
        lambda cell: cell.labels == "borrowed" and TEACHERS[cell.teacher].units == SEVERAL,
        ("rkd", "skd", "pseudo"),
        r"^model\.tokenizer takes the tokenizer of .* a tokenizer of type 'agg'; give a checkpoint with one",
    ),
    "pool": Rule(
        lambda cell: cell.rate < 1 and not cell.pool_frames,
        ("rkd", "skd"),
        r"^a frame of the student's (encoder|guided layer) lasts 80 ms, longer than .* set "
        r"model\.tutor\.pool_frames to true",
    ),
    "no posteriors": Rule(
        lambda cell: TEACHERS[cell.teacher].head in ("transducer", "attention"),
        ("skd",),
        r"^SKD compares posteriors, but the teacher has no CTC head.* leave skd out of "
        r"model\.tutor\.stages, or make an adapter of this teacher with `nemo-tutornet adapt`\.$",
    ),
    "other labels": Rule(
        lambda cell: LABELS[cell.labels] == "other labels",
        ("skd",),
        r"^SKD compares posteriors, but the label sets differ: .* leave skd out of model\.tutor\.stages, "
        r"make "
        r"an adapter of this teacher with `nemo-tutornet adapt`, or give",
    ),
}


def refusal(cell: Cell, loss: str) -> str | None:
    """The name of the rule that refuses a loss; None where it works. An adapter has the student's labels and
    frames, so no rule applies to it.
    """
    if cell.adapter:
        return None
    return next((name for name, rule in RULES.items() if loss in rule.losses and rule.applies(cell)), None)


def works(cell: Cell) -> tuple[str, ...]:
    """The losses that work in a cell, besides CTC, which is NeMo's and needs transcripts only."""
    return tuple(loss for loss in LOSSES if refusal(cell, loss) is None)


def cells() -> list[Cell]:
    """The cells that are run; how they are chosen is told in test_matrix.py."""
    plain = [
        Cell(teacher, student, "borrowed" if kind.units == "subwords" else "same")
        for teacher, kind in TEACHERS.items()
        for student in MEET_ALL
    ]
    plain += [
        Cell("conformer", "conformer"),
        Cell("fastconformer", "conformer"),
        Cell("quartznet", "conformer", pool_frames=True),
        Cell("fastconformer bpe", "fastconformer bpe", "borrowed"),
        Cell("conformer bpe", "fastconformer bpe", "borrowed", pool_frames=True),
    ]
    slower = [replace(cell, pool_frames=True) for cell in plain if cell.rate < 1]
    labels = [Cell(teacher, labels=labels) for teacher in TEACHERS for labels in LABELS]
    # An attention model differs from a transducer in its text only.
    attention = [cell for cell in (*plain, *slower, *labels) if TEACHERS[cell.teacher].head == "attention"]
    kept = [Cell("canary", labels=labels) for labels in ("same", "borrowed", "other characters")]
    plain, slower, labels = (
        [cell for cell in some if cell not in attention or cell in kept] for some in (plain, slower, labels)
    )
    # A TDT differs from another transducer in its decoding only.
    plain, slower, labels = (
        [
            cell
            for cell in some
            if cell.teacher != "tdt bpe" or cell == Cell("tdt bpe", labels="other characters")
        ]
        for some in (plain, slower, labels)
    )
    silent = [Cell(teacher, transcripts=False) for teacher in ("conformer", "hybrid", "transducer")]
    silent.append(Cell("conformer bpe", labels="other characters", transcripts=False))
    return list(dict.fromkeys([*plain, *slower, *labels, *silent]))


def adapted_cells() -> list[Cell]:
    """Every kind of teacher that cannot give its posteriors to a student of other labels, with an adapter."""
    kinds = ("conformer bpe", "fastconformer bpe", "hybrid bpe", "transducer bpe", "tdt bpe", "canary")
    return [
        *(Cell(kind, labels="other characters", adapter=True) for kind in kinds),
        Cell("fastconformer bpe", labels="other subwords", adapter=True),
    ]
