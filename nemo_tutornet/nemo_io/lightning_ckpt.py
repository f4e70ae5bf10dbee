# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads Lightning checkpoints without unpickling unknown classes."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.nemo_io.weights import load_tensors

# Plain containers and scalars in NeMo's hyperparameters.
_HARMLESS = {
    "builtins.int",
    "builtins.float",
    "builtins.bool",
    "builtins.str",
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.set",
    "collections.defaultdict",
    "collections.OrderedDict",
    "typing.Any",
    "typing.List",
    "typing.Dict",
    "typing.Optional",
    "typing.Union",
    "pathlib.PosixPath",
    "pathlib.Path",
}


def load_lightning_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a Lightning `.ckpt` without running code from it.

    NeMo's hyperparameters are OmegaConf objects and config dataclasses. Besides tensors, only these and plain
    containers are loaded.

    Args:
        path: the checkpoint.
        mmap: map the tensors instead of reading them.

    Returns:
        The checkpoint, with `state_dict` and `hyper_parameters`.

    Raises:
        TutorError: the file does not exist, cannot be read, names any other class, or is not a checkpoint of
            a NeMo model.
    """
    checkpoint = _load(path, mmap)
    if (
        not isinstance(checkpoint, dict)
        or "state_dict" not in checkpoint
        or "hyper_parameters" not in checkpoint
    ):
        raise TutorError(
            f"{path} is not a checkpoint of a NeMo model: it has no state_dict with hyper_parameters."
        )
    return checkpoint


def check_lightning_checkpoint(path: Path) -> None:
    """Rejects a Lightning `.ckpt` that would run code when it is loaded.

    Lightning unpickles the whole checkpoint that it resumes from. So call this function before `trainer.fit`.

    Args:
        path: value of `trainer.ckpt_path` or `init_from_ptl_ckpt`.

    Raises:
        TutorError: the file does not exist, cannot be read, or names a class that is not part of a NeMo
            model's checkpoint.
    """
    _load(path, mmap=True)


def initial_checkpoints(cfg: DictConfig) -> list[Path]:
    """Lists the Lightning checkpoints that NeMo initialises a model from.

    Args:
        cfg: the whole config of a training. `init_from_ptl_ckpt` is a path, or a section of sections with a
            `path` each.

    Returns:
        Paths of the checkpoints.
    """
    named = cfg.get("init_from_ptl_ckpt")
    if isinstance(named, DictConfig):
        return [Path(str(section.path)) for section in named.values() if isinstance(section, DictConfig)]
    return [Path(str(named))] if named else []


def resumed_checkpoints(trainer: Any) -> list[Path]:
    """Lists the checkpoints that a training will resume from.

    Args:
        trainer: Lightning's trainer, after NeMo's `exp_manager`.

    Returns:
        The checkpoint that `exp_manager` chose, or that `resume_from_checkpoint` names; and the one that
        Lightning itself finds in its folder under Slurm.
    """
    found = [trainer.ckpt_path, getattr(trainer._checkpoint_connector, "_hpc_resume_path", None)]
    return [Path(str(path)) for path in found if path]


def _load(path: Path, mmap: bool = False) -> Any:
    """Loads a checkpoint on the CPU, and allows harmless classes only."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not path.is_file():
        raise TutorError(f"there is no file {path}; give a .ckpt or a .nemo file.")
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
        with safe_globals([_harmless_class(name, path) for name in names]):
            return load_tensors(path, mmap)
    except TutorError:
        raise
    except Exception as error:  # a damaged zip or pickle can make torch raise any exception
        raise TutorError(
            f"{path} is not a readable checkpoint ({first_line(error)}); it may be truncated, take another."
        ) from None


def _harmless_class(name: str, path: Path) -> Any:
    module, _, attribute = name.rpartition(".")
    if name in _HARMLESS or module.split(".")[0] in ("omegaconf", "nemo"):
        found = getattr(importlib.import_module(module), attribute, None)
        config_class = isinstance(found, type) and (
            dataclasses.is_dataclass(found) or module.startswith("omegaconf.")
        )
        if found is not None and (name in _HARMLESS or config_class):
            return found
    raise TutorError(
        f"{path} wants to load {name}, which is no part of a NeMo model's checkpoint; it was not opened."
    )
