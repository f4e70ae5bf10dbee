# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What makes one run different from another; and the lines of `runs.jsonl`."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

from nemo_tutornet.data.manifest_lines import json_row
from nemo_tutornet.errors import TutorError


@dataclass(frozen=True)
class Run:
    """One student to train.

    Attributes:
        recipe: a key of `recipes.RECIPES`.
        student: one of `students.student_of`.
        teacher: a word for it, in tables.
        epochs: of the whole training; 0 where it has a budget of time.
        seed: of the student's initialisation and of the order of the data.
        share: of the training utterances, 0 to 1, which the student has with their transcripts.
        cached: whether the teacher's targets come from a cache.
        perturbed: whether the student, and the teacher with it, is given the utterances at many speeds.
        changes: overrides on top of the recipe's.
        untranscribed: share of the training utterances that are used, too, but without their transcripts.
        further: words for further manifests, used with the corpus in a training before this one.
        further_share: of all steps, 0 to 1, which that training takes.
        views: trained on two views of each batch (`tutor.consistency`), with a teacher or without one.
        average: `last-K` or `best-K` where the student is the mean of so many checkpoints; else empty.
        beside: words for manifests that are used with the corpus, without transcripts.
        added: utterances in these, for each of the corpus' own.
        budget: minutes that the training may take, in place of epochs; else 0.
    """

    recipe: str
    student: str
    teacher: str
    epochs: int
    seed: int
    share: float = 1.0
    cached: bool = False
    perturbed: bool = False
    changes: tuple[str, ...] = ()
    untranscribed: float = 0.0
    further: tuple[str, ...] = ()
    further_share: float = 0.0
    average: str = ""
    views: bool = False
    beside: tuple[str, ...] = ()
    added: float = 0.0
    budget: float = 0.0

    @property
    def epochs_before(self) -> int:
        """As many steps as in so many epochs of the corpus make up the training before."""
        return round(self.further_share * self.epochs)

    @property
    def passes(self) -> float:
        """Epochs times the share of the corpus in each: runs in which it is equal make as many steps."""
        return self.epochs * (self.share + self.untranscribed + self.added)

    @property
    def has_speeds(self) -> bool:
        """Whether there is speed perturbation, `perturbed` or with another number of speeds."""
        return self.perturbed or any(map(speeds_in, self.changes))

    @property
    def length(self) -> str:
        """How long it is, for tables."""
        return f"{self.budget:g} min" if self.budget else str(self.epochs)

    @property
    def folder(self) -> Path:
        """Where it goes, below the corpus' folder: one for each run."""
        parts = [
            f"{self.budget:g}-minutes" if self.budget else f"{self.epochs}-epochs",
            self.student.replace("/", "-"),
            f"{100 * self.share:g}-percent",
            f"teacher-{self.teacher}",
        ]
        parts += ["cached"] if self.cached else []
        parts += ["perturbed"] if self.perturbed else []
        parts += [f"{100 * self.untranscribed:g}-percent-untranscribed"] if self.untranscribed else []
        parts += (
            [f"{100 * self.further_share:g}-percent-on-{'-'.join(('all', *self.further))}"]
            if self.further
            else []
        )
        parts += [f"beside-{'-'.join(self.beside)}"] if self.beside else []
        parts += ["two-views"] if self.views else []
        parts += [f"average-{self.average}"] if self.average else []
        # Changes as a folder's name.
        parts += [re.sub(r"[^A-Za-z0-9.-]+", "_", change) for change in self.changes]
        return Path(*parts) / f"seed-{self.seed}"

    def __str__(self) -> str:
        words = [
            word
            for word in ("perturbed", "untranscribed", "beside", "further", "views")
            if getattr(self, word)
        ]
        words += [self.average] if self.average else []
        return " ".join([self.recipe, *words, *self.changes, f"seed {self.seed}"])

    def as_dict(self) -> dict[str, Any]:
        """Its part of a line."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in _TUPLES}}


def speeds_in(change: str) -> int:
    """The number of speeds that an override asks for; 0 where it is about something else.

    Example:
        >>> speeds_in("+model.train_ds.augmentor={speed:{prob:0.8,num_rates:3}}")
        3
    """
    found = re.fullmatch(r"\+*model\.train_ds\.augmentor={speed:{.*num_rates:(\d+).*}}", change)
    return int(found[1]) if found else 0


_TUPLES = ("changes", "further", "beside")


def run_of(line: dict[str, Any]) -> Run:
    """The run that a line is of."""
    if not isinstance(line, dict):
        raise TypeError("no line of a run")
    # A field that is newer than the line has its default.
    known = {field.name: line[field.name] for field in fields(Run) if field.name in line}
    return Run(**{**known, **{name: tuple(line.get(name, ())) for name in _TUPLES}})


def read_rows(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, as NeMo reads them."""
    try:
        with manifest.open("rb") as file:
            return [
                json_row(line, f"{manifest} line {number}")
                for number, line in enumerate(file, start=1)
                if line.strip()
            ]
    except (OSError, TutorError) as error:
        raise SystemExit(f"error: {error}") from None


def read_lines(place: Path) -> list[dict[str, Any]]:
    """What has been run in OUTPUT/CORPUS, or the lines of runs in a file; of two lines of one run the later.

    A file may have lines of something else, such as an adapter's error rates; they have no recipe.

    Raises:
        typer.BadParameter: a line is not whole, as a full disk leaves it.
    """
    path = place if place.is_file() else place / "runs.jsonl"
    lines: dict[Run, dict[str, Any]] = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            line = json.loads(text)
            if place != path or "recipe" in line:
                lines[run_of(line)] = line
        except (ValueError, TypeError, KeyError):
            raise typer.BadParameter(
                f"{path}, line {number} is not the line of a run; delete it, and its run is taken up where "
                "its folder is."
            ) from None
    return list(lines.values())


def groups_of(
    lines: list[dict[str, Any]], change: Collection[str] = (), without: Collection[str] = ()
) -> dict[Run, list[dict[str, Any]]]:
    """Lines that differ by their seed alone, by the run with seed 0.

    Args:
        lines: of `runs.jsonl`.
        change: only runs with all of these overrides.
        without: only runs with none of these.
    """
    groups: dict[Run, list[dict[str, Any]]] = {}
    for line in lines:
        run = run_of(line)
        if set(change) <= set(run.changes) and not set(without) & set(run.changes):
            groups.setdefault(replace(run, seed=0), []).append(line)
    return groups
