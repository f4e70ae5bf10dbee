# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the results' runner keeps apart, and what its table and pictures make of the lines."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Set

import numpy as np
import pytest
import soundfile
import typer
from filelock import FileLock
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet.config import parse_tutor

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MODULES = ("recipes", "runs", "run", "table", "plots", "speeds")


@pytest.fixture(scope="module")
def tools() -> Iterator[Dict[str, ModuleType]]:
    """The scripts as modules; they import each other by their plain names."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name)


def line(recipe: str, seed: int, wer: float, **other: Any) -> Dict[str, Any]:
    run = {"student": "small", "teacher": "none" if recipe == "ctc" else "t", "epochs": 30, "share": 1.0, "cached": False}
    name = "-".join([recipe, str(seed), *map(str, other.values())])
    return {
        **run, "recipe": recipe, "seed": seed, "changes": [], "teacher_file": "t.nemo", "model": f"{name}.nemo",
        "valid": {"wer": wer, "parameters": 280_000}, **other,
    }  # fmt: skip


def write(folder: Path, lines: List[Dict[str, Any]]) -> None:
    (folder / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))


def table(tools: Dict[str, ModuleType], folder: Path, *arguments: str) -> List[str]:
    app = typer.Typer()
    app.command()(tools["table"].main)
    done = CliRunner().invoke(app, [str(folder), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [row for row in done.output.splitlines() if row.startswith("| small")]


def test_every_run_has_a_folder_of_its_own(tools: Dict[str, ModuleType]) -> None:
    plain = {"recipe": "ctc", "student": "small", "teacher": "none", "epochs": 30, "seed": 1}
    varied = [
        {}, {"seed": 2}, {"epochs": 12}, {"share": 0.25}, {"share": 0.5}, {"cached": True}, {"perturbed": True},
        {"share": 0.5, "untranscribed": 0.5}, {"share": 0.5, "untranscribed": 0.25},
        {"student": "large"},
        {"teacher": "other"}, {"changes": ("model.optim.lr=8e-3",)}, {"changes": ("model.optim.lr=8e-3", "a=[b,c]")},
    ]  # fmt: skip
    runs = [tools["runs"].Run(**{**plain, **change}) for change in varied]
    folders = [run.folder for run in runs]
    assert len(set(folders)) == len(varied)
    assert not any(set("=[],{}$ ") & set(str(folder)) for folder in folders)  # Hydra reads the path as a value
    # No run's folder lies where another's checkpoints would be.
    assert not any(one in other.parents for one in folders for other in folders)
    assert [tools["runs"].run_of({**run.as_dict(), "more": 1}) for run in runs] == runs


def test_every_recipe_fits_its_config(tools: Dict[str, ModuleType]) -> None:
    conf = FOLDER.parents[1] / "conf" / "small"
    recipes = tools["recipes"]
    with initialize_config_dir(str(conf), version_base=None):
        for name, recipe in recipes.RECIPES.items():
            config, overrides = recipes.STUDENTS.get(recipe.student, (recipe.student, ()))
            arguments = [argument.replace("{teacher}", "teacher.nemo") for argument in recipe.arguments("teacher.nemo")]
            composed = compose(config, [*overrides, *arguments])
            assert (parse_tutor(composed.model) is None) == recipe.alone, name


def test_every_student_has_its_encoder(tools: Dict[str, ModuleType]) -> None:
    conf = FOLDER.parents[1] / "conf"
    with initialize_config_dir(str(conf / "small"), version_base=None):
        composed = {
            name: compose(config, list(overrides)).model for name, (config, overrides) in tools["recipes"].STUDENTS.items()
        }
    stock = OmegaConf.load(conf / "quartznet_5x5.yaml").model
    assert composed["quartznet_5x5"].encoder == stock.encoder
    for name, model in composed.items():
        assert model.decoder.feat_in == model.encoder.jasper[-1].filters, name
    assert not any(block.separable for block in composed["jasper_small"].encoder.jasper[:-1])


def test_interval_is_students_t(tools: Dict[str, ModuleType]) -> None:
    # By hand: mean 2, deviation 1, t(0.975; 2) = 4.3027, divided by the root of 3.
    assert tools["table"].interval([1.0, 2.0, 3.0]) == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert tools["table"].interval([5.0]) is None


def test_change_is_against_the_best_tuned_baseline(tools: Dict[str, ModuleType], tmp_path: Path) -> None:
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


def test_more_seeds_than_three_make_no_baseline(tools: Dict[str, ModuleType], tmp_path: Path) -> None:
    """Five of the untuned one, three of the tuned one; a line that stands twice is one seed."""
    lines = [line("ctc", seed, 0.2 + seed / 100) for seed in range(5)]
    lines += [line("ctc", seed, 0.1, changes=["model.optim.lr=1"]) for seed in range(3)]
    lines += [line("ctc", 0, 0.01, changes=["model.optim.lr=2"])] * 3
    lines += [line("rkd_ctc", 0, 0.9), line("rkd_ctc", 0, 0.05)]
    write(tmp_path, lines)
    rows = {row.split(" | ")[1]: row for row in table(tools, tmp_path)}
    assert rows["RKD, then CTC only"].endswith("| 1 | 5.00, -50 % |")
    assert rows["CTC only; optim.lr=2"].endswith("| 1 | 1.00, -90 % |")


def test_test_set_is_read_once(tools: Dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: List[str] = []

    class Found:
        def __init__(self, model: Path, wer: float) -> None:
            self.model, self.wer = str(model), wer

        def as_dict(self) -> Dict[str, Any]:
            return {"model": self.model, "wer": self.wer}

    def evaluate(models: List[Path], manifest: Path) -> List[Found]:
        asked.extend(map(str, models))
        return [Found(model, 0.2 if manifest.name == "an4_test.jsonl" else 0.4) for model in models]

    # Not by its dotted name: the package has a function of the module's name.
    monkeypatch.setattr(importlib.import_module("nemo_tutornet.evaluate"), "evaluate", evaluate)
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


def test_untranscribed_audio_is_measured_against_as_many_steps(tools: Dict[str, ModuleType], tmp_path: Path) -> None:
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


@pytest.mark.parametrize("share, rows", [(0.25, 2), (0.5, 5), (1.0, 10)])
def test_shares_are_nested_and_heard_from_anywhere(tools: Dict[str, ModuleType], tmp_path: Path, share: float, rows: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    entries = [{"audio_filepath": f"a/{i}.wav", "duration": 1.0, "text": f"t{i}"} for i in range(10)]
    (data / "c_train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (data / "c_valid.jsonl").touch()
    runner = tools["run"].Runner(data, tmp_path / "out", "c", {}, None)
    assert runner.train_set(0.12, True) != runner.train_set(0.125, True)

    def read(share: float, labelled: bool = True, untranscribed: float = 0.0) -> Dict[str, Any]:
        found = map(json.loads, runner.train_set(share, labelled, untranscribed).read_text().splitlines())
        return {str((data / row["audio_filepath"]).resolve()): row.get("text") for row in found}

    assert len(read(share)) == rows and all(Path(path).parent == data / "a" for path in read(share))
    assert read(share).items() <= read(1.0).items()
    assert read(share, labelled=False) == dict.fromkeys(read(share))
    whole = read(share, untranscribed=1 - share)
    assert whole == {**dict.fromkeys(read(1.0)), **read(share)} and list(whole.values()).count(None) == 10 - rows
    if share == 0.25:  # what is heard without transcripts is nothing that a teacher of half of the corpus has heard
        assert {path for path, text in read(share, untranscribed=0.5).items() if text is None} == read(1.0).keys() - read(
            0.5
        ).keys()


@pytest.mark.parametrize("recipe, only_second", [("rkd_restart_ctc", set()), ("rkd_restart_low_ctc", {"model.optim.lr=1e-3"})])
def test_a_restart_is_two_trainings(
    tools: Dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, only_second: Set[str]
) -> None:
    asked: List[Dict[str, Any]] = []

    def script(
        self: Any, folder: Path, name: str, config: str, train: Path, epochs: int, seed: int, overrides: List[str]
    ) -> Path:
        asked.append({"name": name, "epochs": epochs, "seed": seed, "overrides": overrides})
        return folder / f"{name}.nemo"

    monkeypatch.setattr(tools["run"].Runner, "script", script)
    monkeypatch.setattr(tools["run"].Runner, "evaluate", lambda self, model: {"wer": 0.5})
    (tmp_path / "c_train.jsonl").touch()
    (tmp_path / "c_valid.jsonl").touch()
    (tmp_path / "t.nemo").touch()
    runner = tools["run"].Runner(tmp_path, tmp_path / "out", "c", {}, None)
    run = tools["runs"].Run(recipe, "quartznet_1m", "t", 30, 7, changes=("model.optim.weight_decay=1",))
    runner.student(run, tmp_path / "t.nemo", None)
    first, second = asked
    assert (first["epochs"], second["epochs"], first["seed"], second["seed"]) == (8, 22, 7, 7)
    assert (
        f"model.tutor.teacher.model_path='{tmp_path / 't.nemo'}'" in first["overrides"]
        and "model.tutor=null" in second["overrides"]
    )
    begun = runner.output / run.folder / f"{recipe}_first.nemo"
    assert f"+init_from_nemo_model='{begun}'" in second["overrides"]
    sizes = set(tools["recipes"].STUDENTS["quartznet_1m"][1]) | {"model.optim.weight_decay=1"}
    assert sizes <= set(first["overrides"]) and sizes | only_second <= set(second["overrides"])
    assert not only_second & set(first["overrides"])
    (found,) = tools["runs"].read_lines(runner.output)
    assert tools["runs"].run_of(found) == run and found["model"].endswith(f"{recipe}.nemo")


@pytest.fixture
def trained(tools: Dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`trained("--seed", "1", code=0)` runs run.py, whose trainings write an empty model; what it said, after its exit code."""
    for part in ("train", "valid"):
        (tmp_path / f"c_{part}.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "a"}\n')
    (tmp_path / "t.nemo").write_text("teacher")

    def script(self: Any, folder: Path, name: str, *_: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.nemo").touch()
        return folder / f"{name}.nemo"

    monkeypatch.setattr(tools["run"].Runner, "script", script)
    monkeypatch.setattr(tools["run"].Runner, "evaluate", lambda self, model: {"wer": 0.5})
    app = typer.Typer()
    app.command()(tools["run"].main)

    def run(*arguments: str, code: int = 0) -> str:
        fixed = [str(tmp_path), str(tmp_path / "out"), "--corpus", "c", "--seed", "1", "--char-teacher", str(tmp_path / "t.nemo")]
        done = CliRunner().invoke(app, [*fixed, *arguments])
        assert done.exit_code == code and (done.exception is None or isinstance(done.exception, SystemExit)), done.output
        return " ".join(done.output.replace("│", " ").split())

    yield run


def test_mistakes_of_a_command_are_told_before_anything_is_trained(trained: Callable[..., str], tmp_path: Path) -> None:
    for arguments, words in [
        (["--recipe", "rkd_ctcc"], "there is no recipe rkd_ctcc; there are ctc, skd_l2"),
        (["--student", "huge"], "there is no student huge"),
        (["--bpe-teacher", "absent.nemo"], "absent.nemo"),
        (["--corpus", "d"], "d_train.jsonl"),
        (["--cached", "--perturbed"], "a cache knows every utterance at one speed only"),
    ]:
        assert words.replace(" ", "") in trained(*arguments, code=2).replace(" ", "")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_of_one_corpus_and_one_teacher(trained: Callable[..., str], tmp_path: Path) -> None:
    assert "50.00 % on validation" in trained("--recipe", "rkd_ctc")
    assert trained("--recipe", "rkd_ctc") == ""
    (tmp_path / "t.nemo").write_text("another")
    assert "has runs with another teacher of the name t;" in trained("--recipe", "skd_kl", code=1)
    assert "50.00 %" in trained("--recipe", "ctc")  # it has none
    (tmp_path / "c_valid.jsonl").write_text("")
    assert "has runs of other manifests; give another OUTPUT." in trained("--recipe", "ctc", "--seed", "2", code=1)


def test_a_teacher_is_prepared_by_one_command_at_a_time(
    tools: Dict[str, ModuleType], trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "c").mkdir(parents=True)
    held = threading.Event()

    def other_command() -> None:
        with FileLock(tmp_path / "out" / "c" / ".teachers.lock"):
            held.set()
            time.sleep(0.5)

    other = threading.Thread(target=other_command)
    other.start()
    held.wait()
    assert trained("--recipe", "rkd_ctc").startswith("waiting for another command")
    other.join()

    def fails(command: List[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, stderr="INFO\nerror: c_train.jsonl is empty.\n")

    monkeypatch.setattr(tools["run"].subprocess, "run", fails)
    assert trained("--recipe", "skd_kl", "--cached", code=1) == "error: the cache was not made: error: c_train.jsonl is empty."


def test_pictures_show_epochs_shares_and_sizes(
    tools: Dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    lines = []
    for recipe, start in (("ctc", 0.4), ("rkd_skd_kl", 0.2)):
        for seed in (1, 2):
            folder = tmp_path / recipe / str(seed)
            with SummaryWriter(str(folder / "version_0")) as writer:
                for epoch in range(3):
                    writer.add_scalar("val_wer", start / (epoch + 1), 10 * epoch)
            lines.append(line(recipe, seed, start / 3, model=str(folder / "checkpoints" / "x.nemo"), student="quartznet_small"))
            lines.append({**lines[-1], "share": 0.25})
    write(tmp_path, lines)
    found = tools["plots"].curve(lines[0])
    assert [epoch for epoch, _ in found] == [1, 2, 3]
    assert [wer for _, wer in found] == pytest.approx([40.0, 20.0, 40 / 3])
    for name in ("first", "second"):
        tools["plots"].main(tmp_path, tmp_path / name, 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None)
    written = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert written == ["wer-by-epoch.svg", "wer-by-share.svg"]
    assert "<svg" in (tmp_path / "first" / written[0]).read_text()
    write(tmp_path, lines + [{**one, "student": "jasper_small"} for one in lines])
    tools["plots"].main(tmp_path, tmp_path / "other family", 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None)
    assert not (tmp_path / "other family" / "wer-by-size.svg").exists()
    larger = {"student": "quartznet_1m", "valid": {"wer": 0.1, "parameters": 1_050_000}}
    write(tmp_path, lines + [{**one, **larger} for one in lines])
    tools["plots"].main(tmp_path, tmp_path / "sizes", 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None)
    assert (tmp_path / "sizes" / "wer-by-size.svg").exists()
    # Two teachers are two lines.
    drawn: List[str] = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, *_, label, **__: (drawn.append(label), self.plot([1], [1], label=label)))
    two = [{**one, "teacher": "other", "cached": True} for one in lines if one["recipe"] != "ctc"]
    write(tmp_path, [*lines, *two, *({**one, **larger} for one in lines)])
    tools["plots"].main(tmp_path, tmp_path / "teachers", 30, "quartznet_small", ["ctc", "rkd_skd_kl"], 2, None)
    assert sorted(label.split("; ")[-1] for label in drawn if "RKD" in label) == ["teacher other", "teacher t", "teacher t"]
    with pytest.raises(SystemExit, match="none of these runs is of jasper_mini"):
        tools["plots"].main(tmp_path, tmp_path, 30, "jasper_mini", ["ctc"], 2, None)
    with pytest.raises(SystemExit, match="no run of these recipes with 60 epochs"):
        tools["plots"].main(tmp_path, tmp_path, 60, "quartznet_small", ["ctc"], 2, None)
    with pytest.raises(SystemExit, match="no run of these recipes"):
        tools["plots"].main(tmp_path, tmp_path, 30, "quartznet_small", ["ctc"], 2, True)


def test_a_corpus_at_other_speeds(tools: Dict[str, ModuleType], tmp_path: Path) -> None:
    seconds = np.arange(16000) / 16000
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.sin(2 * np.pi * 1000 * seconds), 16000)
    for part, name in (("train", "a"), ("valid", "b")):
        row = {"audio_filepath": f"{name}.wav", "duration": 1.0, "text": name, "speaker": "s"}
        (tmp_path / f"an4_{part}.jsonl").write_text(json.dumps(row) + "\n")
    output = tmp_path / "speeds"
    tools["speeds"].main(tmp_path, output, "an4", [0.8, 1.25])
    rows = {
        part: [json.loads(one) for one in (output / f"an4-speeds_{part}.jsonl").read_text().splitlines()]
        for part in ("train", "valid")
    }
    assert [row["duration"] for row in rows["train"]] == pytest.approx([1.0, 1.25, 0.8], abs=1e-3)
    assert {(row["text"], row["speaker"]) for row in rows["train"]} == {("a", "s")}
    assert [row["audio_filepath"] for row in rows["valid"]] == [str((tmp_path / "b.wav").resolve())]
    for row, pitch in zip(rows["train"], (1000, 800, 1250), strict=True):
        heard, rate = soundfile.read(row["audio_filepath"])
        assert len(heard) / rate == pytest.approx(row["duration"])
        assert np.abs(np.fft.rfft(heard)).argmax() * rate / len(heard) == pytest.approx(pitch, abs=2)
    with pytest.raises(SystemExit, match=r"there is no .*other_train\.jsonl"):
        tools["speeds"].main(tmp_path, output, "other", [0.8])
    (tmp_path / "cut_train.jsonl").write_text(json.dumps({"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.5}) + "\n")
    with pytest.raises(SystemExit, match=r"cut_train\.jsonl, line 1 has an offset"):
        tools["speeds"].main(tmp_path, output, "cut", [0.8])
    kept = Path(rows["train"][1]["audio_filepath"])
    before = kept.stat().st_mtime_ns
    tools["speeds"].main(tmp_path, output, "an4", [0.8, 1.25])
    assert kept.stat().st_mtime_ns == before
