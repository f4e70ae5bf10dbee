# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The exception for a user's mistake, how a command reports it, and how a message repeats its input."""

from __future__ import annotations

import functools
import re
import reprlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


LONGEST_INPUT = 200  # characters of a user's input that a message repeats

_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_LONG_WORD = re.compile(rf"\S{{{LONGEST_INPUT + 1},}}")


def shorten(text: str, most: int = 100) -> str:
    r"""Prepares a piece of a user's input for a message: one line, no control characters, no endless text.

    Args:
        text: the input.
        most: characters to keep at most; a longer text loses its middle.

    Returns:
        The text. Line breaks and control characters (of a terminal, for example) are escaped.

    Example:
        >>> shorten("a\nb"), shorten("0123456789" * 100, 25)
        ('a\\nb', '01234567890123 ... 456789')
    """
    # A control character becomes up to six, so cut before and after.
    return _cut(_cut(text, most).translate(_CONTROL), most)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = (most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[-end:]}"


def shown(value: Any, most: int = 100) -> str:
    """Writes a value of a user's input for a message, as `repr` does, but short.

    Args:
        value: the input. It may be nested deep, or be a number with thousands of digits.
        most: characters to keep at most.

    Returns:
        The text.

    Example:
        >>> shown("warm"), shown([1, None]), shown({"a": {"b": {"c": {"d": 1}}}})
        ("'warm'", '[1, None]', "{'a': {'b': {'c': {...}}}}")
    """
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxlist, writer.maxtuple, writer.maxdict = 3, 20, 20, 20
    writer.maxstring = writer.maxother = writer.maxlong = most
    try:
        return shorten(writer.repr(value), most)
    except ValueError:  # Python refuses to write a whole number of more than 4,300 digits
        return "a number of thousands of digits"


class TutorError(ValueError):
    """A user's mistake. The message is one sentence that says what is wrong, where, and what to do.

    It is one line without control characters. A word of more than `LONGEST_INPUT` characters, e.g. the name
    of a file, loses its middle.
    """

    def __init__(self, message: str) -> None:
        # PyTorch raises the error of a data loader's worker again, with its traceback in the message.
        if message.startswith("Caught TutorError in DataLoader worker"):
            message = message.rsplit("TutorError: ", 1)[-1].strip()
        message = message.translate(_CONTROL)
        super().__init__(_LONG_WORD.sub(lambda word: _cut(word[0], LONGEST_INPUT), message))


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
