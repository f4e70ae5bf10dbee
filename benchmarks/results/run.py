# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains students by recipe and seed with the example script, and evaluates each: one JSON line a run.

    python benchmarks/results/run.py MANIFESTS OUTPUT --recipe ctc --recipe rkd_skd_kl --seed 1 --seed 2
    --jobs 2

MANIFESTS holds CORPUS_train.jsonl and CORPUS_valid.jsonl, in place of which `--train` and `--valid` name
others. What is in OUTPUT/CORPUS/runs.jsonl is not run again, an interrupted run resumes, and a teacher that
is not given is trained first; a second command waits for it. `table.py` reads the lines; the test set is its
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import typer
from corpora import Corpus
from processes import end_children, threads_of
from recipes import RECIPES
from runner import Runner, kept_for
from runs import Run, read_lines, run_of
from sources import TEACHER_EPOCHS, Need, Teacher, given, need_of, trained_here
from students import STUDENTS, student_of

from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.signals import Stopped, stop_on_signals


def check_options(
    recipes: Sequence[str], student: str | None, plain: Run, further: Sequence[Path], files: Sequence[Path]
) -> None:
    """Refuses what cannot be run, before anything is.

    Args:
        recipes: names of recipes.
        student: the name of one for all recipes, or None.
        plain: what all runs have in common.
        further: manifests of a training before.
        files: that must be there.

    Raises:
        typer.BadParameter: the first mistake.
    """
    try:
        kept_for(plain.average) if plain.average else None
    except TutorError as error:
        raise typer.BadParameter(str(error)) from None
    if plain.share + plain.untranscribed > 1:
        raise typer.BadParameter(
            f"--share {plain.share:g} and --untranscribed-share {plain.untranscribed:g} are more than there "
            "is."
        )
    for name in recipes:
        if name not in RECIPES:
            raise typer.BadParameter(f"there is no recipe {name}; there are {', '.join(RECIPES)}.")
    if student is not None:
        try:
            student_of(student)
        except KeyError:
            raise typer.BadParameter(
                f"there is no student {student}: no such file in conf/small, none in conf (conf/NAME), and "
                f"none of {', '.join(STUDENTS)}."
            ) from None
    if further and not plain.budget and not 0 < plain.epochs_before < plain.epochs:
        raise typer.BadParameter(
            f"--further-share {plain.further_share:g} of {plain.epochs} epochs leaves one of the two "
            "trainings none."
        )
    restarts = [name for name in recipes if RECIPES[name].restart]
    if further and restarts:
        raise typer.BadParameter(
            f"{restarts[0]} begins from another training already: leave it or --further out."
        )
    if plain.budget and (further or restarts):
        raise typer.BadParameter(
            f"--minutes is for one training, and {'--further' if further else restarts[0]} makes two."
        )
    for path in files:
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {path}.")


def named_teachers(texts: Sequence[str]) -> list[Teacher]:
    """The teachers of `--teacher`.

    Raises:
        typer.BadParameter: a file is not there, or a name is given twice.
    """
    try:
        found = [given(text) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    names = [teacher.name for teacher in found]
    for name in names:
        if names.count(name) > 1:
            raise typer.BadParameter(f"two teachers are called {name}; give one NAME=FILE.")
    return found


def runs_with_needs(
    recipes: Sequence[str],
    student: str | None,
    plain: Run,
    seeds: Sequence[int],
    teachers: dict[str, list[Teacher]],
    cached: bool,
) -> list[tuple[Run, Need | None]]:
    """Every run that is wanted, seed by seed, and what it needs of a teacher.

    Args:
        recipes: names of recipes.
        student: the name of one for all recipes, or None for the recipes' own.
        plain: what all runs have in common.
        seeds: of the students.
        teachers: for recipes of each kind.
        cached: whether teachers are read from caches.
    """
    wanted: dict[Run, Need | None] = {}
    for seed in seeds:
        for name in recipes:
            recipe = RECIPES[name]
            for teacher in teachers[recipe.teacher]:
                run = replace(plain, recipe=name, student=student or recipe.student, seed=seed)
                run = replace(run, teacher=teacher.name, cached=cached)
                if recipe.alone:
                    # The same with whichever teacher was named; audio without transcripts teaches it nothing.
                    run = replace(run, teacher="none", cached=False, beside=(), added=0.0)
                wanted.setdefault(run, need_of(run, teacher.name))
    return list(wanted.items())


def main(
    manifests: Path = typer.Argument(..., help="Folder of CORPUS_train.jsonl and CORPUS_valid.jsonl."),
    output: Path = typer.Argument(..., help="Where runs and results go."),
    corpus: str = typer.Option("an4", help="Its name: of the manifests, and of the folder in OUTPUT."),
    train: list[Path] = typer.Option(
        [], help="A manifest with transcripts, in place of CORPUS_train.jsonl; may be given several times."
    ),
    valid: list[Path] = typer.Option(
        [],
        help="A manifest to judge on, in place of CORPUS_valid.jsonl; may be given several times: the first "
        "selects checkpoints, the others are evaluated, too.",
    ),
    untranscribed: list[Path] = typer.Option(
        [],
        help="A manifest that students with a teacher use beside, without its transcripts; may be given "
        "several times. For shares of an epoch: --change model.tutor.manifest_weights=[1,1].",
    ),
    recipe: list[str] = typer.Option(list(RECIPES), help="May be given several times; all without it."),
    student: str | None = typer.Option(
        None,
        help="Instead of the recipe's: a config in conf/small, conf/NAME for one in conf, or "
        f"{', '.join(STUDENTS)}.",
    ),
    seed: list[int] = typer.Option([1, 2, 3], help="May be given several times."),
    epochs: int = typer.Option(30, help="Of each student."),
    minutes: float = typer.Option(
        0.0,
        min=0.0,
        help="Instead of --epochs: as many as fit into this time, for which a few are timed first.",
    ),
    share: float = typer.Option(
        1.0, min=0.01, max=1.0, help="Of the training utterances that the students are trained on."
    ),
    change: list[str] = typer.Option(
        [], help="One more override of the script, for every recipe; may be given several times."
    ),
    teacher: list[str] = typer.Option(
        [],
        help="NAME=FILE, or NAME=PRETRAINED for a model of NVIDIA's catalogue, for all recipes; may "
        "be given several times.",
    ),
    teacher_epochs: int = typer.Option(TEACHER_EPOCHS, help="Of a teacher that is trained here."),
    teacher_share: float = typer.Option(
        1.0, min=0.01, max=1.0, help="Of the training utterances that it is trained on."
    ),
    char_teacher: Path | None = typer.Option(
        None, help="A teacher for the recipes of character teachers alone."
    ),
    bpe_teacher: Path | None = typer.Option(
        None, help="A teacher for the recipes of subword teachers alone."
    ),
    cached: bool = typer.Option(
        False, "--cached", help="Run each teacher once over the training set, and train from its cache."
    ),
    perturbed: bool = typer.Option(
        False, "--perturbed", help="Speed perturbation, for the student and its teacher, live or cached."
    ),
    untranscribed_share: float = typer.Option(
        0.0,
        min=0.0,
        max=0.99,
        help="Of the training utterances, used beside --share, but without their transcripts.",
    ),
    further: list[Path] = typer.Option(
        [],
        help="A manifest that is used with the corpus' in a training before; by a teacher's student without "
        "its transcripts.",
    ),
    further_share: float = typer.Option(
        0.25, min=0.01, max=0.9, help="Of all steps, which that training takes."
    ),
    views: bool = typer.Option(
        False,
        "--views",
        help="Student consistency on two views of each batch, with a teacher or without one.",
    ),
    average: str = typer.Option(
        "", help="Evaluate the mean of checkpoints, e.g. best-5 or last-5, on both sides of a comparison."
    ),
    jobs: int = typer.Option(
        1, help="Students trained side by side, one thread each where there are several."
    ),
    lines: Path | None = typer.Option(
        None,
        help="A file that gets each line, too, without this machine's paths: "
        "benchmarks/results/lines/NAME.jsonl.",
    ),
) -> None:
    """Trains what is missing, seed by seed, and adds one line a run to OUTPUT/CORPUS/runs.jsonl."""
    trained = train or [manifests / f"{corpus}_train.jsonl"]
    judged = valid or [manifests / f"{corpus}_valid.jsonl"]
    plain = Run(
        "",
        "",
        "",
        0 if minutes else epochs,
        0,
        share,
        perturbed=perturbed,
        changes=tuple(change),
        untranscribed=untranscribed_share,
        further=tuple(path.stem for path in further),
        further_share=further_share if further else 0.0,
        average=average,
        views=views,
        beside=tuple(path.stem for path in untranscribed),
        budget=minutes,
    )
    files = [path for path in (char_teacher, bpe_teacher) if path is not None]
    check_options(recipe, student, plain, further, [*files, *further, *untranscribed, *trained, *judged])
    everywhere = named_teachers(teacher)
    teachers = {
        kind: [given(str(file))]
        if file
        else everywhere or [trained_here(kind, teacher_epochs, teacher_share)]
        for kind, file in (("char", char_teacher), ("bpe", bpe_teacher))
    }
    extended = Corpus(
        corpus,
        output.resolve() / corpus,
        *([path.resolve() for path in part] for part in (trained, judged, untranscribed, further)),
    )
    plain = replace(plain, added=extended.added)
    every = list(dict.fromkeys(one for kind in teachers.values() for one in kind))
    if len({one.name for one in every}) < len(every):
        raise typer.BadParameter("--char-teacher and --bpe-teacher have one name; rename a file.")
    runner = Runner(extended, every, threads_of(jobs), lines)
    written = read_lines(runner.output)
    done = {run_of(line) for line in written}
    wanted = runs_with_needs(recipe, student, plain, seed, teachers, cached)
    missing = [(run, need) for run, need in wanted if run not in done]
    needed = sorted({need for _, need in missing if need is not None})
    try:
        with stop_on_signals("the same command goes on from the trainings' last checkpoints."):
            extended.check(written)
            students_train = extended.train_sets(share, True, untranscribed_share, beside=True)
            sources = runner.sources.prepare(needed, cached, students_train, perturbed)
            runner.check_teachers(written, [run for run, _ in wanted])
            with ThreadPoolExecutor(jobs) as pool:
                try:
                    waiting = [
                        pool.submit(runner.student, run, None if need is None else sources[need])
                        for run, need in missing
                    ]
                    for finished in as_completed(waiting):
                        finished.result()
                except RuntimeError:
                    pool.shutdown(cancel_futures=True)
                    raise
                except Stopped as stopped:
                    pool.shutdown(wait=False, cancel_futures=True)
                    end_children(stopped)
                    raise
    except RuntimeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
