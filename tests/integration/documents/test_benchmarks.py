# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The speed benchmarks run at sizes of seconds, and their figures hang together; how fast anything is, is not
asked here.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import write_manifest
from tests.integration.students import build

ROOT = Path(__file__).resolve().parents[3]
SMALL = ROOT / "conf" / "small"
TEACHER = ["--teacher", "small", "--teacher-config", SMALL / "conformer_ctc_small.yaml"]
SIZE = ["--batch", "2", "--seconds", "1.5", "--rounds", "1", "--device", "cpu"]


def figures(folder: Path, script: str, *more: object) -> dict[str, Any]:
    command = [
        sys.executable,
        ROOT / "benchmarks" / script,
        *TEACHER,
        *SIZE,
        *more,
        "--json",
        folder / "figures.json",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "x plain step" in done.stdout
    found = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert found["machine"]["batch"] == 2 and found["rounds"] == 1
    return found


def test_what_a_teacher_costs(tmp_path):
    found = figures(tmp_path, "step.py", "--student", SMALL / "quartznet_small.yaml", "--precision", "bf16")
    assert found["machine"]["precision"] == "bf16"
    (pair,) = found["pairs"]
    assert (pair["student"], pair["teacher"]) == ("quartznet_small", "small")
    stages = ("rkd", "rkd, layer inside", "ctc + rkd", "ctc + skd")
    assert set(pair["ratio_to_parts"]) == {f"live ({stage})" for stage in stages}
    forwards = {f"teacher's forward ({stage})" for stage in stages}
    read = {"cached (rkd)", "cached (ctc + rkd)", "cached (ctc + skd)"}
    at_speeds = {f"{name}, 3 speeds" for name in read}
    assert set(pair["ratio_to_perturbed"]) == at_speeds
    assert set(pair["median_s"]) == {
        "plain CTC step",
        "teacher's front end",
        *forwards,
        *read,
        *at_speeds,
        "plain CTC step, 3 speeds",
        "CTC + consistency of two views, no teacher",
        *pair["ratio_to_parts"],
    }
    assert set(pair["ratio_to_plain"]) == set(pair["median_s"]) - {"plain CTC step"}
    plain = pair["median_s"]["plain CTC step"]
    rounding = 0.5e-4  # of the seconds and of the ratio; a front end of 2 ms changes by 2.5 %
    for name, ratio in pair["ratio_to_plain"].items():
        expected = pair["median_s"][name] / plain
        assert abs(ratio - expected) <= 1.01 * rounding * (1 + (1 + ratio) / plain)


def test_a_step_with_the_teacher_on_the_students_stream(monkeypatch):
    """Only measured on a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    step = importlib.import_module("step")
    teacher = SimpleNamespace(side_stream="a stream of its own")
    live, seen = SimpleNamespace(distiller=SimpleNamespace(teacher=teacher)), []
    step.on_one_stream(live, lambda: seen.append(teacher.side_stream))()
    assert seen == [None] and teacher.side_stream == "a stream of its own"


def test_what_others_do_and_leave_behind(tmp_path):
    found = figures(tmp_path, "peers.py", "--other-student", SMALL / "quartznet_small.yaml")
    ours, dag, ours_hidden, pull = found["left_behind"].values()
    assert set(found["ratio_to_plain"]) == set(found["left_behind"]) and len(found["ratio_to_ours"]) == 2
    for mine in (ours, ours_hidden):
        assert mine["NeMo alone restores it"] and mine["a quartznet_small student"] == "trains"
        assert (
            mine["teacher's weights given to the optimizer"] == 0
            and mine["teacher's BatchNorm moved by, %"] == 0
        )
        assert mine["rkd with 2 s of padding, x"] == pytest.approx(1, abs=0.001)
    assert ours["skd with 2 s of padding, x"] == pytest.approx(1, abs=0.001)
    for other in (dag, pull):
        assert not other["NeMo alone restores it"] and other["a quartznet_small student"] != "trains"
        assert other["teacher's weights given to the optimizer"] == found["parameters"]["teacher"]
        assert other["teacher's BatchNorm moved by, %"] > 0 and other[".nemo, MB"] > 2 * ours[".nemo, MB"]
        assert abs(other["rkd with 2 s of padding, x"] - 1) > 0.005


def test_what_depthwise_convolutions_cost(tmp_path):
    size = [
        "--student",
        SMALL / "quartznet_small.yaml",
        "--batch",
        "2",
        "--seconds",
        "1.5",
        "--rounds",
        "1",
        "--width",
        "4",
    ]
    command = [
        sys.executable,
        ROOT / "benchmarks" / "depthwise.py",
        *size,
        "--json",
        tmp_path / "figures.json",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (
        "One convolution, 2 x 75 frames, 4 channels" in done.stdout
        and "quartznet_small (0.3 M)" in done.stdout
    )
    rows = [*found["students"].values(), *found["teachers"].values(), *found["kernels"].values()]
    assert len(rows) == 2 + len(found["kernels"])
    assert set(rows[0]["ratio"]) == {"Fourier", "Fourier, bf16-mixed"}
    assert all(
        set(row["median_s"]) == {"PyTorch's", *row["ratio"]} and row["ratio"]["Fourier"] > 0 for row in rows
    )


@pytest.mark.parametrize("command", ["cost", "curve", "memory", "speeds"])
def test_what_a_cache_costs_and_teaches(corpus, english_teacher_file, tmp_path, command):
    more = {"cost": ["--rounds", "1"], "curve": ["--steps", "4"], "memory": ["--steps", "2"]}.get(command)
    more = more or ["--speeds", "1", "--speeds", "3", "--rounds", "1"]
    script = ["cache_speeds.py"] if command == "speeds" else ["cache.py", command]
    arguments = [
        *script[1:],
        str(corpus / "train.jsonl"),
        str(english_teacher_file),
        "--batch",
        "2",
        "--json",
        "figures.json",
        *more,
    ]
    run = [sys.executable, str(ROOT / "benchmarks" / script[0]), *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    if command == "cost":
        assert found["mb_per_hour"] > found["posteriors_mb_per_hour"] > 5 and found["read_to_dataloader"] > 1
    elif command == "speeds":
        assert set(found["epoch_s"]) == {
            "plain, 3 speeds",
            "cached, 1 speeds",
            "cached, 3 speeds",
            "live, 3 speeds",
        }
        assert found["build"]["3"]["megabytes"] > 2.5 * found["build"]["1"]["megabytes"]
    elif command == "curve":
        assert all(0 < found[loss]["same student"]["largest"] < 0.01 for loss in ("train_rkd", "train_skd"))
    else:
        assert set(found) == {"plain", "live", "cached"} and all(
            megabytes > 100 for megabytes in found.values()
        )


def test_the_memory_of_averaging(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "average_memory.py"), "--json", "figures.json"]
    command += ["--parameters", "25", "--checkpoints", "3", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert found["one"]["mb"] > 90 and found["mean"]["mb"] > 90 and found["beyond_one_mb"] < 500
    assert f"{found['beyond_one_mb']:.0f} MB beyond one" in done.stdout


def test_what_chose_the_caches_format(tmp_path):
    script = [
        sys.executable,
        str(ROOT / "benchmarks" / "cache_formats.py"),
        "--hours",
        "0.02",
        "--output",
        "figures.json",
    ]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "safetensors" in done.stdout and (tmp_path / "figures.json").exists()


def test_a_subword_teacher_of_a_pretrained_encoder(tmp_path):
    """The encoder stays as it is; frames are four times as long."""
    from nemo.collections.asr.models import ASRModel

    from nemo_tutornet.nemo_io.layers import measure_encoder

    pretrained = build("quartznet", tmp_path / "student")
    manifests = [write_manifest(tmp_path, name, [1.2, 1.3, 1.4]) for name in ("train", "valid")]
    arguments = [pretrained, tmp_path / "subwords.nemo", "--train", manifests[0], "--valid", manifests[1]]
    command = [sys.executable, ROOT / "benchmarks/results/subword_teacher.py", *arguments, "--epochs", "2"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{tmp_path / 'subwords.nemo'}: ")
    before, after = (
        ASRModel.restore_from(str(path), map_location="cpu").eval()
        for path in (pretrained, tmp_path / "subwords.nemo")
    )
    assert measure_encoder(after).frame_ms == 4 * measure_encoder(before).frame_ms
    weights = after.encoder.state_dict()
    moved = [name for name, value in before.encoder.state_dict().items() if not weights[name].equal(value)]
    assert not moved
    assert type(after).__name__ == "EncDecCTCModelBPE"


def test_the_memory_of_many_epochs(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    importlib.import_module("memory_epochs").main(10, teacher=False, extras=False, trim=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["step"] for row in rows] == [6 * i for i in range(1, 11)]
    assert all(0 < row["mb_trimmed"] <= row["mb"] + 5 for row in rows)
    assert rows[-1]["objects"] - rows[2]["objects"] < 1000, "a step leaves no objects"
