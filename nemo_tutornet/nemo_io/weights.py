# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads files of tensors without running code from them, and checks the tensors."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf.base import Container

from nemo_tutornet.errors import TutorError

_EXPANDED_BYTES = 64 << 20
_NODES = 5_000_000  # of a checkpoint's dicts and lists; the optimizer of a large model has thousands


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """Loads a file that `torch.save` wrote, on the CPU.

    Only tensors, plain containers and the classes that torch or its caller allows are loaded, also where the
    environment sets `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`.

    Args:
        path: the file.
        mmap: map the tensors instead of reading them.

    Returns:
        The content.

    Raises:
        ValueError: the content would take far more memory than the file has bytes.
        Exception: any other, from torch, for a damaged file or a class that is not allowed.
    """
    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                raise ValueError("its records are compressed, which those of a checkpoint never are")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    _check_size(content)
    return content


def weights_sha256(model: Any) -> str:
    """Computes the sha256 of a model's parameters and buffers, as hexadecimal digits.

    Files that hold the same weights have different checksums, because NeMo's archives hold times and names.
    This checksum is the same for all of them.

    Args:
        model: the model; its state may be on any device.

    Example:
        >>> import torch
        >>> first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> weights_sha256(first) == weights_sha256(second)
        False
        >>> _ = second.load_state_dict(first.state_dict())
        >>> weights_sha256(first) == weights_sha256(second)
        True
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_non_finite(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """Returns the name of the first tensor with a value that is NaN or infinite; None if there is none.

    Example:
        >>> import torch
        >>> first_non_finite([("a", torch.ones(2)), ("b", torch.tensor([0.0, float("nan")]))])
        'b'
    """
    return next(
        (name for name, value in tensors if value.is_floating_point() and not bool(value.isfinite().all())),
        None,
    )


def check_finite(model: Any, source: Path | str) -> None:
    """Rejects a model with weights that are not finite, which writes nothing and makes every loss NaN.

    Args:
        model: a NeMo model.
        source: its file, for the message.

    Raises:
        TutorError: a parameter, or a statistic of batch norm, is NaN or infinite.
    """
    statistics = (pair for pair in model.named_buffers() if pair[0].endswith(("running_mean", "running_var")))
    name = first_non_finite((*model.named_parameters(), *statistics))
    if name is not None:
        raise TutorError(
            f"{source} has weights that are NaN or infinite ({name}), so its training had failed; take an "
            "earlier checkpoint."
        )


def _check_size(content: Any) -> None:
    """Rejects a small content that a later copy would make large.

    A pickle can refer to one list many times, and a tensor can repeat one value without end.

    Raises:
        ValueError: it is too large.
    """
    import torch

    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if isinstance(node, torch.Tensor):
            _check_tensor(node)
            return 1
        if isinstance(node, Container):
            node = node.__dict__.get("_content")
        if isinstance(node, Mapping):
            children: Iterable[Any] = node.values()
        elif isinstance(node, (list, tuple, set, frozenset)):
            children = node
        else:
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # a node that is inside itself finds this value
            sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    if size(content) > _NODES:
        raise ValueError("its values refer to one another too often, or without end")


def _check_tensor(tensor: Any) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError("it has a tensor without values of its own")
    if tensor.is_quantized:
        raise ValueError("it has a quantized tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() + _EXPANDED_BYTES:
        raise ValueError("it has a tensor that is larger than its values")
