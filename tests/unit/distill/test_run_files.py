# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run that was killed at any moment is one from which the same command continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf

from nemo_tutornet.distill.run_files import AtomicCheckpointIO, repair_run_folder


def manager(folder: Path, **more: Any) -> Any:
    return OmegaConf.create(
        {
            "exp_dir": str(folder),
            "name": "run",
            "create_tensorboard_logger": False,
            "create_checkpoint_callback": True,
            "checkpoint_callback_params": {"monitor": "val_wer", "mode": "min", "save_top_k": 2, **more},
            "resume_if_exists": True,
            "resume_ignore_no_checkpoint": True,
        }
    )


def save(path: Path, step: int, training_state: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"state_dict": {"w": torch.ones(300)}, "hyper_parameters": {}}
    if training_state:
        state |= {"global_step": step, "loops": {}, "optimizer_states": []}
    torch.save(state, path)
    return path


def resumed_from(folder: Path, **more: Any) -> tuple[Path | None, list[str]]:
    """Where NeMo continues, after the repair, and what was told."""
    printed = repair_run_folder(manager(folder, **more))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    exp_manager(trainer, manager(folder, **more))
    again = repair_run_folder(manager(folder, **more))
    assert again == [], "a folder that was repaired needs no repair"
    return (Path(trainer.ckpt_path) if trainer.ckpt_path else None), printed


def truncate(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def mark(path: Path) -> None:
    path.with_name(f"{path.stem}-unfinished").touch()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("marked", [True, False])
def test_the_first_checkpoint_was_half_written(tmp_path: Path, share: float, marked: bool) -> None:
    folder = tmp_path / "run" / "checkpoints"
    last = truncate(save(folder / "run--val_wer=0.5-epoch=1-last.ckpt", 3), share)
    if marked:
        mark(last)
    resumed, printed = resumed_from(tmp_path)
    assert resumed is None and not last.exists()
    assert str(last) in printed[0] and printed[-1].endswith("the training begins anew.")
    kept = [path.name for path in folder.iterdir()]
    assert kept == ([] if marked or not share else [f"{last.name}.damaged"])


def test_a_hole_in_the_middle_is_found(tmp_path: Path) -> None:
    last = save(tmp_path / "run" / "checkpoints" / "run-last.ckpt", 3)
    content = bytearray(last.read_bytes())
    at = content.index(torch.ones(20).numpy().tobytes())
    content[at : at + 40] = bytes(40)
    last.write_bytes(content)
    assert resumed_from(tmp_path)[0] is None and last.with_name("run-last.ckpt.damaged").is_file()


def test_the_newest_whole_one_takes_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder / "run--val_wer=0.5-epoch=1.ckpt", 4)
    newest = save(folder / "run--val_wer=0.6-epoch=2.ckpt", 8)
    save(folder / "run--val_wer=0.7-epoch=3.ckpt", 12, training_state=False)
    last = truncate(save(folder / "run--val_wer=0.6-epoch=2-last.ckpt", 8), 0.5)
    mark(last)
    resumed, printed = resumed_from(tmp_path)
    assert resumed == last and resumed.read_bytes() == newest.read_bytes()
    assert str(newest) in printed[-1] and "continues from" in printed[-1]


def test_killed_between_the_best_and_the_first_last(tmp_path: Path) -> None:
    best = save(tmp_path / "run" / "checkpoints" / "run--val_wer=0.5-epoch=1.ckpt", 4)
    resumed, _ = resumed_from(tmp_path)
    assert resumed is not None and resumed.read_bytes() == best.read_bytes()
    other = tmp_path / "other"
    save(other / "run" / "checkpoints" / "run--val_wer=0.5-epoch=1.ckpt", 4)
    assert resumed_from(other, save_last=False)[0] is None


def test_a_whole_file_keeps_its_mark_no_longer(tmp_path: Path) -> None:
    """Killed before the new content was put in place of the old, or after."""
    last = save(tmp_path / "run" / "checkpoints" / "run-last.ckpt", 3)
    mark(last)
    assert resumed_from(tmp_path) == (last, [])
    assert [path.name for path in last.parent.iterdir()] == [last.name]


def test_killed_before_the_last_but_one_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    newer = save(folder / "run--val_wer=0.5-epoch=10-last.ckpt", 40)
    older = save(folder / "run--val_wer=0.5-epoch=9-last.ckpt", 36)
    mark(older)
    resumed, printed = resumed_from(tmp_path)
    assert resumed == newer and older.with_name(f"{older.name}.older").is_file() and str(older) in printed[0]


def test_a_temporary_folder_and_a_mark_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    last = save(folder / "run-last.ckpt", 3)
    (folder / ".run.nemo.tutornet-abc.tmp").mkdir()
    (folder / "run--val_wer=0.5-epoch=1-unfinished").touch()
    resumed, printed = resumed_from(tmp_path)
    assert resumed == last and len(printed) == 1 and [path.name for path in folder.iterdir()] == [last.name]


def test_the_nemo_that_was_moved_away(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder / "run-last.ckpt", 3)
    (folder / "run-v1.nemo").write_bytes(b"old")
    assert "has its name again" in repair_run_folder(manager(tmp_path))[0]
    assert (folder / "run.nemo").read_bytes() == b"old" and not (folder / "run-v1.nemo").exists()


@pytest.mark.parametrize("where", ["dirpath", "explicit", "version", "not resumed", "url", None])
def test_where_checkpoints_are(tmp_path: Path, where: str | None) -> None:
    config = None if where is None else manager(tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    if where == "dirpath":
        folder = tmp_path / "mine"
        config.checkpoint_callback_params.dirpath = str(folder)
    elif where == "explicit":
        folder, config.explicit_log_dir = tmp_path / "log" / "checkpoints", str(tmp_path / "log")
    elif where == "version":
        folder, config.version = tmp_path / "run" / "7" / "checkpoints", "7"
    elif where == "not resumed":
        config.resume_if_exists = False
    elif where == "url":
        config.checkpoint_callback_params.dirpath = "s3://bucket/checkpoints"
    last = truncate(save(folder / "run-last.ckpt", 3), 0.5)
    printed = repair_run_folder(config)
    assert last.exists() is (where in ("not resumed", "url", None)) is (not printed)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"No space left on device.*a\.ckpt"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before and [one.name for one in path.parent.iterdir()] == ["a.ckpt"]
