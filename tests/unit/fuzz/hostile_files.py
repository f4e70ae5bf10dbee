# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the fuzzers share: generators of values and of damage, and the promise that every file is held to."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nemo_tutornet.errors import TutorError

SECONDS = 30  # of one input; all but a hang need a hundredth of it
MEMORY = 2 << 30  # that one input may take

# --- Generators

WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            ".",
            "..",
            "/",
            "~",
            "a",
            "A",
            "é",
            "e\u0301",
            "\u2581",
            "\0",
            "\n",
            "\ud800",
            "${a}",
            "${..a}",
        ),
        *("${oc.env:HOME}", "???", "nan", "null", "../../x", "/etc/passwd", "model_config.yaml", "nemo:x"),
        *("nemo:../x", "file:///etc/passwd", "http://host/x", "s3://bucket/x", "pipe:touch x", "9" * 5000),
    ]
)
TEXTS = WORDS | st.text(max_size=20)
NUMBERS = st.one_of(
    st.integers(-2, 300),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 10**30]),
    st.floats(),
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to four parts of it changed, removed, doubled or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.sampled_from([1, 2, 4, 16, 512])))
        kind = draw(st.sampled_from(["flip", "replace", "remove", "insert", "double", "cut"]))
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "replace":
            content = content[:at] + draw(st.binary(max_size=16)) + content[to:]
        elif kind == "remove":
            content = content[:at] + content[to:]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(max_size=16)) + content[at:]
        elif kind == "double":
            content = content[:to] + content[at:]
        else:
            content = content[:at]
    return content


@st.composite
def with_one_value_changed(draw: st.DrawFn, node: Any) -> Any:
    """The JSON value with another value at one place, a place removed, or one added."""
    if isinstance(node, dict) and node and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(node)))
        kind = draw(st.sampled_from(["deeper", "deeper", "deeper", "remove", "add"]))
        rest = {name: value for name, value in node.items() if name != key}
        if kind == "remove":
            return rest
        if kind == "add":
            return {**node, draw(TEXTS): draw(VALUES)}
        return {**node, key: draw(with_one_value_changed(node[key]))}
    if isinstance(node, list) and node and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(node) - 1))
        return [*node[:at], draw(with_one_value_changed(node[at])), *node[at + 1 :]]
    return draw(VALUES)


# --- The promise


@contextmanager
def within_limits() -> Iterator[None]:
    """No more than `SECONDS` and `MEMORY`."""

    def hang(*_: Any) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def loads(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a reader of an untrusted file.

    Returns:
        What was read, or None where the file was refused in one sentence. Any other exception passes.
    """
    with within_limits():
        try:
            return function(*arguments)
        except TutorError as error:
            message = str(error)
            assert message.endswith(".") and "\n" not in message and len(message) < 1500, message
            return None


def files_in(folder: Path) -> dict[str, int]:
    """Names and sizes of everything in a folder, links not followed."""
    return {
        os.path.join(place, name).removeprefix(f"{folder}/"): os.lstat(os.path.join(place, name)).st_size
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }
