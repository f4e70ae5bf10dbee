# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The exception for a user's mistake, how a command reports it, and how a message repeats its input."""

from __future__ import annotations

import errno
import functools
import os
import re
import reprlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

# The disk is full, the user's part of it is, or a file is longer than the process may write.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries without Python's errors say so: safetensors and others in Rust, and PyTorch, which gives no
# reason.
_RUST = re.compile(r"\(os error (\d+)\)")
_PYTORCH = re.compile(r"PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos", re.DOTALL)


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
        # A name or a value from a file may have line ends, or codes that a terminal obeys.
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(_LONG_WORD.sub(lambda word: _cut(word[0], LONGEST_INPUT), message))


def first_line(error: BaseException) -> str:
    """Returns the first line of any exception's message, or the name of its class where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason_of(error: Exception) -> str:
    """Returns the message of any exception as a part of a sentence, at most 500 characters long."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return "; ".join(line for line in lines if line)[:500].rstrip(".") or type(error).__name__


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns an error of NeMo, Lightning or PyTorch into a `TutorError` of one sentence.

    For what a config alone decides: building the trainer, the model, and its optimizer. A full disk and a
    permission keep their own error.

    Args:
        what: the part of the config, for the sentence.

    Raises:
        TutorError: the block raised an exception. Its cause is that exception.

    Example:
        >>> with refusing("model.optim"):
        ...     raise KeyError("lr")
        Traceback (most recent call last):
            ...
        nemo_tutornet.errors.TutorError: model.optim cannot start (KeyError: 'lr'); fix the config.
    """
    try:
        yield
    except Exception as error:  # of any library, about any key
        if _sentence(error) is not None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # Hydra's error names the class only, and the reason is in the next line.
        first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        reason = shorten(first, LONGEST_INPUT).rstrip(".")
        raise TutorError(
            f"{what} cannot start ({type(error).__name__}: {reason}); fix the config."
        ) from error


def find_full_disk(error: BaseException) -> OSError | None:
    """Returns the error of a full disk that another error was made of, or that a library put into words.

    Args:
        error: any.

    Returns:
        An error with a number of `FULL_DISK`; None where the disk is not the cause.

    Example:
        >>> find_full_disk(RuntimeError("I/O error: No space left on device (os error 28)"))
        OSError(28, 'No space left on device')
        >>> find_full_disk(RuntimeError("another"))
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError):
            if cause.errno in FULL_DISK:
                return cause
        elif not isinstance(cause, TutorError):
            words = str(cause)
            named = [int(number) for number in _RUST.findall(words) if int(number) in FULL_DISK]
            if named or _PYTORCH.search(words):
                number = named[0] if named else errno.ENOSPC
                return OSError(number, os.strerror(number))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def exit_on_user_error(function: F) -> F:
    """Makes a command report a user's mistake as one line on standard error and exit with 2.

    A `TutorError`, a `PermissionError` that names a file, a file system that is read-only, and a full disk
    are such mistakes. Every other exception passes. With HYDRA_FULL_ERROR=1 the traceback is printed, too.

    Args:
        function: the command.

    Returns:
        The wrapped command.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            if os.environ.get("HYDRA_FULL_ERROR") == "1":  # Hydra's own switch, known to NeMo's users
                traceback.print_exc()
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(2)

    return cast(F, wrapper)


def _sentence(error: Exception) -> str | None:
    """Returns what a command prints of an error; None for one that is not the user's."""
    if isinstance(error, TutorError):
        return str(error)
    full = find_full_disk(error)
    if full is not None:
        where = f": {full.filename2 or full.filename}"
        if full.filename is None:
            where = f" (where the output goes, or in {tempfile.gettempdir()})"
        return (
            f"{(full.strerror or 'no space left on device').lower()}{where}; free some space or give another "
            "path, and run the same command again."
        )
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"permission denied: {error.filename}; change its mode or give another path."
    if isinstance(error, OSError) and error.errno == errno.EROFS and error.filename is not None:
        return f"read-only file system: {error.filename}; give another path."
    return None
