# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a teacher computes for an existing cache, and what of it the stages may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_tutornet.commands.cache_schema import request_of_cache
from nemo_tutornet.target_cache.schema import CacheSchema
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import refusal

FOLDER = Path("targets")
WHOLE = CacheSchema(labels=29, width=8, hypotheses=True)
SPARSE = CacheSchema(labels=1025, min_posterior=1e-3)


@pytest.mark.parametrize(
    ("schema", "request_", "lacking"),
    [
        (CacheSchema(labels=29), TargetRequest(hidden=True, posteriors=True), "the hint layer"),
        (
            CacheSchema(labels=29),
            TargetRequest(hidden=True, hypotheses=True),
            "the hint layer and hypotheses",
        ),
        (CacheSchema(width=8), TargetRequest(posteriors=True), "posteriors"),
        (CacheSchema(width=8), TargetRequest(posteriors=True, small_posteriors=True), "posteriors"),
        (
            SPARSE,
            TargetRequest(posteriors=True, small_posteriors=True),
            "small posteriors (for a temperature above 1)",
        ),
    ],
)
def test_a_cache_that_lacks_what_the_stages_read_is_refused(
    schema: CacheSchema, request_: TargetRequest, lacking: str
) -> None:
    assert f"targets is a cache without {lacking}, which model.tutor.stages" in refusal(
        request_of_cache, request_, schema, FOLDER
    )


def test_a_teacher_computes_everything_that_the_cache_stores() -> None:
    everything = TargetRequest(hidden=True, posteriors=True, hypotheses=True, small_posteriors=True)
    for request in (TargetRequest(hidden=True), TargetRequest(posteriors=True), everything):
        assert request_of_cache(request, WHOLE, FOLDER) == everything
    assert request_of_cache(TargetRequest(posteriors=True), SPARSE, FOLDER) == TargetRequest(posteriors=True)
