# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates one student after the other, and writes a line of each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import typer
from budget import epochs_in
from corpora import Corpus
from lines import add_line
from processes import Training
from recipes import RECIPES, with_views
from runs import Run, read_rows
from sources import STUDENT_AUGMENTATION, Source, Sources, Teacher
from students import student_of

from nemo_tutornet.commands.hydra_config import hydra_value
from nemo_tutornet.nemo_io.run_checkpoints import parse_average
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.utils.files import sha256_of

RKD_ALONE = "[{name:rkd,weights:{rkd:1.0}}]"
KEPT_CHECKPOINTS = "exp_manager.checkpoint_callback_params.save_top_k"


def kept_for(average: str) -> int:
    """How many checkpoints a training must keep for an average: all for the last ones, or the best ones."""
    kind, count = parse_average(average)
    return count if kind == "best" else -1


def rates_of(adapter: Path) -> dict[str, Any]:
    """An adapter's word error rate, its teacher's, and its file's checksum, for the lines."""
    info = Adapter.load(adapter).info
    return {"wer": info.wer, "teacher_wer": info.teacher_wer, "sha256": sha256_of(adapter)}


class Runner:
    """Runs of one corpus in one folder.

    Args:
        corpus: what the students are trained and judged on.
        teachers: those of the runs.
        environment: of each training, e.g. its number of threads.
        lines: a file of committed lines that gets each run's line, too.
    """

    def __init__(
        self,
        corpus: Corpus,
        teachers: Sequence[Teacher] = (),
        environment: dict[str, str] | None = None,
        lines: Path | None = None,
    ) -> None:
        self.corpus, self.output, self.lines = corpus, corpus.folder, lines
        self.output.mkdir(parents=True, exist_ok=True)
        self.environment = environment or {}
        self.sources = Sources(corpus, teachers, self.environment)
        self._lock = threading.Lock()

    def script(self, training: Training) -> Path:
        """Runs a training, unless its student is there; returns the student."""
        return training.run(self.environment)

    def check_teachers(self, lines: Sequence[dict[str, Any]], wanted: Sequence[Run]) -> None:
        """Refuses a folder whose runs had another teacher of the same name.

        Args:
            lines: of the folder.
            wanted: the runs whose teachers are meant.

        Raises:
            RuntimeError: it has.
        """
        names = {run.teacher for run in wanted} & self.sources.teachers.keys()
        digests = {name: self.sources.teachers[name].sha256 for name in names}
        for line in lines:
            name, digest = line["teacher"], digests.get(line["teacher"])
            if digest is not None and line.get("teacher_sha256") not in (None, digest):
                raise RuntimeError(
                    f"{self.output} has runs with another teacher of the name {name}; give this one "
                    "another name, or another OUTPUT."
                )

    def student(self, run: Run, source: Source | None) -> None:
        """Trains and evaluates one student, and adds its line."""
        recipe, student = RECIPES[run.recipe], student_of(run.student)
        start = time.monotonic()
        sizes = (*student.overrides, *(() if recipe.teacher == "bpe" else self._subwords(run)))
        sizes += (STUDENT_AUGMENTATION,) if run.perturbed else ()
        named, adapter = "", None
        if source is None:
            arguments = recipe.arguments("")
        else:
            named, adapter = hydra_value(source.teacher), source.adapter
            cache = source.cache if run.cached else None
            quoted = [None if path is None else hydra_value(path) for path in (cache, adapter)]
            arguments = recipe.arguments(named, *quoted)
        arguments = [one.replace("{teacher}", named) for one in (*sizes, *arguments, *run.changes)]
        train = self.corpus.train_sets(run.share, recipe.labelled, run.untranscribed, bool(run.beside))
        folder, epochs = self.output / run.folder, run.epochs - run.epochs_before
        if run.views:
            arguments = with_views(arguments)

        def training(
            name: str, length: int, overrides: Sequence[str], manifests: Sequence[Path] = train
        ) -> Training:
            valid = self.corpus.valid[0]
            return Training(folder, name, student, manifests, valid, length, run.seed, overrides)

        timed: dict[str, Any] = {}
        if run.budget:
            kept = folder.parent / f"{run.recipe}-epoch.json"
            epochs, seconds = epochs_in(
                run.budget, training(run.recipe, 0, arguments), self.environment, kept
            )
            timed = {"epochs_in_budget": epochs, "epoch_seconds": round(seconds, 1)}
        if run.further:
            begun = self.script(self._before(run, training, train, arguments))
            arguments = [*arguments, f"+init_from_nemo_model={hydra_value(begun)}"]
        if recipe.restart:
            first = max(1, round(epochs * recipe.rkd_share))
            begun = self.script(training(f"{run.recipe}_first", first, arguments))
            arguments = [
                *sizes,
                "model.tutor=null",
                f"+init_from_nemo_model={hydra_value(begun)}",
                *recipe.restart_overrides,
                *run.changes,
            ]
            epochs -= first
        if run.average:
            arguments = [*arguments, f"{KEPT_CHECKPOINTS}={kept_for(run.average)}"]
        plain = model = self.script(training(run.recipe, epochs, arguments))
        if run.average:
            model = self.averaged(plain, run.average, train)
        minutes = (time.monotonic() - start) / 60
        teacher_file = "" if source is None else source.teacher
        valid, *others = self.corpus.valid
        with self._lock:
            line = {
                "corpus": self.corpus.name,
                **run.as_dict(),
                "teacher_file": teacher_file,
                "teacher_sha256": sha256_of(Path(teacher_file)) if Path(teacher_file).is_file() else None,
                **({"adapter": rates_of(adapter)} if adapter else {}),
                "data_sha256": self.corpus.data,
                **{field: digests for field, digests in self.corpus.others.items() if digests},
                "minutes": round(minutes, 1),
                **timed,
                "model": str(model),
                "model_sha256": sha256_of(model) if model.is_file() else None,
                "overrides": arguments,
                "valid": self.evaluate(model, valid),
                **({"valid_of_last": self.evaluate(plain, valid)} if run.average else {}),
                **({"valid_sets": {one.stem: self.evaluate(model, one) for one in others}} if others else {}),
            }
            with open(self.output / "runs.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self.lines is not None:
                add_line(self.lines, line)
        typer.echo(f"{run}: {100 * line['valid']['wer']:.2f} % on validation ({minutes:.1f} min)")

    def _subwords(self, run: Run) -> tuple[str, ...]:
        """Overrides for a student with subwords of its own, because its teacher has none or others."""
        with self._lock:  # it is written anew
            return tuple(self.sources.tokenizer()) if student_of(run.student).has_subwords else ()

    def _before(self, run: Run, training: Any, train: Sequence[Path], arguments: Sequence[str]) -> Training:
        """The training on the corpus and what is used beside it, whose student is the beginning of the
        other.

        With a teacher it is RKD alone, which reads no transcript; without one it is CTC, on everybody's
        transcripts.
        """
        batch_size = student_of(run.student).model.train_ds.batch_size
        rows = sum(len(read_rows(manifest)) for manifest in train)
        steps = run.epochs_before * ceil(rows / batch_size)
        alone = [] if RECIPES[run.recipe].alone else [f"model.tutor.stages={RKD_ALONE}"]
        overrides = [*arguments, *alone, f"trainer.max_steps={steps}"]
        return training(f"{run.recipe}_before", -1, overrides, [*train, *self.corpus.further])

    def averaged(self, model: Path, which: str, train: Sequence[Path]) -> Path:
        """The mean of checkpoints of the run that wrote a model, with statistics of its training set."""
        from nemo_tutornet import export_student

        average = model.with_name(f"{model.stem}_{which}.nemo")
        if not average.exists():
            export_student(model.parent, average, average=which, statistics=train[0])
        return average

    def evaluate(self, model: Path, manifest: Path) -> dict[str, Any]:
        """The command line's evaluation on a validation set."""
        from nemo_tutornet.evaluation.evaluate import evaluate

        return evaluate([model], manifest)[0].as_dict()
