# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The utterances of a data set that Lhotse reads, each once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.errors import TutorError, first_line

# Rows to read of such a set at most, which may be as large as a disk: half a minute.
MOST_ROWS = 100_000


@contextmanager
def open_cuts(section: Mapping[str, Any], name: str, metadata_only: bool) -> Iterator[Any]:
    """Opens the cuts of what a section of the config names: NeMo's manifests (also those of tars), Lhotse's
    manifests, Shar or `input_cfg`.

    Args:
        section: the section, with `use_lhotse`.
        name: the section's name, for messages.
        metadata_only: whether the cuts need no audio.

    Yields:
        Lhotse's `CutSet`, without repetition, and in the same order each time.

    Raises:
        TutorError: a manifest cannot be read, also while the cuts are.
    """
    from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config

    found: Any = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else section
    once = {"metadata_only": metadata_only, "force_finite": True, "shuffle": False, "shard_seed": 0}
    state = random.getstate()  # Lhotse draws from it, and a training must not notice
    try:
        yield read_cutset_from_config(OmegaConf.create({**found, **once}))[0]
    except Exception as error:  # each of the readers has errors of its own
        raise TutorError(
            f"{name}: its manifests cannot be read ({first_line(error)[:200]}); fix them or the config."
        ) from None
    finally:
        random.setstate(state)


def lhotse_rows(section: Mapping[str, Any], name: str, most: int) -> Iterator[tuple[str, str, float]]:
    """Reads transcripts of a set that Lhotse reads, without its audio.

    Args:
        section: the section, with `use_lhotse`.
        name: the section's name, for messages.
        most: number of rows to read at most.

    Yields:
        Name, transcript and seconds of each utterance. A row without transcript has an empty one.

    Raises:
        TutorError: a manifest cannot be read.
    """
    with open_cuts(section, name, metadata_only=True) as cuts:
        for cut in islice(cuts, most):
            said = [supervision.text or "" for supervision in cut.supervisions]
            yield str(cut.id), " ".join(said), float(cut.duration)
