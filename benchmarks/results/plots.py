# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what `run.py` trained: validation WER by epoch, recipe, share of the training data, and size of
the student.

python benchmarks/results/plots.py OUTPUT/an4 pictures --epochs 30 --recipe ctc --recipe rkd_kept_ctc
[--perturbed]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isclose
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import typer
from curves import curve
from matplotlib import pyplot
from recipes import RECIPES
from runs import Run, groups_of, read_lines
from table import Lines, interval, title

WER = "validation WER, %"


def named(group: Run, groups: dict[Run, Lines]) -> str:
    """A group in words, with its teacher where the picture has several."""
    several = len({one.teacher for one in groups} - {"none"}) > 1 and group.teacher != "none"
    return f"{title(group)}; teacher {group.teacher}" if several else title(group)


def draw_epochs(axes: Any, groups: dict[Run, Lines]) -> None:
    """A line a group: the mean over its seeds, and between which values they lie."""
    shared = set.intersection(*(set(group.changes) for group in groups))
    for group, lines in groups.items():
        curves = [dict(curve(line)) for line in lines]
        epochs = sorted(set.intersection(*(set(one) for one in curves)))
        values = np.array([[one[epoch] for epoch in epochs] for one in curves])
        # What all rows share is no news in any of them.
        bare = replace(group, changes=tuple(one for one in group.changes if one not in shared))
        seeds = f"{len(lines)} seed{'s' if len(lines) > 1 else ''}"
        (drawn,) = axes.plot(epochs, values.mean(axis=0), label=f"{named(bare, groups)} ({seeds})")
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=drawn.get_color(), alpha=0.15)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(WER)
    low, high = axes.get_ylim()
    if high < 2 * low:
        return
    axes.set_yscale("log")
    ticks = (5, 7, 10, 15, 20, 30, 50, 70, 100)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def draw_by(axes: Any, groups: dict[Run, Lines], x: Callable[[Run, Lines], float], label: str) -> None:
    """A line through the means of the groups that differ in nothing else, with 95 % intervals; none through a
    single one.
    """
    recipes: dict[str, list[tuple[float, float, float]]] = {}
    for group, lines in groups.items():
        values = [100 * line["valid"]["wer"] for line in lines]
        name = named(replace(group, share=1.0), groups)
        recipes.setdefault(name, []).append(
            (x(group, lines), float(np.mean(values)), interval(values) or 0.0)
        )
    for recipe, points in recipes.items():
        if len(points) == 1:
            continue
        where, means, halves = zip(*sorted(points), strict=True)
        axes.errorbar(where, means, halves, marker="o", capsize=3, label=recipe)
    axes.set_xlabel(label)
    axes.set_ylabel(WER)


def draw_recipes(axes: Any, groups: dict[Run, Lines]) -> None:
    """A row a group, the best mean on top: its seeds, their mean and its 95 % interval; dashed, the best
    undistilled mean.
    """
    shared = set.intersection(*(set(group.changes) for group in groups))
    rows = []
    for group, lines in groups.items():
        # What all rows share is no news in any of them.
        bare = replace(group, changes=tuple(one for one in group.changes if one not in shared), cached=False)
        rows.append(
            (named(bare, groups), [100 * line["valid"]["wer"] for line in lines], RECIPES[group.recipe].alone)
        )
    rows.sort(key=lambda row: float(np.mean(row[1])), reverse=True)
    for height, (_, values, alone) in enumerate(rows):
        color = "tab:gray" if alone else "tab:blue"
        axes.errorbar(np.mean(values), height, xerr=interval(values), fmt="o", capsize=3, color=color)
        axes.plot(values, [height] * len(values), "|", color=color, markersize=9, alpha=0.6)
    undistilled = [float(np.mean(values)) for _, values, alone in rows if alone]
    if undistilled:
        axes.axvline(min(undistilled), color="tab:gray", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize="small")
    axes.set_xlabel(WER)


def main(
    folder: Path = typer.Argument(..., help="OUTPUT/CORPUS of run.py, or a file of its lines."),
    output: Path = typer.Argument(..., help="Folder of the pictures."),
    epochs: int = typer.Option(30, help="Only runs of so many."),
    student: str = typer.Option("quartznet_small", help="Whose curves are drawn."),
    recipe: list[str] = typer.Option(["ctc", "rkd_kept_ctc"], help="May be given several times."),
    seeds: int = typer.Option(2, help="Only what has been run with at least so many."),
    perturbed: bool | None = typer.Option(
        None, help="Only runs with speed perturbation, or only those without."
    ),
    change: list[str] = typer.Option(
        [], help="Only runs with this override, such as model.dropout=0.1; may be given several times."
    ),
    without: list[str] = typer.Option(
        [], help="Only runs without this override; may be given several times."
    ),
    equal_steps: bool = typer.Option(
        False, help="A share of the data is trained for as many steps as all of it: --epochs / share."
    ),
) -> None:
    """Writes wer-by-epoch.svg, and wer-by-recipe.svg, wer-by-share.svg and wer-by-size.svg where there is
    more than one.
    """
    groups = {
        group: lines
        for group, lines in groups_of(read_lines(folder), change, without).items()
        if isclose(group.passes if equal_steps else group.epochs, epochs)
        and group.recipe in recipe
        and len(lines) >= seeds
        and perturbed in (None, group.perturbed)
    }
    if not groups:
        raise SystemExit(
            f"error: {folder} has no run of these recipes with {epochs} epochs and {seeds} seeds."
        )
    whole = {group: lines for group, lines in groups.items() if group.share == 1 and group.student == student}
    shares = {group: lines for group, lines in groups.items() if group.student == student}
    # A Jasper is no larger QuartzNet: one line is one family.
    family = student.split("_")[0]
    sizes = {
        group: lines
        for group, lines in groups.items()
        if group.share == 1 and group.student.split("_")[0] == family
    }
    pictures: dict[str, Callable[[Any], None]] = {}
    if whole and all(curve(line) for lines in whole.values() for line in lines):
        pictures["epoch"] = lambda axes: draw_epochs(axes, whole)
    if len({group.recipe for group in whole}) > 1:
        pictures["recipe"] = lambda axes: draw_recipes(axes, whole)
    if len({group.share for group in shares}) > 1:
        pictures["share"] = lambda axes: draw_by(
            axes, shares, lambda group, _: 100 * group.share, "% of the training data"
        )
    if len({group.student for group in sizes}) > 1:
        pictures["size"] = lambda axes: draw_by(
            axes, sizes, lambda _, lines: lines[0]["valid"]["parameters"] / 1e6, "parameters, millions"
        )
    if not pictures:
        raise SystemExit(f"error: none of these runs is of {student}: name another one with --student.")
    output.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures.items():
        figure, axes = pyplot.subplots(figsize=(7, 5.5), layout="constrained")
        draw(axes)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", fontsize="small")  # inside it would lie on the curves
        # No date in the file: the same runs give the same picture.
        # "tight", because long names are wider than the figure.
        figure.savefig(output / f"wer-by-{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        typer.echo(f"wrote {output / f'wer-by-{name}.svg'}")


if __name__ == "__main__":
    typer.run(main)
