# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""How many inputs a property test tries: a few in `make test`, thousands in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
LONG_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))

settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", max_examples=LONG_EXAMPLES, deadline=None, derandomize=False, print_blob=True
)


def examples(number: int) -> settings:
    """Settings of a property test.

    Args:
        number: of inputs in `make test`, always the same ones. `make fuzz` tries new ones each time.
    """
    return settings(
        max_examples=max(number, LONG_EXAMPLES) if LONG else number,
        deadline=None,
        derandomize=not LONG,
        print_blob=LONG,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
