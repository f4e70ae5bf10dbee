# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys and values of earlier versions, and their new names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nemo_tutornet.errors import TutorError, shown

RENAMED_KEYS = {
    "model.tutor.skd.shift": "match_window",
    "model.tutor.skd.at_layers": "intermediate_layers",
    "model.tutor.skd.at_layers_weight": "intermediate_weight",
}
RENAMED_DIVERGENCES = {"guided": "guided_ctc"}


def check_renamed_key(path: str) -> None:
    """Rejects a key of an earlier version.

    Args:
        path: full path of the key, from `model` on.

    Raises:
        TutorError: the key was renamed. The message contains the new name.
    """
    if path in RENAMED_KEYS:
        new = f"{path.rpartition('.')[0]}.{RENAMED_KEYS[path]}"
        raise TutorError(f"{path} is now called {new}; rename the key.")


def check_renamed_overrides(arguments: Sequence[str]) -> None:
    """Rejects overrides of keys of an earlier version.

    Hydra's own message would only be that the config has no such key.

    Args:
        arguments: arguments of the training script or of a command. Arguments that are not overrides are left
            to Hydra.

    Raises:
        TutorError: a key was renamed; the message contains the new name. Or an override is nested so deep
            that Hydra would fail with a traceback.
    """
    # Import here, because only command lines need the parser, and `nemo_tutornet.config` is imported
    # everywhere.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
        except RecursionError:
            raise TutorError(
                f"the override {shown(argument)} is nested too deep; use fewer brackets."
            ) from None
        except (HydraException, ValueError):  # a `ValueError`: a number with thousands of digits
            continue
        value = None if override.is_sweep_override() else override.value()
        for path in _paths(str(override.key_or_group), value):
            check_renamed_key(path)


def _paths(path: str, value: Any) -> Iterator[str]:
    """Yields the path of a key and of the keys in its value, as in `model.tutor.skd={divergence:kl}`."""
    yield path
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _paths(f"{path}.{key}", below)
