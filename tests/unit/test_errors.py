# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What other libraries raise becomes one sentence, and the traceback stays within reach."""

from __future__ import annotations

import errno

import pytest

from nemo_tutornet.errors import TutorError, exit_on_user_error, first_line, refusing


def raised(error: Exception) -> BaseException:
    with pytest.raises(Exception) as caught, refusing("the model"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error, reason",
    [
        (ValueError("no such class\nand a second line"), "(ValueError: no such class)"),
        (RuntimeError("Error in call to target 'x.Y':\nTypeError('bad')"), "target 'x.Y': TypeError('bad'))"),
        (AssertionError(), "(AssertionError: AssertionError)"),
        (KeyError("x" * 1000), "..."),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.tar"), "a.tar"),
    ],
)
def test_one_sentence(error, reason):
    refused = raised(error)
    assert isinstance(refused, TutorError) and refused.__cause__ is error
    assert str(refused).startswith("the model cannot start") and reason in str(refused)
    assert len(str(refused)) < 400


def test_the_first_line_of_any_exception():
    """Some libraries raise without a message, or begin it with an empty line."""
    errors = ValueError("first\nsecond"), RuntimeError("\n\nfirst\n"), OSError(), OSError(""), OSError("\n")
    assert [first_line(error) for error in errors] == ["first", "first", "OSError", "OSError", "OSError"]


@pytest.mark.parametrize(
    "error",
    [
        TutorError("a sentence of its own."),
        OSError(errno.ENOSPC, "No space left on device", "a.ckpt"),
        PermissionError(errno.EACCES, "Permission denied", "runs"),
        KeyboardInterrupt(),
        SystemExit(130),
    ],
)
def test_what_has_its_own_sentence_passes(error):
    with pytest.raises(type(error)) as caught, refusing("the model"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("asked", [True, False])
def test_the_traceback_is_shown_on_request(asked, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1" if asked else "0")

    @exit_on_user_error
    def command() -> None:
        with refusing("the model"):
            raise ValueError("the reason")

    with pytest.raises(SystemExit, match="2"):
        command()
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1].startswith("error: the model cannot start")
    assert ("Traceback" in shown) == asked
