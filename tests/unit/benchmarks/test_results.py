# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the results' runner keeps apart and refuses; copies of a corpus at other speeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_tutornet.config import parse_tutor
from tests.unit.benchmarks.results import FOLDER, corpus_of, tools

__all__ = ["tools"]  # a fixture


def test_every_run_has_a_folder_of_its_own(tools: dict[str, ModuleType]) -> None:
    plain = {"recipe": "ctc", "student": "small", "teacher": "none", "epochs": 30, "seed": 1}
    varied = [
        {},
        {"seed": 2},
        {"epochs": 12},
        {"share": 0.25},
        {"share": 0.5},
        {"cached": True},
        {"perturbed": True},
        {"share": 0.5, "untranscribed": 0.5},
        {"share": 0.5, "untranscribed": 0.25},
        {"further": ("a", "b"), "further_share": 0.25},
        {"further": ("a",), "further_share": 0.25},
        {"further": ("a",), "further_share": 0.5},
        {"student": "large"},
        {"teacher": "other"},
        {"student": "conf/small"},
        {"beside": ("a",), "added": 0.5},
        {"budget": 30.0, "epochs": 0},
        {"changes": ("model.optim.lr=8e-3",)},
        {"changes": ("model.optim.lr=8e-3", "a=[b,c]")},
    ]
    runs = [tools["runs"].Run(**{**plain, **change}) for change in varied]
    folders = [run.folder for run in runs]
    assert len(set(folders)) == len(varied)
    # Hydra reads the path as a value.
    assert not any(set("=[],{}$ ") & set(str(folder)) for folder in folders)
    # No run's folder lies where another's checkpoints would be.
    assert not any(one in other.parents for one in folders for other in folders)
    assert [tools["runs"].run_of({**run.as_dict(), "more": 1}) for run in runs] == runs


@pytest.mark.parametrize("cut", ['{"corpus": "an4", "rec', "{}", '"ctc"', ""])
def test_a_line_that_a_full_disk_cut(tools: dict[str, ModuleType], tmp_path: Path, cut: str) -> None:
    run = tools["runs"].Run("ctc", "small", "none", 30, 1)
    (tmp_path / "runs.jsonl").write_text(f"{json.dumps(run.as_dict())}\n{cut}\n")
    with pytest.raises(typer.BadParameter, match=r"runs\.jsonl, line 2 is not the line of a run; delete it"):
        tools["runs"].read_lines(tmp_path)


def test_every_recipe_fits_its_config(tools: dict[str, ModuleType]) -> None:
    conf = FOLDER.parents[1] / "conf" / "small"
    recipes = tools["recipes"]
    with initialize_config_dir(str(conf), version_base=None):
        for name, recipe in recipes.RECIPES.items():
            student = tools["students"].student_of(recipe.student)
            config, overrides = student.config, student.overrides
            adapter = "a.safetensors" if recipe.adapter else None
            arguments = [
                argument.replace("{teacher}", "teacher.nemo")
                for argument in recipe.arguments("teacher.nemo", None, adapter)
            ]
            composed = compose(config, [*overrides, *arguments])
            tutor = parse_tutor(composed.model)
            assert (tutor is None) == recipe.alone, name
            assert tutor is None or tutor.teacher.adapter == adapter, name


def test_every_student_has_its_encoder(tools: dict[str, ModuleType]) -> None:
    conf = FOLDER.parents[1] / "conf"
    with initialize_config_dir(str(conf / "small"), version_base=None):
        composed = {
            name: compose(config, list(overrides)).model
            for name, (config, overrides) in tools["students"].STUDENTS.items()
        }
    stock = OmegaConf.load(conf / "quartznet_5x5.yaml").model
    assert composed["quartznet_5x5"].encoder == stock.encoder
    frames = [block.stride[0] for block in composed["citrinet_small"].encoder.jasper]
    assert frames.count(2) == 2 and composed["citrinet_small"].decoder.feat_in == 240
    hop = {name: model.encoder.get("subsampling_factor") for name, model in composed.items()}
    assert (hop["conformer_bpe_1m"], hop["fastconformer_bpe_1m"]) == (4, 8)
    for name, model in composed.items():
        if hop[name]:
            assert model.encoder.n_layers == (3 if "3_layers" in name else 5) and model.encoder.d_model == 96
            continue
        assert model.decoder.feat_in == model.encoder.jasper[-1].filters, name
    assert not any(block.separable for block in composed["jasper_small"].encoder.jasper[:-1])


@pytest.mark.parametrize("name", ["quartznet_1m", "jasper_small"])
def test_a_config_trains_the_student_of_the_results(tools: dict[str, ModuleType], name: str) -> None:
    """A user gets with the config what the results have with their overrides."""
    student = tools["students"].student_of(name)
    regularised = ["model.dropout=0.1", "model.optim.weight_decay=2e-2"]
    with initialize_config_dir(str(FOLDER.parents[1] / "conf" / "small"), version_base=None):
        measured = compose(student.config, [*student.overrides, *regularised])
        mine = compose(name)
    for config in (measured, mine):
        del config.name
    if name == "jasper_small":  # it has no depthwise convolutions
        del measured.fourier_depthwise
    assert mine == measured


@pytest.mark.parametrize("share, rows", [(0.25, 2), (0.5, 5), (1.0, 10)])
def test_shares_are_nested_and_read_from_anywhere(
    tools: dict[str, ModuleType], tmp_path: Path, share: float, rows: int
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    entries = [{"audio_filepath": f"a/{i}.wav", "duration": 1.0, "text": f"t{i}"} for i in range(10)]
    (data / "c_train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (data / "c_valid.jsonl").touch()
    corpus = corpus_of(tools, data, tmp_path / "out")
    assert corpus.train_sets(0.12) != corpus.train_sets(0.125)

    def read(share: float, labelled: bool = True, untranscribed: float = 0.0) -> dict[str, Any]:
        (path,) = corpus.train_sets(share, labelled, untranscribed)
        found = map(json.loads, path.read_text().splitlines())
        return {str((data / row["audio_filepath"]).resolve()): row.get("text") for row in found}

    assert len(read(share)) == rows and all(Path(path).parent == data / "a" for path in read(share))
    assert read(share).items() <= read(1.0).items()
    assert read(share, labelled=False) == dict.fromkeys(read(share))
    whole = read(share, untranscribed=1 - share)
    assert (
        whole == {**dict.fromkeys(read(1.0)), **read(share)} and list(whole.values()).count(None) == 10 - rows
    )
    # No utterance without its transcript is one that the teacher of half of the corpus was trained on.
    if share == 0.25:
        assert {path for path, text in read(share, untranscribed=0.5).items() if text is None} == read(
            1.0
        ).keys() - read(0.5).keys()


@pytest.fixture
def trained(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """`trained("--seed", "1", code=0)` runs run.py, whose trainings write an empty model; what it said, after
    its exit code.
    """
    for part in ("train", "valid"):
        (tmp_path / f"c_{part}.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "a"}\n')
    (tmp_path / "t.nemo").write_text("teacher")

    def script(self: Any, training: Any) -> Path:
        training.folder.mkdir(parents=True, exist_ok=True)
        (training.folder / f"{training.name}.nemo").touch()
        return training.folder / f"{training.name}.nemo"

    monkeypatch.setattr(tools["runner"].Runner, "script", script)
    monkeypatch.setattr(tools["runner"].Runner, "evaluate", lambda self, model, manifest: {"wer": 0.5})
    app = typer.Typer()
    app.command()(tools["run"].main)

    def run(*arguments: str, code: int = 0) -> str:
        fixed = [
            str(tmp_path),
            str(tmp_path / "out"),
            "--corpus",
            "c",
            "--seed",
            "1",
            "--char-teacher",
            str(tmp_path / "t.nemo"),
        ]
        done = CliRunner().invoke(app, [*fixed, *arguments])
        assert done.exit_code == code and (
            done.exception is None or isinstance(done.exception, SystemExit)
        ), done.output
        return " ".join(done.output.replace("│", " ").split())

    yield run


def test_mistakes_of_a_command_are_reported_before_anything_is_trained(
    trained: Callable[..., str], tmp_path: Path
) -> None:
    for arguments, words in [
        (["--recipe", "rkd_ctcc"], "there is no recipe rkd_ctcc; there are ctc, skd_l2"),
        (["--student", "huge"], "there is no student huge"),
        (["--bpe-teacher", "absent.nemo"], "absent.nemo"),
        (["--corpus", "d"], "d_train.jsonl"),
        (["--further", "absent.jsonl", "--recipe", "ctc"], "there is no file absent.jsonl"),
        (
            ["--further", str(tmp_path / "c_train.jsonl"), "--recipe", "rkd_restart_ctc"],
            "leave it or --further out",
        ),
        (
            ["--further", str(tmp_path / "c_train.jsonl"), "--recipe", "ctc", "--epochs", "1"],
            "leaves one of the two trainings none",
        ),
    ]:
        assert words.replace(" ", "") in trained(*arguments, code=2).replace(" ", "")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_of_one_corpus_and_one_teacher(trained: Callable[..., str], tmp_path: Path) -> None:
    assert "50.00 % on validation" in trained("--recipe", "rkd_ctc")
    assert trained("--recipe", "rkd_ctc") == ""
    (tmp_path / "t.nemo").write_text("another")
    assert "has runs with another teacher of the name t;" in trained("--recipe", "skd_kl", code=1)
    assert "50.00 %" in trained("--recipe", "ctc")  # it has none
    (tmp_path / "d.jsonl").write_text("{}\n")
    before = ["--recipe", "ctc", "--further", str(tmp_path / "d.jsonl")]
    assert "50.00 %" in trained(*before) and trained(*before) == ""
    (tmp_path / "d.jsonl").write_text("{}\n{}\n")
    assert "has runs with another manifest d; give another OUTPUT." in trained(*before, "--seed", "2", code=1)
    (tmp_path / "d.jsonl").write_text("{}\n")
    (tmp_path / "c_valid.jsonl").write_text("")
    assert "has runs of other manifests; give another OUTPUT." in trained(
        "--recipe", "ctc", "--seed", "2", code=1
    )


def test_a_teacher_is_prepared_by_one_command_at_a_time(
    tools: dict[str, ModuleType], trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    popen, fails = subprocess.Popen, "import sys; sys.exit('INFO\\nerror: c_train.jsonl is empty.')"
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", fails], **options)
    )
    assert (
        trained("--recipe", "skd_kl", "--cached", code=1)
        == "error: the cache was not made: error: c_train.jsonl is empty."
    )


def test_a_command_that_is_stopped_stops_its_training(
    tools: dict[str, ModuleType], trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit(143)))\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "time.sleep(60)\n"
    )

    def script(self: Any, training: Any) -> Path:
        with tools["processes"].child([sys.executable, "-c", program]) as process:
            raise RuntimeError(f"ended with {process.wait()}")

    def stop() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tools["runner"].Runner, "script", script)
    threading.Thread(target=stop).start()
    assert "stopped by SIGTERM: the same command goes on" in trained("--recipe", "ctc", code=143)
    assert ended.exists()


def test_a_corpus_at_other_speeds(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    seconds = np.arange(16000) / 16000
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.sin(2 * np.pi * 1000 * seconds), 16000)
    for part, name in (("train", "a"), ("valid", "b")):
        row = {"audio_filepath": f"{name}.wav", "duration": 1.0, "text": name, "speaker": "s\u2028"}
        (tmp_path / f"an4_{part}.jsonl").write_text(
            json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8"
        )
    output = tmp_path / "speeds"
    tools["speeds"].main(tmp_path, output, "an4", [0.8, 1.25])
    rows = {
        part: [json.loads(one) for one in (output / f"an4-speeds_{part}.jsonl").read_text().splitlines()]
        for part in ("train", "valid")
    }
    assert [row["duration"] for row in rows["train"]] == pytest.approx([1.0, 1.25, 0.8], abs=1e-3)
    assert {(row["text"], row["speaker"]) for row in rows["train"]} == {("a", "s\u2028")}
    assert [row["audio_filepath"] for row in rows["valid"]] == [str((tmp_path / "b.wav").resolve())]
    for row, pitch in zip(rows["train"], (1000, 800, 1250), strict=True):
        heard, rate = soundfile.read(row["audio_filepath"])
        assert len(heard) / rate == pytest.approx(row["duration"])
        assert np.abs(np.fft.rfft(heard)).argmax() * rate / len(heard) == pytest.approx(pitch, abs=2)
    with pytest.raises(SystemExit, match=r"there is no .*other_train\.jsonl"):
        tools["speeds"].main(tmp_path, output, "other", [0.8])
    (tmp_path / "cut_train.jsonl").write_text(
        json.dumps({"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.5}) + "\n"
    )
    soundfile.write(tmp_path / "two.wav", np.zeros((16000, 2)), 16000)
    for row, words in (
        (
            {"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.5},
            r"has a part of .*a\.wav; only whole files",
        ),
        (
            {"audio_filepath": "a.wav", "offset": 0.0, "duration": 0.5},
            r"has a part of .*a\.wav; only whole files",
        ),
        ({"audio_filepath": "two.wav", "duration": 1.0}, r"two\.wav, which has 2 channels; make it mono"),
        ({"audio_filepath": "gone.wav", "duration": 1.0}, r"gone\.wav, which is not readable audio"),
    ):
        (tmp_path / "cut_train.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(SystemExit, match=words):
            tools["speeds"].main(tmp_path, output, "cut", [0.8])
    kept = Path(rows["train"][1]["audio_filepath"])
    before = kept.stat().st_mtime_ns
    tools["speeds"].main(tmp_path, output, "an4", [0.8, 1.25])
    assert kept.stat().st_mtime_ns == before
