# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation's pages, run in a folder with the files that they name.

They are run as written, but for the student, which is the small one of its kind, and for trainings, which
last two epochs. Trainings run in a process; the other commands run in this one, which has imported NeMo
already. `tests/unit/test_blocks.py` counts the blocks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from nemo.collections.asr.models import ASRModel
from typer.testing import CliRunner

from nemo_tutornet.cli import app
from nemo_tutornet.commands.hydra_config import compose_config
from nemo_tutornet.config import TutorConfig, parse_tutor
from tests.conftest import write_manifest
from tests.integration import teacher_models
from tests.integration.documents.test_readme import ROOT, run, shorter, smaller
from tests.integration.models import matrix
from tests.integration.students import build, write_tokenizer
from tests.unit.test_blocks import EXECUTED, blocks

COMMANDS = "integration/documents/test_pages.py::test_the_commands_of_a_page"
SECTIONS = "integration/documents/test_pages.py::test_the_sections_of_a_page"


def unmarked(page: str, *languages: str) -> list[str]:
    """The blocks of a page that are not marked as not run."""
    return [
        content for reason, language, content in blocks(ROOT / page) if not reason and language in languages
    ]


def commands(page: str) -> list[str]:
    """The commands of a page, each in one line, with a smaller student."""
    joined = "".join(unmarked(page, "", "bash")).replace("\\\n", " ")
    return [line for line in smaller(joined).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def models(english_teacher_file, tmp_path_factory) -> Path:
    """Holds a teacher of characters, one of subwords, and a student that has been trained."""
    folder = tmp_path_factory.mktemp("models")
    write_manifest(folder, "train", [1.0])
    signals = (torch.randn(3, 16000), torch.tensor([16000, 12000, 16000]))
    tokenizer = write_tokenizer(folder / "tokenizer")
    teacher_models.save_kind(
        matrix.TEACHERS["fastconformer bpe"], folder, folder / "subwords.nemo", tokenizer, signals
    )
    (folder / "teacher.nemo").write_bytes(english_teacher_file.read_bytes())
    build("quartznet", folder / "student", features=80, window_size=0.025).rename(folder / "trained.nemo")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds what the commands name; the project's folders are linked, so that relative paths mean the
    same.
    """
    for name in ("examples", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("train", "valid", "test"):
        write_manifest(tmp_path, name, [1.51, 1.6])
    rows = [json.loads(row) for row in (tmp_path / "train.jsonl").read_text().splitlines()]
    heard = [{**row, "pred_text": row["text"]} for row in rows]
    (tmp_path / "transcribed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heard))
    for name in ("teacher.nemo", "subwords.nemo"):
        (tmp_path / name).symlink_to(models / name)
    trained = tmp_path / "runs" / "student" / "checkpoints" / "student.nemo"
    trained.parent.mkdir(parents=True)
    trained.write_bytes((models / "trained.nemo").read_bytes())
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, torch.randn(16000).clamp(-1, 1).numpy() / 10, 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(command: str, folder: Path) -> None:
    """Runs one command."""
    program, *arguments = shlex.split(command)
    if program == "nemo-tutornet":
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and "Traceback" not in done.output, (command, done.output[-2000:])
    elif "trainer.max_epochs" in command:
        run(shorter(command), folder)
        name = re.findall(r"exp_manager\.name=(\w+)", command)[0]
        trained = folder / "runs" / name / "checkpoints" / f"{name}.nemo"
        assert not type(ASRModel.restore_from(str(trained), map_location="cpu")).__module__.startswith(
            "nemo_t"
        )
    else:
        run(command, folder)


@pytest.mark.parametrize("page", [page for page, tests in EXECUTED.items() if COMMANDS in tests])
def test_the_commands_of_a_page(page, folder):
    found = commands(page)
    assert found
    if page == "docs/start.md":  # it trains the student itself
        (folder / "runs/student/checkpoints/student.nemo").unlink()
    for command in found:
        if page == "docs/guides/untranscribed.md" and ("speech_to_text" in command or "adapt" in command):
            continue  # test_readme.py and test_adapter_page.py run these
        if page == "docs/deployment/sherpa-onnx.md" and "streaming" in command:
            continue  # test_streaming.py runs these, with a student of that kind
        if "benchmarks/" in command:
            continue  # test_chunks.py runs it, on fewer chunks
        execute(command, folder)


def test_the_commands_of_the_model_card(folder):
    for command in commands("docs/deployment/model-card.md"):
        arguments, _, output = command.partition(" > ")
        done = CliRunner().invoke(app, shlex.split(arguments)[1:])
        assert done.exit_code == 0, (command, done.output[-2000:])
        if output:
            (folder / output).write_text(done.stdout, encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| LibriSpeech test-clean | nemo | 2 |" in card and "student-onnx-asr" in card


@pytest.mark.parametrize("page", [page for page, tests in EXECUTED.items() if SECTIONS in tests])
def test_the_sections_of_a_page(page):
    (block,) = unmarked(page, "yaml")
    section = parse_tutor(yaml.safe_load(block)["model"])
    assert section is not None and section.teacher.model_path == "teacher.nemo"
    assert section.stages == TutorConfig().stages


def test_the_lines_of_defaults(tmp_path):
    (block,) = unmarked("docs/configuration.md", "yaml")
    (tmp_path / "mine.yaml").write_text(f"{block}model:\n  tutor:\n    teacher: {{model_path: a.nemo}}\n")
    (override,) = re.findall(
        r"`(model\.tutor\.skd\.divergence=\w+)`", (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    )
    composed = compose_config(tmp_path / "mine.yaml", [override, "front_end=deployable"]).model
    assert composed.preprocessor.features == 80 and composed.preprocessor.window_size == 0.025
    section = parse_tutor(composed)
    assert section is not None and section.skd.divergence == "kl" and section.teacher.model_path == "a.nemo"


@pytest.mark.skipif(
    "NEMO_RUN_PYTHON" not in os.environ,
    reason="NEMO_RUN_PYTHON names no interpreter that has NeMo-Run, which wants an environment of its own",
)
def test_the_recipe_for_nemo_run(folder):
    (block,) = unmarked("docs/guides/multi-gpu.md", "python")
    small = block.replace("=../conf", "=../conf/small").replace("=quartznet_5x5", "=quartznet_small")
    (folder / "recipe.py").write_text(shorter(small), encoding="utf-8")
    (folder / "runs/student/checkpoints/student.nemo").unlink()
    path = f"PYTHONPATH={ROOT} NEMORUN_HOME={folder}/nemo_run"
    run(f"{path} {os.environ['NEMO_RUN_PYTHON']} recipe.py", folder)
    assert (folder / "runs/student/checkpoints/student.nemo").is_file()


def test_the_export_in_python(folder):
    (block,) = unmarked("docs/deployment/index.md", "python")
    exec(compile(block, "docs/deployment/index.md", "exec"), {})
    assert (folder / "student.onnx").is_file() and (folder / "student.json").is_file()
