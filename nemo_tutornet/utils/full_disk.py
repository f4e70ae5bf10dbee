# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Names the place where a disk is full, which the system's error often does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_tutornet.errors import FULL_DISK, TutorError, find_full_disk


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Adds a path to the error of a full disk that is raised in the block.

    The error of a library that reports a full disk in words of its own becomes an `OSError`.

    Args:
        path: what is being written, or its folder.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except TutorError:
        raise
    except OSError as error:
        if error.errno in FULL_DISK and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        full = find_full_disk(error)
        if full is None:
            raise
        number, words = full.errno or FULL_DISK[0], full.strerror or ""
        raise OSError(number, words, full.filename or str(path)) from error
