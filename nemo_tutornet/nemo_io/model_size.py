# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A limit on the parameters of a model that is built from an untrusted config.

`export.verify_worker` loads this file by its path, in a process that cannot import the package. So nothing of
the package is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A model is built in fp32, and its weights may be stored in 16 bits or less.
_RATIO, _BYTES = 4, 64 << 20
# A tensor takes more than these bytes of a file: its values, its name and its entry in the index.
_TENSOR_BYTES, _TENSORS = 100, 2000


class ModelTooLargeError(ValueError):
    """A config describes more parameters than the file with its weights can hold."""


class ParameterLimit:
    """Counts the parameters that modules register.

    Args:
        weights_bytes: size of the file with the weights.

    Attributes:
        exceeded: True as soon as a parameter was refused. The exception may be wrapped in another one.
    """

    def __init__(self, weights_bytes: int) -> None:
        self.exceeded = False
        self._most_bytes = _RATIO * weights_bytes + _BYTES
        self._most_tensors = weights_bytes // _TENSOR_BYTES + _TENSORS
        self._bytes = self._tensors = 0

    def add(self, parameter: Any) -> None:
        """Counts a parameter, whose values are not written yet.

        Raises:
            ModelTooLargeError: there are now too many.
        """
        self._tensors += 1
        self._bytes += parameter.numel() * parameter.element_size()
        if self._bytes > self._most_bytes or self._tensors > self._most_tensors:
            self.exceeded = True
            raise ModelTooLargeError("its config describes more parameters than its weights file holds")


@contextmanager
def limit_parameters(weights_bytes: int) -> Iterator[ParameterLimit]:
    """Refuses a parameter that cannot be in a file of this size, when a module registers it.

    Its memory is then reserved and not yet written, so a small file with a large number in its config takes
    neither the memory nor the time of a large model.

    Args:
        weights_bytes: size of the file with the weights.

    Yields:
        The limit, which says whether it was exceeded.

    Example:
        >>> import torch
        >>> with limit_parameters(1000) as limit:
        ...     model = torch.nn.Linear(10, 10)
        >>> limit.exceeded
        False
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    limit = ParameterLimit(weights_bytes)
    handle = register_module_parameter_registration_hook(lambda _, __, parameter: limit.add(parameter))
    try:
        yield limit
    finally:
        handle.remove()
