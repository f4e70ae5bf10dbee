# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The exception for a user's mistake, and how a command reports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class TutorError(ValueError):
    """A user's mistake. The message is one sentence that says what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        # PyTorch raises the error of a data loader's worker again, with its traceback in the message.
        if message.startswith("Caught TutorError in DataLoader worker"):
            message = message.rsplit("TutorError: ", 1)[-1].strip()
        # A name or a value from a file may have line ends, or codes that a terminal obeys.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def reason_of(error: Exception) -> str:
    """Returns the message of any exception as a part of a sentence, at most 500 characters long."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return "; ".join(line for line in lines if line)[:500].rstrip(".") or type(error).__name__


def exit_on_user_error(function: F) -> F:
    """Makes a command report a user's mistake as one line on standard error and exit with 2.

    A `TutorError` and a `PermissionError` that names a file are such mistakes. Every other exception passes.

    Args:
        function: the command.

    Returns:
        The wrapped command.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TutorError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except PermissionError as error:
            if error.filename is None:
                raise
            print(
                f"error: permission denied: {error.filename}; change its mode or give another path.",
                file=sys.stderr,
            )
            sys.exit(2)

    return cast(F, wrapper)
