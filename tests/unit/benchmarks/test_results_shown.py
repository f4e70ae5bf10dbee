# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the results' table and pictures make of the runner's lines."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.unit.benchmarks.results import line, table, tools, write

__all__ = ["tools"]  # a fixture


def test_interval_is_students_t(tools: dict[str, ModuleType]) -> None:
    # By hand: mean 2, deviation 1, t(0.975; 2) = 4.3027, divided by the root of 3.
    assert tools["table"].interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert tools["table"].interval([5.0]) is None


def test_change_is_against_the_best_tuned_baseline(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    lines = [line("ctc", seed, wer) for seed, wer in enumerate((0.12, 0.14))]
    lines += [line("ctc", seed, wer, changes=["model.optim.lr=1"]) for seed, wer in enumerate((0.09, 0.11))]
    # One lucky seed is not a baseline while others have two; nor are other data, epochs or students.
    lines += [
        line("ctc", 0, 0.01, changes=["model.optim.lr=2"]),
        line("ctc", 0, 0.5, share=0.25),
        line("ctc", 0, 0.02, epochs=60),
        line("ctc", 0, 0.03, perturbed=True),
        line("ctc", 1, 0.03, perturbed=True),
    ]
    lines += [line("rkd_skd_kl", seed, wer) for seed, wer in enumerate((0.04, 0.06))]
    write(tmp_path, lines)
    rows = {row.split(" | ")[1]: row for row in table(tools, tmp_path, "--epochs", "30")}
    # Welch's t is 5 / root of 2, then 3 / root of 2, with 2 degrees of freedom.
    assert "| 5.00 ± 12.71, -50 % (p 0.07); +67" in rows["RKD, then CTC + SKD kl"]
    assert "| 10.00 ± 12.71 |" in rows["CTC only; optim.lr=1"]
    assert "| 13.00 ± 12.71, +30 % (p 0.17) |" in rows["CTC only"]
    assert rows["CTC only; 25 % of the data"].endswith("| 50.00 |")
    assert all(" 60 " not in row for row in rows.values())
    assert rows["CTC only; speed perturbation"].endswith("| 3.00 ± 0.00 |")
    # The best undistilled student of all is told, too, whatever it heard.
    assert rows["RKD, then CTC + SKD kl"].endswith("; +67 % (p 0.30) against CTC only; speed perturbation |")
    assert len(table(tools, tmp_path, "--seeds", "2")) == 4
    assert len(table(tools, tmp_path, "--share", "0.25")) == len(table(tools, tmp_path, "--perturbed")) == 1
    assert table(tools, tmp_path, "--student", "small", "--no-perturbed") == [
        row for row in table(tools, tmp_path) if "speed perturbation |" not in row.split(" | ")[1] + " |"
    ]


def test_another_number_of_speeds_is_speed_perturbation(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    speeds = "+model.train_ds.augmentor={speed:{prob:0.8,max_speed_rate:1.15,num_rates:3}}"
    write(
        tmp_path,
        [
            line("ctc", 0, 0.2),
            line("ctc", 0, 0.5, perturbed=True),
            line("rkd_skd_kl", 0, 0.1, changes=[speeds], cached=True),
        ],
    )
    rows = table(tools, tmp_path, "--seeds", "1")
    (row,) = [row for row in rows if "RKD" in row]
    assert "RKD, then CTC + SKD kl; 3 speeds; cached teacher" in row and "| 10.00, -80 %; -50 %" in row


def test_more_seeds_than_three_make_no_baseline(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    """Five of the untuned one, three of the tuned one; a line that stands twice is one seed."""
    lines = [line("ctc", seed, 0.2 + seed / 100) for seed in range(5)]
    lines += [line("ctc", seed, 0.1, changes=["model.optim.lr=1"]) for seed in range(3)]
    lines += [line("ctc", 0, 0.01, changes=["model.optim.lr=2"])] * 3
    lines += [line("rkd_ctc", 0, 0.9), line("rkd_ctc", 0, 0.05)]
    write(tmp_path, lines)
    rows = {row.split(" | ")[1]: row for row in table(tools, tmp_path)}
    assert rows["RKD, then CTC only"].endswith("| 1 | 5.00, -50 % |")
    assert rows["CTC only; optim.lr=2"].endswith("| 1 | 1.00, -90 % |")


def test_further_speech_is_named_and_shown_with_its_transcripts(
    tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    heard = {"further": ["a", "b"], "further_share": 0.5}
    lines = [
        line("ctc", 1, 0.2),
        line("ctc", 1, 0.1, **heard),
        line("rkd_ctc", 1, 0.15, **heard),
        line("rkd_ctc", 1, 0.18),
    ]
    write(tmp_path, lines)
    rows = {row.split(" | ")[1]: row.split(" | ")[-1] for row in table(tools, tmp_path)}
    words = "; 50 % of the steps on a, b, too"
    assert rows == {
        "CTC only": "20.00 |",
        f"CTC only{words}": "10.00, -50 % |",
        "RKD, then CTC only": "18.00, -10 % |",
        f"RKD, then CTC only{words}": f"15.00, -25 %; +50 % against CTC only{words} |",
    }


def test_overrides_choose_rows_and_what_they_are_measured_against(
    tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    dropout, decay = "model.dropout=0.1", "model.optim.weight_decay=2e-2"
    lines = [line(name, 1, wer, changes=[decay]) for name, wer in (("ctc", 0.4), ("rkd_ctc", 0.2))]
    lines += [line(name, 1, wer, changes=[decay, dropout]) for name, wer in (("ctc", 0.2), ("rkd_ctc", 0.15))]
    lines += [line("ctc", 1, 0.1, changes=[dropout])]
    write(tmp_path, lines)

    def changes(*arguments: str) -> list[str]:
        return [
            row.split(" | ")[-1].removesuffix(" |")
            for row in table(tools, tmp_path, "--recipe", "rkd_ctc", *arguments)
        ]

    assert changes() == ["20.00, +100 %", "15.00, +50 %"]
    assert changes("--change", decay, "--change", dropout) == ["15.00, -25 %"]
    assert changes("--without", dropout) == ["20.00, -50 %"]


def test_test_set_is_read_once(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Found:
        def __init__(self, model: Path, wer: float) -> None:
            self.model, self.wer = str(model), wer

        def as_dict(self) -> dict[str, Any]:
            return {"model": self.model, "wer": self.wer}

    def evaluate(models: list[Path], manifest: Path) -> list[Found]:
        asked.extend(map(str, models))
        return [Found(model, 0.2 if manifest.name == "an4_test.jsonl" else 0.4) for model in models]

    # Not by its dotted name: the package has a function of the module's name.
    monkeypatch.setattr(importlib.import_module("nemo_tutornet.evaluation.evaluate"), "evaluate", evaluate)
    models = {name: tmp_path / name for name in ("ctc-1.nemo", "rkd_skd_kl-1.nemo", "t.nemo")}
    for name, path in models.items():
        path.write_text(name)
    here = {"teacher_file": str(models["t.nemo"])}
    lines = [line("ctc", 1, 0.1, **here), line("rkd_skd_kl", 1, 0.05, **here)]
    for one in lines:
        one["model"] = str(models[f"{one['recipe']}-1.nemo"])
    write(tmp_path, lines)
    manifests = [tmp_path / name for name in ("an4_test.jsonl", "other_test.jsonl")]
    for manifest in manifests:
        manifest.write_text(manifest.name)
    for manifest in (manifests[0], *manifests):
        rows = table(tools, tmp_path, "--test", str(manifest))
        assert all(("20.00" if manifest == manifests[0] else "40.00") in row for row in rows)
    # What was read on one test set says nothing of another.
    assert sorted(asked) == sorted(2 * list(map(str, models.values())))
    # Nor does an older model that lay where another lies now.
    models["ctc-1.nemo"].write_text("trained again")
    asked.clear()
    table(tools, tmp_path, "--test", str(manifests[0]))
    assert asked == [str(models["ctc-1.nemo"])]


def test_untranscribed_audio_is_measured_against_as_many_steps(
    tools: dict[str, ModuleType], tmp_path: Path
) -> None:
    write(
        tmp_path,
        [
            line("ctc", 1, 0.4, share=0.25, epochs=120),  # as many steps as the whole corpus in 30 epochs
            line("ctc", 1, 0.6, share=0.25),
            line("ctc", 1, 0.1),
            line("rkd_pseudo", 1, 0.2, share=0.25, untranscribed=0.75),
            line("rkd_pseudo", 1, 0.1, share=0.25, untranscribed=0.5, epochs=40),
            line("rkd_pseudo", 1, 0.3, share=0.25),
        ],
    )
    rows = {row.split(" | ")[1]: row for row in table(tools, tmp_path, "--epochs", "30")}
    title = "RKD, then CTC + pseudo-labels; 25 % of the data"
    assert rows[f"{title}; 75 % more without transcripts"].endswith("| 20.00, -50 % |")
    assert rows[title].endswith("| 30.00, -50 % |")
    assert len(rows) == 4  # the baseline of 120 epochs is asked, and not shown
    (other,) = table(tools, tmp_path, "--epochs", "40")
    assert other.endswith("| 10.00, -75 % |")


def test_pictures_show_epochs_shares_and_sizes(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    lines = []
    for recipe, start in (("ctc", 0.4), ("rkd_skd_kl", 0.2)):
        for seed in (1, 2):
            folder = tmp_path / recipe / str(seed)
            with SummaryWriter(str(folder / "version_0")) as writer:
                for epoch in range(3):
                    writer.add_scalar("val_wer", start / (epoch + 1), 10 * epoch)
            lines.append(
                line(
                    recipe,
                    seed,
                    start / 3,
                    model=str(folder / "checkpoints" / "x.nemo"),
                    student="quartznet_small",
                )
            )
            lines.append({**lines[-1], "share": 0.25})
    write(tmp_path, lines)
    found = tools["curves"].curve(lines[0])
    assert [epoch for epoch, _ in found] == [1, 2, 3]
    assert [wer for _, wer in found] == pytest.approx([40.0, 20.0, 40 / 3])
    kept = tmp_path / "kept.jsonl"
    for one in lines[::2]:
        tools["lines"].add_line(kept, one)
    (first, *_) = map(json.loads, kept.read_text().splitlines())
    assert "model" not in first and tools["curves"].curve(first) == [(1, 40.0), (2, 20.0), (3, 13.33)]
    tools["plots"].main(kept, tmp_path / "kept", 30, "quartznet_small", ["ctc"], 2, None, [], [], False)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["wer-by-epoch.svg"]
    for name in ("first", "second"):
        tools["plots"].main(
            tmp_path, tmp_path / name, 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None, [], [], False
        )
    written = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert written == ["wer-by-epoch.svg", "wer-by-recipe.svg", "wer-by-share.svg"]
    assert "<svg" in (tmp_path / "first" / written[0]).read_text()
    write(tmp_path, lines + [{**one, "student": "jasper_small"} for one in lines])
    tools["plots"].main(
        tmp_path,
        tmp_path / "other family",
        30,
        "quartznet_small",
        ["ctc", "rkd_skd_kl"],
        2,
        None,
        [],
        [],
        False,
    )
    assert not (tmp_path / "other family" / "wer-by-size.svg").exists()
    larger = {"student": "quartznet_1m", "valid": {"wer": 0.1, "parameters": 1_050_000}}
    write(tmp_path, lines + [{**one, **larger} for one in lines])
    tools["plots"].main(
        tmp_path, tmp_path / "sizes", 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None, [], [], False
    )
    assert (tmp_path / "sizes" / "wer-by-size.svg").exists()
    # With equal steps a quarter of the data is trained for four times as many epochs.
    means: list[list[float]] = []
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda self, _, y, *__, **___: (means.append(list(y)), self.plot([1], [1], label="x")),
    )
    longer = {"epochs": 120, "valid": {"wer": 0.05, "parameters": 280_000}}
    write(tmp_path, lines + [{**one, **longer} for one in lines if one.get("share") == 0.25])
    for equal_steps, quarter in ((True, 5.0), (False, 40 / 3)):
        tools["plots"].main(
            tmp_path, tmp_path / "steps", 30, "quartznet_small", ["ctc"], 2, None, [], [], equal_steps
        )
        assert means.pop() == pytest.approx([quarter, 40 / 3])
    # Only runs with a change.
    write(
        tmp_path,
        lines
        + [
            {**one, **longer, "epochs": 30, "share": 1.0, "changes": ["model.dropout=0.1"]}
            for one in lines[:4:2]
        ],
    )
    shown: list[list[str]] = []
    monkeypatch.setattr(
        tools["plots"],
        "draw_epochs",
        lambda _, groups: shown.append([tools["plots"].title(one) for one in groups]),
    )
    tools["plots"].main(
        tmp_path,
        tmp_path / "change",
        30,
        "quartznet_small",
        ["ctc"],
        2,
        None,
        ["model.dropout=0.1"],
        [],
        False,
    )
    tools["plots"].main(
        tmp_path,
        tmp_path / "without",
        30,
        "quartznet_small",
        ["ctc"],
        2,
        None,
        [],
        ["model.dropout=0.1"],
        False,
    )
    assert shown == [["CTC only; dropout=0.1"], ["CTC only"]]
    # Two teachers are two lines.
    drawn: list[str] = []
    monkeypatch.setattr(tools["plots"], "draw_recipes", lambda axes, _: axes.plot([1], [1]))
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda self, *_, label, **__: (drawn.append(label), self.plot([1], [1], label=label)),
    )
    two = [{**one, "teacher": "other", "cached": True} for one in lines if one["recipe"] != "ctc"]
    write(tmp_path, [*lines, *two, *({**one, **larger} for one in lines)])
    tools["plots"].main(
        tmp_path, tmp_path / "teachers", 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None, [], [], False
    )
    assert sorted(label.split("; ")[-1] for label in drawn if "RKD" in label) == [
        "teacher other",
        "teacher t",
        "teacher t",
    ]
    with pytest.raises(SystemExit, match="none of these runs is of jasper_mini"):
        tools["plots"].main(tmp_path, tmp_path, 30, "jasper_mini", ["ctc"], 2, None, [], [], False)
    with pytest.raises(SystemExit, match="no run of these recipes with 60 epochs"):
        tools["plots"].main(tmp_path, tmp_path, 60, "quartznet_small", ["ctc"], 2, None, [], [], False)
    with pytest.raises(SystemExit, match="no run of these recipes"):
        tools["plots"].main(tmp_path, tmp_path, 30, "quartznet_small", ["ctc"], 2, True, [], [], False)


def test_recipes_are_drawn_beside_the_undistilled_student(tools: dict[str, ModuleType]) -> None:
    run, seeds = tools["runs"].Run, {"ctc": (0.1, 0.12, 0.08), "rkd_ctc": (0.05, 0.06), "skd_kl": (0.2,)}
    groups = {
        run(
            name,
            "quartznet_small",
            "none" if name == "ctc" else "t",
            30,
            0,
            changes=("model.dropout=0.1", *more),
        ): [line(name, seed, wer) for seed, wer in enumerate(wers)]
        for name, wers in seeds.items()
        for more in ([("model.optim.lr=1e-3",)] if name == "skd_kl" else [()])
    }
    figure, axes = pyplot.subplots()
    tools["plots"].draw_recipes(axes, groups)
    figure.canvas.draw()
    # The lowest row is the worst, and what all of them have in common is not said in each.
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["CTC + SKD kl; optim.lr=1e-3", "CTC only", "RKD, then CTC only"]
    shown = {tuple(drawn.get_xdata()): set(drawn.get_ydata()) for drawn in axes.lines}
    assert shown[10.0, 12.0, 8.0] == {1} and shown[5.0, 6.0] == {2} and shown[(20.0,)] == {0}
    (bar,) = [bar for bar in axes.collections if len(bar.get_segments()) and bar.get_segments()[0][0][1] == 1]
    half = tools["table"].interval([10.0, 12.0, 8.0])
    assert bar.get_segments()[0][:, 0] == pytest.approx([10 - half, 10 + half])
    (dashed,) = [drawn for drawn in axes.lines if drawn.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == pytest.approx([10.0, 10.0])
    pyplot.close(figure)
