# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of what `run.py` trained: mean WER over seeds with a 95 % interval, against the undistilled student.

    python benchmarks/results/table.py OUTPUT/an4 [--test MANIFESTS/an4_test.jsonl] [--speed MANIFESTS/an4_valid.jsonl]

With `--test` every model that has not been evaluated on that manifest is, once, and OUTPUT/an4/test.jsonl keeps the lines.
"""

from __future__ import annotations

import json
from math import isclose
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import typer
from recipes import RECIPES
from runs import Run, groups_of, read_lines
from scipy import stats

from nemo_tutornet.checkpoints import sha256_of

Lines = List[Dict[str, Any]]


def interval(values: Sequence[float]) -> Optional[float]:
    """Half the 95 % interval of a mean over seeds (Student's t); None for one seed."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def baseline(groups: Dict[Run, Lines], group: Run) -> Optional[Run]:
    """The undistilled student that a group is measured against: same student, transcripts, perturbation and number of steps.

    Without a teacher it can make nothing of untranscribed audio, so it hears the transcribed share more often instead.
    Where its optimizer was tuned there are several: of those with most seeds, the best on validation.
    """
    wanted = RECIPES[group.recipe].baseline

    def about(one: Run) -> Any:
        return one.student, one.share, one.perturbed

    found = [one for one in groups if one.recipe == wanted and about(one) == about(group) and isclose(one.heard, group.heard)]
    return min(found, key=lambda one: (-len(groups[one]), np.mean([line["valid"]["wer"] for line in groups[one]])), default=None)


def title(group: Run) -> str:
    """A group in words."""
    parts = [RECIPES[group.recipe].title, *(change.removeprefix("model.") for change in group.changes)]
    parts += [f"{100 * group.share:g} % of the data"] if group.share < 1 else []
    parts += [f"{100 * group.untranscribed:g} % more without transcripts"] if group.untranscribed else []
    parts += ["cached teacher"] if group.cached else []
    parts += ["speed perturbation"] if group.perturbed else []
    return "; ".join(parts)


def cell(values: Sequence[float], base: Optional[Sequence[float]]) -> str:
    """`mean ± half the interval, change (p)` of WERs in percent; p of no change over seeds (Welch's t-test)."""
    half = interval(values)
    text = f"{np.mean(values):.2f}" + ("" if half is None else f" ± {half:.2f}")
    if base is None:
        return text
    text += f", {100 * (np.mean(values) / np.mean(base) - 1):+.0f} %"
    if min(len(values), len(base)) < 2:
        return text
    return f"{text} (p {stats.ttest_ind(values, base, equal_var=False).pvalue:.2f})"


def on_test(folder: Path, manifest: Path, models: Sequence[str]) -> Dict[str, float]:
    """WER of each model on the test set; what was read once is not read again."""
    from nemo_tutornet.evaluate import evaluate

    kept = folder / "test.jsonl"
    digest = sha256_of(manifest)
    lines = map(json.loads, kept.read_text(encoding="utf-8").splitlines() if kept.exists() else [])
    known = {row["model"]: row["wer"] for row in lines if row.get("manifest_sha256") == digest}
    with kept.open("a", encoding="utf-8") as file:
        for model in models:
            if model not in known:
                found = evaluate([Path(model)], manifest)[0]
                known[model] = found.wer
                file.write(json.dumps({"manifest_sha256": digest, **found.as_dict()}) + "\n")
                file.flush()
    return known


def print_speed(models: Sequence[str], manifest: Path) -> None:
    """Parameters, size and real-time factor in ONNX Runtime of one model of each student and of each teacher."""
    from nemo_tutornet.evaluate import evaluate

    print("\n| model | parameters | ONNX MB | real-time factor (ONNX Runtime, fp32) |\n|---|---|---|---|")
    for found in evaluate([Path(model) for model in models], manifest, runtime="onnx", precisions=("fp32",)):
        size = f"{found.parameters / 1e6:.2f} M | {found.megabytes:.2f}"
        print(f"| {Path(found.model).stem} | {size} | {found.real_time_factor:.4f} |")


def main(
    folder: Path = typer.Argument(..., help="OUTPUT/CORPUS of run.py."),
    test: Optional[Path] = typer.Option(None, help="Read the test set, too: when everything has been chosen."),
    epochs: Optional[int] = typer.Option(None, help="Only runs of so many."),
    recipe: List[str] = typer.Option([], help="Only these; may be given several times."),
    seeds: int = typer.Option(1, help="Only what has been run with at least so many."),
    speed: Optional[Path] = typer.Option(None, help="A manifest to time one model of each student and the teachers on."),
) -> None:
    """Prints Markdown."""
    groups = groups_of(read_lines(folder))
    shown = [
        group
        for group, lines in groups.items()
        if epochs in (None, group.epochs) and (not recipe or group.recipe in recipe) and len(lines) >= seeds
    ]
    bases = {group: baseline(groups, group) for group in shown}
    needed = [*shown, *(base for base in bases.values() if base is not None and base not in shown)]
    lines = [line for group in needed for line in groups[group]]
    teachers = sorted({line["teacher_file"] for line in lines if not RECIPES[line["recipe"]].alone})
    splits: Dict[str, Dict[str, float]] = {"valid": {line["model"]: line["valid"]["wer"] for line in lines}}
    if test is not None:
        splits["test"] = on_test(folder, test, [line["model"] for line in lines] + teachers)
        for teacher in teachers:
            print(f"teacher {Path(teacher).stem}: {100 * splits['test'][teacher]:.2f} % on test")
    print("| student | recipe | teacher | epochs | seeds | " + " | ".join(f"{split} WER %, change" for split in splits) + " |")
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
        base = bases[group]
        cells = []
        for found in splits.values():
            values = [100 * found[line["model"]] for line in groups[group]]
            against = None if base in (None, group) else [100 * found[line["model"]] for line in groups[base]]
            cells.append(cell(values, against))
        about = f"{group.student} | {title(group)} | {group.teacher} | {group.epochs} | {len(groups[group])}"
        print(f"| {about} | {' | '.join(cells)} |")
    if speed is not None:
        print_speed([*{line["student"]: line["model"] for line in lines}.values(), *teachers], speed)


if __name__ == "__main__":
    typer.run(main)
