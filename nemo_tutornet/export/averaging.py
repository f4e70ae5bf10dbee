# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The mean of several checkpoints' weights (Polyak and Juditsky, 1992; Izmailov et al., arXiv 1803.05407)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.weights import first_non_finite
from nemo_tutornet.utils.progress import PartReport, no_report

# Sums are in float64. So many of their bytes are held at once, and each checkpoint is mapped once for them.
_SUM_BYTES = 256 << 20
# What makes two students the same function of their weights.
_SECTIONS = ("preprocessor", "encoder", "decoder", "labels")


def average_checkpoints(paths: Sequence[Path], report: PartReport = no_report) -> dict[str, Any]:
    """Averages the weights of checkpoints of one run.

    The mean is computed in float64 and has the type of the weights. Buffers of whole numbers are those of the
    last checkpoint. Beyond the mean itself, at most 256 MB of sums, one tensor, and the pages of one
    checkpoint that belong to these sums are in memory at a time, however many checkpoints there are.

    Training-only modules and teachers are in no checkpoint's `state_dict`, so they have no part in the mean.

    Args:
        paths: the checkpoints, the newest last.
        report: shows the file that is being read.

    Returns:
        The newest checkpoint, without its training state, and with the mean as `state_dict`.

    Raises:
        TutorError: a file cannot be read, has weights that are not finite, or is of another run, or of
            another student.
    """
    newest = load_lightning_checkpoint(paths[-1], mmap=True)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in _tensors(newest, paths[-1])}
    run, hyper_parameters = _run_of(newest), newest["hyper_parameters"]
    del newest  # its pages, too
    mean: dict[str, Tensor] = {}
    chunks = list(_chunks({name: shape.numel() for name, (shape, dtype) in shapes.items()}, _SUM_BYTES // 8))
    for number, names in enumerate(chunks):
        sums: dict[str, Tensor] = {}
        for path in paths:
            if number == 0:
                report(f"reading {path.name}")
            checkpoint = load_lightning_checkpoint(path, mmap=True)
            tensors = dict(_tensors(checkpoint, path))
            if number == 0:
                _check_same_student(path, paths[-1], tensors, shapes)
                _check_same_run(path, paths[-1], _run_of(checkpoint), run)
            for name in names:
                _add(sums, name, tensors[name], path)
            del tensors, checkpoint
        for name in names:
            mean[name] = sums[name].div_(len(paths)) if shapes[name][1].is_floating_point else sums[name]
            mean[name] = mean[name].to(shapes[name][1])
    return {
        "state_dict": {name: mean[name] for name in shapes},
        "hyper_parameters": hyper_parameters,
        "tutor": {"decoder_is_random": run.decoder_is_random},
    }


def _add(sums: dict[str, Tensor], name: str, tensor: Tensor, path: Path) -> None:
    if not tensor.is_floating_point():
        sums[name] = tensor.clone()  # the last one remains
        return
    if first_non_finite([(name, tensor)]) is not None:
        raise TutorError(
            f"{path} has weights that are NaN or infinite ({name}), so it has no mean with others; remove "
            "the file, or average fewer."
        )
    if name in sums:
        sums[name].add_(tensor)
    else:
        sums[name] = tensor.to(torch.float64, copy=True)


def _chunks(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yields names whose sizes together are at most `most`, or one name.

    Example:
        >>> list(_chunks({"a": 3, "b": 4, "c": 9, "d": 1}, 7))
        [['a', 'b'], ['c'], ['d']]
    """
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > most:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


def _tensors(checkpoint: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Tensor]]:
    state = checkpoint["state_dict"]
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        if not isinstance(tensor, Tensor):
            raise TutorError(f"{path} has {name} in its state_dict, which is no tensor; take another.")
        yield str(name), tensor


def _check_same_student(
    path: Path, newest: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[torch.Size, Any]]
) -> None:
    remedy = "average checkpoints of one run only"
    differing = sorted(tensors.keys() ^ shapes.keys())
    if differing:
        has = f"has {differing[0]}" if differing[0] in tensors else f"lacks {differing[0]}"
        raise TutorError(f"{path} {has}, unlike {newest.name}, so they are of different students; {remedy}.")
    for name, (shape, dtype) in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise TutorError(
                f"{path} has {name} of shape {list(tensors[name].shape)} ({tensors[name].dtype}) and "
                f"{newest.name} of {list(shape)} ({dtype}), so they are of different students; {remedy}."
            )


@dataclass(frozen=True)
class _Run:
    """What a checkpoint says of its run.

    Attributes:
        has_teacher: it was trained with a teacher.
        decoder_is_random: no stage had trained its decoder.
        sections: of the config that define the student, as plain containers.
    """

    has_teacher: bool
    decoder_is_random: bool
    sections: Mapping[str, Any]


def _run_of(checkpoint: Mapping[str, Any]) -> _Run:
    tutor = checkpoint.get("tutor")
    hyper_parameters = checkpoint["hyper_parameters"]
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, (Mapping, DictConfig)) else None
    try:
        config = OmegaConf.create(config) if isinstance(config, (dict, DictConfig)) else None
        plain = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else {}
    except Exception:  # a pickled config may have any content; `export` reports it
        plain = {}
    sections = {name: _without_dropout(plain.get(name)) for name in _SECTIONS if isinstance(plain, dict)}
    random = isinstance(tutor, Mapping) and tutor.get("decoder_is_random") is True
    return _Run(tutor is not None, random, sections)


def _without_dropout(node: Any) -> Any:
    """Returns a section without its rates of dropout, which a resumed run may change."""
    if isinstance(node, dict):
        return {key: _without_dropout(value) for key, value in node.items() if "drop" not in str(key)}
    return [_without_dropout(value) for value in node] if isinstance(node, list) else node


def _check_same_run(path: Path, newest: Path, run: _Run, newest_run: _Run) -> None:
    """Refuses a checkpoint that another run has written."""
    difference = None
    names = {one.name.partition("--")[0] for one in (path, newest) if "--" in one.name}
    if len(names) > 1:
        difference = "their names begin differently"
    elif run.has_teacher != newest_run.has_teacher:
        difference = "one had a teacher, the other none"
    else:
        sections = (name for name in _SECTIONS if run.sections.get(name) != newest_run.sections.get(name))
        differing = next(sections, None)
        difference = None if differing is None else f"model.{differing} differs"
    if difference is not None:
        raise TutorError(
            f"{path} and {newest.name} are of different runs ({difference}); average checkpoints of one run "
            "only."
        )
    if run.decoder_is_random and not newest_run.decoder_is_random:
        raise TutorError(
            f"no stage had trained the decoder of {path} yet, so it would add noise to the mean; remove the "
            "file, or average fewer."
        )
