# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The README's commands, run in a folder with the files that they name; `make` is what runs this very test.

The distilled student of the quick start is trained as written, but for its epochs. The other trainings are of
the small student of the same kind.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from nemo.collections.asr.models import ASRModel, EncDecCTCModel

from nemo_tutornet.config import TeacherConfig, TutorConfig, parse_tutor
from tests.conftest import write_manifest

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
UNTRANSCRIBED = (ROOT / "docs" / "guides" / "untranscribed.md").read_text(encoding="utf-8")
DOCS = "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").rglob("*.md")))


def blocks(language: str, page: str = README) -> list[str]:
    # Every fence in turn: the end of one block looks like the beginning of a block without a language.
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [content for found, content in fenced if found == language]


def commands(start: str, page: str = README) -> list[str]:
    fenced = [*blocks("", page), *blocks("bash", page)]
    joined = [command for block in fenced for command in block.replace("\\\n", " ").splitlines()]
    return [command for command in joined if command.startswith(start)]


@pytest.fixture(scope="module")
def folder(english_teacher_file, tmp_path_factory) -> Path:
    """Holds what the commands name; the project's folders are linked, so that relative paths mean the
    same.
    """
    folder = tmp_path_factory.mktemp("readme")
    for name in ("examples", "conf"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("train", "valid", "test"):
        write_manifest(folder, name, [1.51, 1.6])  # NeMo's stock SpecAugment cannot mask a shorter batch
    (folder / "teacher.nemo").write_bytes(english_teacher_file.read_bytes())
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a user's shell does with a command, with this environment's programs first."""
    line = f'export PATH="{Path(sys.executable).parent}:$PATH"; {command}'
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=900)


def run(command: str, folder: Path, *more: str) -> str:
    line = " ".join([command, *more])
    done = shell(line, folder)
    assert done.returncode == 0, (line, (done.stdout + done.stderr)[-3000:])
    return done.stdout


# A quicker student of the same kind, whose data are read without eight processes.
SMALLER = {
    "--config-path=../conf --config-name=quartznet_5x5_bpe": "-cp ../conf/small -cn quartznet_bpe_small",
    "--config-path=../conf --config-name=quartznet_5x5": "-cp ../conf/small -cn quartznet_small",
    "--config-name=quartznet_1m": "--config-name=quartznet_small",
}


def smaller(commands: str) -> str:
    """The same commands with a smaller student."""
    for written, small in SMALLER.items():
        commands = commands.replace(written, small)
    return commands


def shorter(train: str) -> str:
    """Two epochs instead of a hundred; everything else as written, so RKD takes half an epoch."""
    assert "trainer.max_epochs=100" in train
    return train.replace("trainer.max_epochs=100", "trainer.max_epochs=2")


def test_a_teacher_of_characters(folder):
    """Both students of the quick start, then their export and comparison."""
    assert "hint or guided layer" in run(commands("nemo-tutornet inspect")[0], folder)
    _, distilled, alone = commands("python examples/speech_to_text_ctc_tutornet.py")
    run(shorter(distilled), folder)
    run(shorter(alone), folder)
    model = ASRModel.restore_from(str(folder / "runs/alone/checkpoints/alone.nemo"), map_location="cpu")
    assert {block.dropout for block in model.cfg.encoder.jasper} == {0.0, 0.1}
    (export,), (evaluate,) = commands("nemo-tutornet export"), commands("nemo-tutornet evaluate")
    assert "student.json" in run(export, folder) and (folder / "student.onnx").is_file()
    assert type(ASRModel.restore_from(str(folder / "student.nemo"), map_location="cpu")) is EncDecCTCModel
    rows = json.loads(run(evaluate, folder, "--json"))
    assert [Path(row["model"]).name for row in rows] == ["teacher.nemo", "alone.nemo", "student.nemo"]


def test_a_teacher_of_subwords():
    """The commands are those of docs/adapter.md, which test_adapter_page.py runs."""
    page = (ROOT / "docs" / "adapter.md").read_text(encoding="utf-8").replace("subwords.nemo", "teacher.nemo")
    for start in (
        "nemo-tutornet adapt",
        "nemo-tutornet check",
        "python examples/speech_to_text_ctc_tutornet",
    ):
        mine, theirs = commands(start)[0], commands(start, page)[0].replace("adapted", "student")
        assert mine.split() == theirs.split()


def test_audio_without_transcripts(folder):
    """RKD on all of it, and then the transcribed part, from the student of the first training."""
    rows = [json.loads(row) for row in (folder / "train.jsonl").read_text().splitlines()]
    bare = [{key: value for key, value in row.items() if key != "text"} for row in rows]
    (folder / "untranscribed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    trainings = commands("python examples/speech_to_text_ctc_tutornet.py", UNTRANSCRIBED)
    first, second = [line for line in trainings if "name=few" not in line]
    run(smaller(shorter(first)), folder)
    begun = ASRModel.restore_from(str(folder / "runs/first/checkpoints/first.nemo"), map_location="cpu")
    run(
        smaller(shorter(second)).replace("max_epochs=2", "max_epochs=1"),
        folder,
        "model.optim.lr=1e-12",
        "model.optim.sched.min_lr=0.0",
        "model.optim.weight_decay=0.0",
    )
    ended = ASRModel.restore_from(str(folder / "runs/second/checkpoints/second.nemo"), map_location="cpu")
    # With no learning rate to speak of the second ends where the first did, but for the decoder, which RKD
    # composes anew.
    moved = [
        name
        for name, tensor in begun.encoder.named_parameters()
        if (tensor - ended.encoder.get_parameter(name)).abs().max() > 1e-6
    ]
    assert not moved


def test_the_section_shown_is_the_section_there_is():
    (block,) = [block for block in blocks("yaml") if "tutor:" in block]
    section = yaml.safe_load(block)["model"]
    section["tutor"]["teacher"]["model_path"] = "teacher.nemo"
    assert parse_tutor(section) == TutorConfig(teacher=TeacherConfig(model_path="teacher.nemo"))


def test_every_file_that_is_named_exists():
    # Not those inside another path, as of NeMo's own checkout.
    ours = r"(?<![\w/])(?:conf|examples|benchmarks|nemo_tutornet|docs)/[\w/.-]+\w"
    named = set(re.findall(ours, README + DOCS))
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_results_runner_runs(tmp_path):
    """Some of its recipes on a corpus of its own; the second time nothing is left to train, and the test set
    is read once.
    """
    for split in ("train", "valid", "test"):
        write_manifest(tmp_path, f"an4_{split}", [1.0, 1.2, 0.9])
    program = f"python {ROOT}/benchmarks/results"
    assert "an4-speeds_train.jsonl: 9 utterances" in run(f"{program}/speeds.py . speeds", tmp_path)
    train = f"{program}/run.py . runs --epochs 2 --teacher-epochs 1 --seed 1"
    first = f"{train} --recipe ctc --recipe label_free --student quartznet_1m --perturbed"
    assert "label_free perturbed seed 1" in run(first, tmp_path)
    assert "seed" not in run(first, tmp_path)
    refused = shell(f"{train} --share 0.7 --untranscribed-share 0.7", tmp_path)
    words = refused.stderr.replace("│", " ").split()  # without the box around them
    assert refused.returncode == 2 and "are more than there is" in " ".join(words)
    half = (
        f"{train} --recipe rkd_skd_kl --student jasper_small --cached --share 0.67 --change "
        "model.optim.lr=1e-3"
    )
    half += " --further speeds/an4-speeds_train.jsonl --further-share 0.5"
    assert "rkd_skd_kl further model.optim.lr=1e-3 seed 1" in run(half, tmp_path)
    (log,) = (tmp_path / "runs" / "an4").rglob("rkd_skd_kl_before.log")
    assert "`max_steps=1` reached" in log.read_text()
    table = run(f"{program}/table.py runs/an4 --test an4_test.jsonl --speed an4_valid.jsonl", tmp_path)
    title = (
        "RKD, then CTC + SKD kl; optim.lr=1e-3; 67 % of the data; 50 % of the steps on an4-speeds_train, "
        "too; cached teacher"
    )
    assert f"| jasper_small | {title} | char_1_epochs | 2 | 1 |" in table
    assert "| quartznet_1m | CTC only; speed perturbation | none | 2 | 1 |" in table
    assert (
        "| quartznet_1m | RKD, then SKD kl, no transcript at all; speed perturbation | char_1_epochs | 2 | 1 "
        "|" in table
    )
    assert re.search(r"^\| label_free \| 1.05 M \|", table, flags=re.MULTILINE)
    assert re.search(
        r"^\| teacher_char_1_epochs \| [\d.]+ M \| [\d.]+ \| [\d.]+ \|$", table, flags=re.MULTILINE
    )
    before = (tmp_path / "runs" / "an4" / "test.jsonl").read_text()
    again = run(f"{program}/table.py runs/an4 --test an4_test.jsonl --lines lines.jsonl", tmp_path)
    # The lines alone make the same table, and have nothing of this machine.
    assert [row for row in again.splitlines() if row.startswith("|")] == run(
        f"{program}/table.py lines.jsonl", tmp_path
    ).splitlines()
    assert str(tmp_path) not in (tmp_path / "lines.jsonl").read_text()
    assert again.splitlines() == table.split("\n\n")[0].splitlines()
    assert (tmp_path / "runs" / "an4" / "test.jsonl").read_text() == before and len(before.splitlines()) == 4
    assert '"text"' not in (tmp_path / "runs" / "an4" / "an4_train_100_without_text.jsonl").read_text()
    run(f"{program}/plots.py runs/an4 pictures --epochs 2 --student quartznet_1m --seeds 1", tmp_path)
    assert "<svg" in (tmp_path / "pictures" / "wer-by-epoch.svg").read_text()
    done = shell(f"{train} --recipe ctc --change model.optim.name=nothing", tmp_path)
    assert (
        done.returncode == 1
        and "error: training ctc failed" in done.stderr
        and "Traceback" not in done.stderr
    )
