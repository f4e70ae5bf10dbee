# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of a run: what a killed process left half done is repaired, so that the same command continues.

NeMo's exp_manager marks a checkpoint as unfinished while it writes or removes it. A process that is killed
meanwhile leaves the mark, and exp_manager refuses to continue then. It also refuses to choose between two
last checkpoints, and it writes no `.nemo` for a run that is already at its end.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from nemo.utils import logging
from nemo.utils.callbacks import NeMoModelCheckpoint
from nemo.utils.get_rank import is_global_rank_zero

from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.run_checkpoints import ema_copy
from nemo_tutornet.utils.files import atomic_write
from nemo_tutornet.utils.leftovers import remove_leftovers

_UNFINISHED = NeMoModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX
# Parts of one checkpoint of a model that is distributed among ranks; NeMo repairs these.
_SHARDS = ("mp_rank", "tp_rank", "fsdp_shard")
# What a training state has, and a checkpoint of weights alone does not.
_TRAINING_STATE = ("global_step", "loops", "optimizer_states")


def repair_run_folder(manager: Mapping[str, Any] | None) -> list[str]:
    """Makes a run's folder one that `exp_manager` continues from. Call it before `exp_manager`.

    Checkpoints that are not whole are removed or renamed to `….damaged`. The run continues from the newest
    whole one; without any, it begins anew. What a killed process left besides is removed.

    Every rank may call this. Files that another rank has changed meanwhile are passed over.

    Args:
        manager: the section `exp_manager` of the training's config. Without `resume_if_exists` nothing is
            done.

    Returns:
        What was done, one sentence each.

    Raises:
        TutorError: a checkpoint that must be compared with others is foreign or would run code.
    """
    folder = checkpoint_folder(manager)
    if manager is None or folder is None or not folder.is_dir():
        return []
    warnings = [
        f"{path} was left by a process that was killed; it was removed." for path in remove_leftovers(folder)
    ]
    params = manager.get("checkpoint_callback_params") or {}
    if is_global_rank_zero():
        warnings += _restore_backup(folder, str(params.get("prefix") or manager.get("name") or "default"))
    whole, damaged = _sort_out(folder, warnings)
    last = [path for path in whole if path.name.endswith("last.ckpt")]
    if len(last) > 1:
        newest = max(last, key=lambda path: (_step(path), path.stat().st_mtime))
        for path in last:
            if path != newest:
                _rename(path, path.with_name(f"{path.name}.older"))
                warnings.append(f"{path} is older than {newest.name}; it was renamed to {path.name}.older.")
    elif not last and params.get("save_last", True):
        states = {path: _step(path) for path in whole if "-EMA" not in path.name}
        best = max(states, key=lambda path: (states[path], path.stat().st_mtime), default=None)
        if best is not None and states[best] >= 0:
            _link(best, best.with_name(f"{best.stem}-last.ckpt"))
            averaged = ema_copy(best)  # NeMo's EMA resumes from both
            if averaged is not None:
                _link(averaged, best.with_name(f"{best.stem}-last-EMA.ckpt"))
            warnings.append(f"there is no whole last checkpoint; the training continues from {best}.")
        elif damaged:
            warnings.append(f"no whole checkpoint is left in {folder}; the training begins anew.")
    return warnings


def checkpoint_folder(manager: Mapping[str, Any] | None) -> Path | None:
    """Returns the folder in which `exp_manager` looks for checkpoints; None where it does not look.

    Args:
        manager: the section `exp_manager` of a training's config.
    """
    if not manager or not manager.get("resume_if_exists"):
        return None
    given = (manager.get("checkpoint_callback_params") or {}).get("dirpath")
    if given:
        return None if "://" in str(given) else Path(str(given))
    if manager.get("explicit_log_dir"):
        return Path(str(manager["explicit_log_dir"])) / "checkpoints"
    version = manager.get("version") or os.environ.get("NEMO_EXPM_VERSION") or ""
    root = Path(str(manager.get("exp_dir") or "nemo_experiments"))
    return root / str(manager.get("name") or "default") / str(version) / "checkpoints"


def _restore_backup(folder: Path, name: str) -> Iterator[str]:
    """Gives the `.nemo` its name back that NeMo had moved away to write a new one."""
    student, backup = folder / f"{name}.nemo", folder / f"{name}-v1.nemo"
    if backup.is_file() and not student.exists():
        _rename(backup, student)
        yield f"{student} was being replaced by a process that was killed; the old file has its name again."


def _sort_out(folder: Path, warnings: list[str]) -> tuple[list[Path], bool]:
    """Removes or renames the checkpoints that are not whole, and the marks of NeMo.

    Args:
        folder: of the checkpoints.
        warnings: gets a sentence for each change.

    Returns:
        The whole checkpoints, and whether others were there.
    """
    whole, damaged = [], False
    for path in sorted(folder.rglob("*.ckpt")):
        if not path.is_file() or path.is_symlink() or any(part in str(path) for part in _SHARDS):
            continue
        mark = NeMoModelCheckpoint.format_checkpoint_unfinished_marker_path(path)
        with suppress(FileNotFoundError):
            if _is_whole(path):
                whole.append(path)
            elif mark.exists() or path.stat().st_size == 0:
                damaged = True
                path.unlink()
                warnings.append(f"{path} was only half written; it was removed.")
            else:
                damaged = True
                _rename(path, path.with_name(f"{path.name}.damaged"))
                warnings.append(f"{path} is not a whole checkpoint; it was renamed to {path.name}.damaged.")
    for mark in sorted(folder.glob(f"*{_UNFINISHED}")):
        if mark.is_file() and not mark.with_name(mark.name.removesuffix(_UNFINISHED)).is_dir():
            mark.unlink(missing_ok=True)
    return whole, damaged


def _is_whole(path: Path) -> bool:
    """Tells whether a checkpoint was written to its end. What is no zip archive is left to other checks."""
    with path.open("rb") as file:
        if file.read(1) == b"\x80":  # a bare pickle, which nothing of a modern Lightning writes
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            if not stored or not torch.serialization.get_crc32_options():
                return True
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OverflowError):
        return False


def _step(path: Path) -> int:
    """Returns the step of a training state; -1 for a checkpoint that no training can continue from."""
    checkpoint = load_lightning_checkpoint(path)
    if not all(key in checkpoint for key in _TRAINING_STATE):
        return -1
    return int(checkpoint["global_step"])


def _rename(path: Path, new: Path) -> None:
    with suppress(FileNotFoundError):
        os.replace(path, new)


def _link(path: Path, new: Path) -> None:
    """Gives a file a second name; where the file system cannot, copies it."""
    try:
        os.link(path, new)
    except FileExistsError:
        return
    except OSError:
        with atomic_write(new) as temporary:
            shutil.copyfile(path, temporary)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written under another name in the same folder and then renamed.

    Lightning writes to the system's folder for temporary files and moves the file, which copies it where that
    is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: the content.
            path: the file; an address of an object store is left to Lightning.
            storage_options: see Lightning's method.

        Raises:
            OSError: the disk is full; the error names the file, and an older one stays as it was.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class RunFiles(Callback):
    """Writes the files of a run whole, and the `.nemo` that a finished run lacks.

    The process may have been killed after the last checkpoint and before the `.nemo`. When the same command
    is run again, Lightning has nothing to train and NeMo writes nothing.
    """

    def __init__(self) -> None:
        self._ended = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Makes Lightning write checkpoints atomically."""
        self._ended = False
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Notes that NeMo writes the `.nemo`."""
        self._ended = True

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the `.nemo` of a run that was at its end already, where it is missing or older."""
        callback, resumed = trainer.checkpoint_callback, trainer.ckpt_path
        if self._ended or not resumed or not isinstance(callback, NeMoModelCheckpoint):
            return
        if not callback.save_nemo_on_train_end or "://" in str(callback.dirpath):
            return
        path = Path(callback._format_nemo_checkpoint_name())
        if not is_global_rank_zero():
            return
        if _is_newer_nemo(path, Path(resumed)):
            logging.warning(
                f"This run had ended before, and nothing was trained. Its student is {path}. To train "
                "another one, give another exp_manager.name; to train on, raise trainer.max_epochs."
            )
            return
        best = Path(callback.best_model_path)
        if callback.save_best_model and best.is_file():
            pl_module.load_state_dict(load_lightning_checkpoint(best)["state_dict"])
        pl_module.save_to(str(path))
        logging.info(f"The training had ended before; {path} was missing or older, and was written now.")


def _is_newer_nemo(path: Path, checkpoint: Path) -> bool:
    """Tells whether a `.nemo` is whole and not older than a checkpoint."""
    try:
        with tarfile.open(path) as archive:
            archive.getmembers()
        return path.stat().st_mtime >= checkpoint.stat().st_mtime
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        return False
