# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The same command writes the `.nemo` that a killed process did not, and a full disk leaves nothing half."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from nemo.utils import logging

from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.utils.files import sha256_of
from tests.conftest import student_config
from tests.integration.recorder import same


def weights(path: Path) -> dict[str, torch.Tensor]:
    return restore_ctc(path).state_dict()


@pytest.mark.parametrize("distilled", [True, False])
def test_the_nemo_of_a_finished_run_is_written(
    corpus, teacher_file, make_student, tmp_path: Path, monkeypatch, distilled: bool
):
    """With RKD alone, the decoder in the file is the composed one."""
    rkd = [{"name": "rkd", "weights": {"rkd": 1.0}}]
    config = student_config(corpus, teacher_file if distilled else None, rkd if distilled else None)

    def run(epochs: int = 1) -> Any:
        model = make_student(config, folder=tmp_path, max_epochs=epochs)
        model.trainer.fit(model)
        return model

    run()
    (student,) = tmp_path.rglob("run.nemo")
    expected = weights(student)
    untouched, warnings = student.stat().st_mtime_ns, []
    monkeypatch.setattr(logging, "warning", warnings.append)
    run()
    assert any(f"nothing was trained. Its student is {student}." in warning for warning in warnings)
    monkeypatch.undo()
    assert student.stat().st_mtime_ns == untouched, "it was there"
    content = student.read_bytes()
    for damage in (None, b"", content[: len(content) // 2]) if distilled else (None,):
        student.unlink()
        if damage is not None:
            student.write_bytes(damage)
        assert run().trainer.global_step == 4
        assert same(weights(student), expected)
    os.utime(student, (1e9, 1e9))  # as of a run that was made longer, and killed before the new file
    run()
    assert student.stat().st_mtime > 1e9 and same(weights(student), expected)
    assert [path.name for path in tmp_path.rglob("*.nemo")] == ["run.nemo"]


def test_a_full_disk_leaves_no_half_checkpoint(corpus, make_student, tmp_path: Path, monkeypatch):
    config = student_config(corpus, None)
    save, calls = torch.save, []

    def full(content: Any, path: Any, *rest: Any, **more: Any) -> None:
        calls.append(path)
        if len(calls) == 3:  # the second epoch's first
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path, *rest, **more)

    saving = make_student(config, folder=tmp_path, max_epochs=2)
    saving.trainer.checkpoint_callback.always_save_nemo = False
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.ckpt'"):
        saving.trainer.fit(saving)
    monkeypatch.setattr(torch, "save", save)
    folder = next(tmp_path.rglob("checkpoints"))
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    before = {path: sha256_of(path) for path in folder.rglob("*.ckpt")}
    assert len(before) == 2 and all(torch.load(path, weights_only=False) for path in before)
    resumed = make_student(config, folder=tmp_path, max_epochs=2)
    assert Path(resumed.trainer.ckpt_path) in before
    resumed.trainer.fit(resumed)
    assert resumed.current_epoch == 2 and list(tmp_path.rglob("run.nemo"))
