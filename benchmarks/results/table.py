# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The table of what `run.py` trained: mean WER over seeds with a 95 % interval, against the undistilled student.

    python benchmarks/results/table.py OUTPUT/an4 [--test MANIFESTS/an4_test.jsonl]

With `--test` every model that has not been evaluated on that manifest is, once, and OUTPUT/an4/test.jsonl keeps the lines.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer
from recipes import RECIPES

# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: List[float]) -> Optional[float]:
    """Half the 95 % interval of a mean over seeds; None for one seed."""
    if len(values) < 2:
        return None
    return T95[min(len(values) - 1, 9)] * statistics.stdev(values) / len(values) ** 0.5


def on_test(folder: Path, manifest: Path, models: List[str]) -> Dict[str, float]:
    """WER of each model on the test set; what was read once is not read again."""
    from nemo_tutornet.evaluate import evaluate

    kept = folder / "test.jsonl"
    known = {row["model"]: row["wer"] for row in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    with kept.open("a", encoding="utf-8") as file:
        for model in models:
            if model not in known:
                found = evaluate([Path(model)], manifest)[0]
                known[model] = found.wer
                file.write(json.dumps(found.as_dict()) + "\n")
                file.flush()
    return known


def main(
    folder: Path = typer.Argument(..., help="OUTPUT/CORPUS of run.py."),
    test: Optional[Path] = typer.Option(None, help="Read the test set, too: when everything has been chosen."),
    epochs: Optional[int] = typer.Option(None, help="Only runs of so many."),
    recipe: List[str] = typer.Option([], help="Only these; may be given several times."),
) -> None:
    """Prints Markdown."""
    lines: List[Dict[str, Any]] = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    lines = [line for line in lines if (epochs is None or line["epochs"] == epochs) and (not recipe or line["recipe"] in recipe)]
    splits: Dict[str, Dict[str, float]] = {"valid": {line["model"]: line["valid"]["wer"] for line in lines}}
    if test is not None:
        teachers = sorted({line["teacher"] for line in lines})
        splits["test"] = on_test(folder, test, [line["model"] for line in lines] + teachers)
        for teacher in teachers:
            print(f"teacher {Path(teacher).name}: {100 * splits['test'][teacher]:.2f} % on test")
    print("| student | epochs | seeds | " + " | ".join(f"{split} WER %, change" for split in splits) + " |")
    print("|---|---|---|" + "---|" * len(splits))
    groups: Dict[Tuple[int, bool, str], List[str]] = {}
    for line in lines:
        groups.setdefault((line["epochs"], line["cached"], line["recipe"]), []).append(line["model"])
    order = list(RECIPES)
    for (length, cached, name), models in sorted(groups.items(), key=lambda one: (*one[0][:2], order.index(one[0][2]))):
        cells = []
        base = groups.get((length, False, RECIPES[name].baseline), []) or groups.get((length, True, RECIPES[name].baseline), [])
        for found in splits.values():
            values = [100 * found[model] for model in models]
            half = interval(values)
            cell = f"{statistics.mean(values):.2f}" + ("" if half is None else f" ± {half:.2f}")
            if base and base != models:
                cell += f", {100 * (statistics.mean(values) / statistics.mean(100 * found[model] for model in base) - 1):+.0f} %"
            cells.append(cell)
        print(
            f"| {RECIPES[name].title}{' (cached teacher)' if cached else ''} | {length} | {len(models)} | "
            + " | ".join(cells)
            + " |"
        )


if __name__ == "__main__":
    typer.run(main)
