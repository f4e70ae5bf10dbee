# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of what `run.py` trained: mean WER over seeds with a 95 % interval, against the undistilled
student.

    python benchmarks/results/table.py OUTPUT/an4 [--test MANIFESTS/an4_test.jsonl] [--speed
    MANIFESTS/an4_valid.jsonl] [--lines benchmarks/results/lines/NAME.jsonl]
    python benchmarks/results/table.py benchmarks/results/lines/NAME.jsonl

With `--test` every model of the rows, and of what they are compared with, is evaluated on that manifest,
unless it was before, and OUTPUT/an4/test.jsonl keeps the lines: name the rows that are to be reported with
the other options. `--lines` writes the rows' lines, with what the test set gave, to a file that is committed;
a table of such a file needs no models.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import typer
from lines import add_line, add_teacher
from recipes import RECIPES
from runs import Run, groups_of, read_lines, run_of, speeds_in
from scipy import stats

from nemo_tutornet.utils.files import sha256_of

Lines = list[dict[str, Any]]


def interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean over seeds (Student's t); None for one seed."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def baseline(groups: dict[Run, Lines], group: Run, like_for_like: bool = True) -> Run | None:
    """The undistilled student that a group is measured against: same student, transcripts, average and number
    of steps.

    Without a teacher it can make nothing of untranscribed audio, so it trains on the transcribed share more
    often instead.
    Where its optimizer was tuned there are several: the best on validation of those with three seeds, or else
        with most.

    Args:
        groups: all of them.
        group: the one that is measured.
        like_for_like: it has the same speed perturbation, too, and no further speech; otherwise whichever is
            better: a student that learns from a cache cannot have the one, an undistilled one can, with the
            other and its transcripts.
    """
    wanted = RECIPES[group.recipe].baseline

    def about(one: Run) -> Any:
        return one.student, one.share, one.average, one.views, one.has_speeds or not like_for_like

    def as_long(one: Run) -> bool:
        # With a manifest beside, as many steps are no whole number of the other side's epochs.
        rounding = 0.5 / max(one.epochs, 1) if group.added else 1e-9
        return one.budget == group.budget and isclose(one.passes, group.passes, rel_tol=rounding)

    found = [one for one in groups if one.recipe == wanted and about(one) == about(group) and as_long(one)]
    found = [one for one in found if not one.further or (not like_for_like and group.further)]
    enough = min(3, max((len(groups[one]) for one in found), default=0))
    found = [one for one in found if len(groups[one]) >= enough]
    return min(found, key=lambda one: np.mean([line["valid"]["wer"] for line in groups[one]]), default=None)


def is_cache(change: str) -> bool:
    """Whether an override is a cache's path, which a reader learns nothing from."""
    return change.startswith("model.tutor.teacher.cache=")


def in_words(change: str) -> str:
    """An override, for a table."""
    speeds = speeds_in(change)
    return f"{speeds} speeds" if speeds else change.lstrip("+").removeprefix("model.")


def title(group: Run, known: Collection[str] = ()) -> str:
    """A group in words, without the overrides that are known."""
    changes = [change for change in group.changes if change not in known and not is_cache(change)]
    parts = [RECIPES[group.recipe].title, *map(in_words, changes)]
    parts += [f"{100 * group.share:g} % of the data"] if group.share < 1 else []
    parts += [f"{100 * group.untranscribed:g} % more without transcripts"] if group.untranscribed else []
    parts += (
        [f"{100 * group.further_share:g} % of the steps on {', '.join(group.further)}, too"]
        if group.further
        else []
    )
    parts += [f"with {', '.join(group.beside)} without transcripts"] if group.beside else []
    parts += ["cached teacher"] if group.cached or any(map(is_cache, group.changes)) else []
    parts += ["speed perturbation"] if group.perturbed else []
    parts += ["two views of each batch"] if group.views else []
    parts += [f"mean of the {group.average.replace('-', ' ')} checkpoints"] if group.average else []
    return "; ".join(parts)


def mean(values: Sequence[float]) -> str:
    """`mean ± half the interval` of WERs in percent."""
    half = interval(values)
    return f"{np.mean(values):.2f}" + ("" if half is None else f" ± {half:.2f}")


def relative_change(values: Sequence[float], base: Sequence[float]) -> str:
    """`change (p)`; p of no change over seeds, of which both sides have two or more (Welch's t-test)."""
    text = f"{100 * (np.mean(values) / np.mean(base) - 1):+.0f} %"
    if min(len(values), len(base)) < 2:
        return text
    return f"{text} (p {stats.ttest_ind(values, base, equal_var=False).pvalue:.2f})"


def on_test(folder: Path, manifest: Path, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The evaluation of each model on the test set; a file that was evaluated before is not again."""
    from nemo_tutornet.evaluation.evaluate import evaluate

    kept = folder / "test.jsonl"
    digest = sha256_of(manifest)
    lines = map(json.loads, kept.read_text(encoding="utf-8").splitlines() if kept.exists() else [])
    known = {row.get("model_sha256"): row for row in lines if row.get("manifest_sha256") == digest}
    found = {}
    with kept.open("a", encoding="utf-8") as file:
        for model in models:
            whose = sha256_of(Path(model))  # a model may have been trained again at that place
            if whose not in known:
                row = evaluate([Path(model)], manifest)[0].as_dict()
                known[whose] = {"manifest_sha256": digest, "model_sha256": whose, **row}
                file.write(json.dumps(known[whose]) + "\n")
                file.flush()
            found[model] = known[whose]
    return found


def teacher_files(lines: Lines) -> list[str]:
    """The files of the teachers that lines name; names of pretrained models are left out."""
    named = {line["teacher_file"] for line in lines if not RECIPES[line["recipe"]].alone}
    return sorted(one for one in named if Path(one).is_file())


def test_of_lines(lines: Lines) -> dict[Run, float]:
    """What committed lines say of the test set; nothing unless all do."""
    if not all(line.get("test") for line in lines):
        return {}
    return {run_of(line): line["test"]["wer"] for line in lines}


def tests_of_models(folder: Path, test: Path, lines: Lines, kept: Path | None) -> dict[Run, float]:
    """Reads the test set with every model, and maybe writes lines that are committed."""
    teachers = teacher_files(lines)
    found = on_test(folder, test, [line["model"] for line in lines] + teachers)
    names = {line["teacher_file"]: line for line in lines}
    for teacher in teachers:
        print(f"teacher {Path(teacher).stem}: {100 * found[teacher]['wer']:.2f} % on test")
        if kept is not None:
            add_teacher(kept, names[teacher], found[teacher])
    if kept is not None:
        for line in lines:
            add_line(kept, {**line, "test": found[line["model"]]})
    return {run_of(line): found[line["model"]]["wer"] for line in lines}


def groups_changes(groups: Sequence[Run]) -> list[str]:
    """All overrides of groups but paths of caches, each once."""
    changes = dict.fromkeys(change for group in groups for change in group.changes)
    return [change for change in changes if not is_cache(change)]


def print_speed(models: Sequence[str], manifest: Path) -> None:
    """Parameters, size and real-time factor in ONNX Runtime of one model of each student and of each
    teacher.
    """
    from nemo_tutornet.evaluation.evaluate import evaluate

    print("\n| model | parameters | ONNX MB | real-time factor (ONNX Runtime, fp32) |\n|---|---|---|---|")
    for found in evaluate([Path(model) for model in models], manifest, runtime="onnx", precisions=("fp32",)):
        size = f"{found.parameters / 1e6:.2f} M | {found.megabytes:.2f}"
        print(f"| {Path(found.model).stem} | {size} | {found.real_time_factor:.4f} |")


def main(
    folder: Path = typer.Argument(..., help="OUTPUT/CORPUS of run.py, or a file of its lines."),
    test: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="Read the test set, too: when everything has been chosen."
    ),
    epochs: int | None = typer.Option(None, help="Only runs of so many."),
    minutes: float | None = typer.Option(None, help="Only runs with this budget of time; 0 for none."),
    recipe: list[str] = typer.Option([], help="Only these; may be given several times."),
    student: str | None = typer.Option(None, help="Only this one."),
    share: float | None = typer.Option(None, help="Only runs with this share of the transcripts."),
    perturbed: bool | None = typer.Option(
        None, help="Only runs with speed perturbation, or only those without."
    ),
    change: list[str] = typer.Option(
        [],
        help="Only runs with this override, such as model.dropout=0.1, rows and baselines; may be given "
        "several times.",
    ),
    without: list[str] = typer.Option(
        [], help="Only runs without it, rows and baselines; may be given several times."
    ),
    seeds: int = typer.Option(1, help="Only what has been run with at least so many."),
    speed: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="A manifest to time one model of each student and the teachers on.",
    ),
    lines_file: Path | None = typer.Option(
        None, "--lines", help="A file that gets the lines of these rows, without this machine's paths."
    ),
) -> None:
    """Prints Markdown."""
    groups = groups_of(read_lines(folder), change, without)
    wanted = {"epochs": epochs, "student": student, "share": share, "perturbed": perturbed}
    wanted["budget"] = minutes
    shown = [
        group
        for group, lines in groups.items()
        if all(value in (None, getattr(group, name)) for name, value in wanted.items())
        and (not recipe or group.recipe in recipe)
        and len(lines) >= seeds
    ]
    if not shown:
        raise SystemExit(f"error: {folder if folder.is_file() else folder / 'runs.jsonl'} has no such run.")
    bases = {
        group: [baseline(groups, group), baseline(groups, group, like_for_like=False)] for group in shown
    }
    needed = list(
        dict.fromkeys([*shown, *(base for pair in bases.values() for base in pair if base is not None)])
    )
    lines = [line for group in needed for line in groups[group]]
    tested = test_of_lines(lines) if test is None else tests_of_models(folder, test, lines, lines_file)
    splits: dict[str, dict[Run, float]] = {"valid": {run_of(line): line["valid"]["wer"] for line in lines}}
    if tested:
        splits["test"] = tested
    if lines_file is not None and test is None:
        for line in lines:
            add_line(lines_file, line)
    known = set.intersection(*(set(group.changes) for group in needed))
    print(
        "| student | recipe | teacher | epochs | seeds | "
        + " | ".join(f"{split} WER %, change" for split in splits)
        + " |"
    )
    print("|---|---|---|---|---|" + "---|" * len(splits))
    order = list(RECIPES)

    def place(group: Run) -> Any:
        return (
            group.student,
            group.epochs,
            -group.share,
            group.teacher,
            group.perturbed,
            order.index(group.recipe),
            group.changes,
            group.cached,
        )

    for group in sorted(shown, key=place):
        base, best = bases[group]
        cells = []
        for found in splits.values():
            wers = {
                one: [100 * found[run_of(line)] for line in groups[one]]
                for one in (group, base, best)
                if one is not None
            }
            cells.append(mean(wers[group]))
            if base not in (None, group):
                cells[-1] += f", {relative_change(wers[group], wers[base])}"
            if best not in (base, group) and not RECIPES[group.recipe].alone:
                cells[-1] += f"; {relative_change(wers[group], wers[best])} against {title(best, known)}"
        words = [group.student, title(group, known), group.teacher, group.length, str(len(groups[group]))]
        print(f"| {' | '.join(words)} | {' | '.join(cells)} |")
    if len(needed) > 1 and any(not is_cache(change) for change in known):
        names = [f"`{change.lstrip('+')}`" for change in groups_changes(needed) if change in known]
        print(f"\nEvery row has {', '.join(names)}.")
    if speed is not None:
        models = {line["student"]: line["model"] for line in lines}
        print_speed([*models.values(), *teacher_files(lines)], speed)


if __name__ == "__main__":
    typer.run(main)
