# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The support matrix (matrix.py): each cell trains and leaves, or is refused with its sentence, and the
README says the same.

How the cells were chosen. What a teacher's labels allow does not depend on the student's architecture, and
what its frames allow does not depend on labels. So every kind of teacher meets

- every architecture of student with the labels that suit it best (its own, or its tokenizer), which are all
  relations of frames: the student faster, as fast, slower with pooling, and slower without (where only
      pseudo-labels work);
- every relation of labels with one architecture;

Conformer students meet one teacher of each frame, FastConformer students one with frames as long as theirs
and one with shorter ones; each kind of head meets a corpus without transcripts; and an attention model meets
a QuartzNet only. Every loss that the rules refuse is asked for too.

A cell that works trains on one batch over and over, without dither, dropout and SpecAugment, three steps with
each of its losses alone (the losses before, between and after two steps) and then with all of them together,
as a training from a `.nemo` file with a `tutor:` section does; then it is exported and restored by NeMo's own
class.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_tutornet import TutorCTCModel, TutorCTCModelBPE, TutorError, export_student
from nemo_tutornet.nemo_io.restore import labels_of
from nemo_tutornet.teachers.adapter import Adapter, AdapterInfo
from nemo_tutornet.teachers.adapter_head import AdapterHead
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import ACCELERATOR, student_config, write_manifest
from tests.integration import teacher_models
from tests.integration.models import matrix, matrix_tables
from tests.integration.models.matrix import Cell
from tests.integration.recorder import Recorder
from tests.integration.students import of_kind, subword, write_tokenizer
from tests.integration.teacher_models import FEW_LABELS

STEPS = 3  # of each stage
CELLS = matrix.cells()
WORKING = [*(cell for cell in CELLS if matrix.works(cell)), *matrix.adapted_cells()]
# What QuartzNets are refused, and what others are refused for their frames.
REFUSED = [
    (cell, loss)
    for cell in CELLS
    for loss in matrix.LOSSES
    if cell.transcripts
    and (rule := matrix.refusal(cell, loss))
    and (cell.student == "quartznet" or rule == "pool")
]
# The same pieces as those of `write_tokenizer`, in another order; and other pieces.
REORDERED, OTHER = "aa c\nbb d\nab cd\nabc d\n" * 20 + "bb d\n" * 5, "aa c\nbb d\ncab bad\n" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borrowed tokenizers are kept here and not in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three utterances, over and over, in `train.jsonl` with transcripts and in `silent.jsonl` without;
    tokenizers.
    """
    folder = tmp_path_factory.mktemp("matrix")
    path = write_manifest(folder, "train", [0.9, 1.31, 1.02])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] * (
        STEPS * (len(matrix.LOSSES) + 1)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    silent = [{name: value for name, value in row.items() if name != "text"} for row in rows]
    (folder / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in silent), encoding="utf-8")
    write_tokenizer(folder / "same")
    write_tokenizer(folder / "reordered", REORDERED)
    write_tokenizer(folder / "other", OTHER)
    return folder


@pytest.fixture(scope="module")
def teacher_of(folder: Path) -> Callable[[str], Path]:
    """The `.nemo` of a kind in the matrix, made when it is first asked for."""
    waves = [torch.tensor(soundfile.read(folder / f"train{i}.wav", dtype="float32")[0]) for i in range(3)]
    signals = (
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([len(wave) for wave in waves]),
    )

    @functools.cache
    def save(name: str) -> Path:
        path = folder / f"{name}.nemo"
        return teacher_models.save_kind(matrix.TEACHERS[name], folder, path, folder / "same", signals)

    return save


def student_of(
    cell: Cell, folder: Path, teacher: Path, stages: list[dict[str, Any]], recorder: Recorder
) -> Any:
    """The student of a cell with its trainer."""
    config = of_kind(cell.student, student_config(folder, teacher, stages, pool_frames=cell.pool_frames))
    del config["spec_augment"], config["validation_ds"]
    config["preprocessor"]["dither"] = 0.0
    if "conformer" in cell.student:
        # Larger steps, or momentum of the stage before, and its loss does not fall at every step.
        config["optim"].update(lr=1e-3, betas=[0.0, 0.99])
    config["train_ds"].update(batch_size=3, shuffle=False)
    if cell.adapter:
        config["tutor"]["teacher"]["adapter"] = str(adapter_of(cell, folder))
    if not cell.transcripts:
        config["train_ds"]["manifest_filepath"] = str(folder / "silent.jsonl")
        config["tutor"]["skd"] = {"frames": "symmetric"}
    if cell.subwords:
        name = {"reordered": "reordered", "other subwords": "other"}.get(cell.labels, "same")
        subword(config, folder / name)
        if cell.labels == "borrowed":
            config["tokenizer"] = "teacher"
    else:
        labels = {"reordered": FEW_LABELS[::-1], "other characters": [*FEW_LABELS[:-1], "ä"]}.get(
            cell.labels, FEW_LABELS
        )
        config["labels"] = config["train_ds"]["labels"] = config["decoder"]["vocabulary"] = labels
        config["decoder"]["num_classes"] = len(labels)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator=ACCELERATOR,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=[recorder],
    )
    torch.manual_seed(0)
    model_class = TutorCTCModelBPE if cell.subwords else TutorCTCModel
    return model_class(OmegaConf.create({"model": config}).model, trainer=trainer)


def adapter_of(cell: Cell, folder: Path) -> Path:
    """The file of a cell's adapter."""
    return folder / f"{cell.teacher} {cell.labels}.safetensors"


def write_adapter(cell: Cell, student: Any, teacher: Path, path: Path) -> None:
    """Writes an adapter of a teacher for a student; it is not trained, as the teacher is not."""
    labels = labels_of(student, student.decoder)
    torch.manual_seed(0)
    head = AdapterHead(24, 16, int(cell.rate), len(labels) + 1)
    info = AdapterInfo(
        labels=tuple(labels),
        frame_ms=matrix.STUDENTS[cell.student].frame_ms,
        upsampling=int(cell.rate),
        teacher_width=24,
        width=16,
        teacher_outputs=0,
        teacher_sha256=sha256_of(teacher),
        teacher_class="",
        wer=1.0,
        teacher_wer=1.0,
        utterances=1,
    )
    Adapter(head, info).save(path)


def schedule(cell: Cell) -> list[dict[str, Any]]:
    """Each loss of a cell alone, and then all of them and CTC."""
    losses = matrix.works(cell)
    alone: list[dict[str, Any]] = [{"name": loss, "steps": STEPS, "weights": {loss: 1.0}} for loss in losses]
    ctc = {"ctc": 1.0} if cell.transcripts else {}
    return [*alone, {"name": "together", "steps": STEPS, "weights": {**ctc, **dict.fromkeys(losses, 0.25)}}]


@pytest.mark.parametrize("cell", WORKING, ids=str)
def test_a_cell_that_works(cell, folder, teacher_of, tmp_path):
    stages, recorder, teacher = schedule(cell), Recorder(), teacher_of(cell.teacher)
    student = student_of(cell, folder, teacher, stages, recorder)
    if cell.adapter:
        write_adapter(cell, student, teacher, adapter_of(cell, folder))
    student.trainer.limit_train_batches = STEPS * len(stages)
    student.trainer.fit(student)

    assert len(recorder.steps) == STEPS * len(stages)
    for i, stage in enumerate(stages):
        steps = recorder.steps[STEPS * i : STEPS * (i + 1)]
        terms = {f"train_{loss}" for loss in stage["weights"]}
        terms |= {"train_rkd_r2"} if "rkd" in stage["weights"] else set()
        assert all(
            set(step) == terms | {"train_loss", "tutor_stage"} and step["tutor_stage"] == i for step in steps
        ), steps
        assert torch.isfinite(torch.tensor([list(step.values()) for step in steps])).all(), steps
        losses = [step["train_loss"] for step in steps]
        assert losses[0] > losses[1] > losses[2] > 0, (stage["name"], losses)
        if "ctc" in stage["weights"]:
            assert steps[0]["train_ctc"] > steps[1]["train_ctc"] > steps[2]["train_ctc"], steps

    pairing, kind = student.distiller.match, matrix.TEACHERS[cell.teacher]
    assert type(student.distiller.teacher.model).__name__ == matrix.CLASSES[kind.head, kind.units]
    assert (pairing.teacher_encoder.frame_ms, pairing.student_encoder.frame_ms) == (
        matrix.STUDENTS[cell.student].frame_ms if cell.adapter else kind.frame_ms,
        matrix.STUDENTS[cell.student].frame_ms,
    )
    assert (pairing.label_order is not None) == (cell.labels == "reordered" and kind.head != "transducer")
    assert (pairing.no_warm_start is None) == ("skd" in matrix.works(replace(cell, pool_frames=True)))

    done = export_student(student, tmp_path / "student.nemo")
    alone = ASRModel.restore_from(str(done.path), map_location="cpu")
    assert type(alone) is (EncDecCTCModelBPE if cell.subwords else EncDecCTCModel)
    mine, theirs = student.state_dict(), alone.state_dict()
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert list(alone.decoder.vocabulary) == list(student.decoder.vocabulary)


@pytest.mark.parametrize(("cell", "loss"), REFUSED, ids=lambda value: str(value))
def test_a_cell_that_is_refused(cell, loss, folder, teacher_of):
    recorder = Recorder()
    with pytest.raises(TutorError, match=matrix.RULES[matrix.refusal(cell, loss)].sentence) as error:
        student = student_of(
            cell, folder, teacher_of(cell.teacher), [{"name": "asked", "weights": {loss: 1.0}}], recorder
        )
        student.trainer.fit(student)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and not recorder.steps


@pytest.mark.parametrize("path", matrix_tables.PAGES, ids=lambda path: path.name)
def test_the_pages_show_this_table(path):
    page = path.read_text(encoding="utf-8")
    expected = matrix_tables.rewritten(page, matrix_tables.PAGES[path]())
    assert expected == page, "run python -m tests.integration.models.matrix_tables"
