# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is the same for damaged audio in files, in tars and with Lhotse: the limit, and the sentences."""

from __future__ import annotations

import re
from typing import Any

from nemo_tutornet.errors import TutorError

# A training goes on as long as at most this share of its utterances is damaged.
MOST_DAMAGED = 0.01


class Damaged(Exception):
    """Audio that cannot be decoded."""


# What libraries put before the reason, and the name of audio that is in memory.
_BEFORE = re.compile(r".*(<class '[^']*'>|Exception #\d+ \([^)]*\)): ")
_IN_MEMORY = re.compile(r"<_io\.BytesIO object at \w+>")


def reason_in_short(error: Exception) -> str:
    """Returns the reason of an error for a sentence, without what Lhotse and NeMo put around it.

    Example:
        >>> reason_in_short(RuntimeError("Details: <class 'LibsndfileError'>: decoder lost sync."))
        'decoder lost sync'
        >>> reason_in_short(EOFError())
        'EOFError'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Lhotse's first line names the source, and lists the reasons below.
    line = next((line for line in lines if not line.endswith("Details:")), type(error).__name__)
    return _IN_MEMORY.sub("the audio", _BEFORE.sub("", line)).rstrip(".")[:200]


class Reader:
    """NeMo's reader of audio, whose errors are of one class.

    Args:
        reader: NeMo's `WaveformFeaturizer`.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def process(self, *args: Any, **kwargs: Any) -> Any:
        """Reads audio as NeMo does; takes and returns the same.

        Raises:
            Damaged: the audio cannot be decoded.
        """
        try:
            return self.reader.process(*args, **kwargs)
        except Exception as error:  # NeMo tries several libraries, and their errors have no common base class
            raise Damaged(reason_in_short(error)) from error


def allow_damaged(
    section: str,
    name: str,
    error: Exception | str,
    count: int,
    total: int,
    most: float,
    fix: str,
    then: str,
    all_counted: bool = True,
) -> None:
    """Warns of damaged audio, or stops where there is too much of it.

    Args:
        section: section of the config that the utterance comes from.
        name: the file; or the member and its tar.
        error: why it cannot be decoded.
        count: number of damaged utterances so far, with this one.
        total: number of utterances of the section.
        most: share of them that may be damaged; 0 for none.
        fix: what the user can do.
        then: what happens instead of the utterance.
        all_counted: whether `total` is the whole section. Otherwise it may have more utterances, which do not
            raise the limit.

    Raises:
        TutorError: more utterances are damaged than may be.
    """
    from nemo.utils import logging

    if count > most * total:
        counted = f"{total}" if all_counted else f"the first {total}"
        limit = f", and at most {100 * most:g} % of {counted} utterances may be" if most else ""
        raise TutorError(
            f"{section}: {name} cannot be decoded ({error}){limit}; {fix} "
            "(`nemo-tutornet check --decode` finds all of them)."
        ) from None
    logging.warning(
        f"{section}: {name} cannot be decoded ({error}) and is left out; {then} "
        f"(damaged so far: {count} of {'' if all_counted else 'at least '}{total})."
    )
