# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The manifests of a corpus, and those that are used beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from runs import read_rows

from nemo_tutornet.utils.files import atomic_write, sha256_of


class Corpus:
    """What students of one folder are trained and judged on.

    Args:
        name: of the corpus, the folder's.
        folder: where manifests are written that are made of others.
        train: manifests with transcripts.
        valid: manifests to judge on. The first selects checkpoints, recipes and settings.
        untranscribed: manifests that are used beside `train`; their transcripts, if any, are left out.
        further: manifests of a training before.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        train: Sequence[Path],
        valid: Sequence[Path],
        untranscribed: Sequence[Path] = (),
        further: Sequence[Path] = (),
    ) -> None:
        self.name, self.folder = name, folder
        self.train, self.valid = list(train), list(valid)
        self.untranscribed, self.further = list(untranscribed), list(further)
        self.data = [sha256_of(manifest) for manifest in (*self.train, self.valid[0])]
        # Manifests of the same name in one folder are the same.
        self.others = {
            field: {manifest.stem: sha256_of(manifest) for manifest in manifests}
            for field, manifests in (
                ("further_sha256", self.further),
                ("untranscribed_sha256", self.untranscribed),
                ("valid_sha256", self.valid[1:]),
            )
        }

    @cached_property
    def added(self) -> float:
        """Utterances without transcripts for each of `train`'s."""
        rows = [sum(len(read_rows(one)) for one in part) for part in (self.untranscribed, self.train)]
        return round(rows[0] / rows[1], 3) if self.untranscribed else 0.0

    def check(self, lines: Sequence[dict[str, Any]]) -> None:
        """Refuses a folder whose runs had other manifests.

        Raises:
            RuntimeError: it has.
        """
        if any(line.get("data_sha256", self.data) != self.data for line in lines):
            raise RuntimeError(f"{self.folder} has runs of other manifests; give another OUTPUT.")
        for field, digests in self.others.items():
            for name, digest in digests.items():
                if any((line.get(field) or {}).get(name, digest) != digest for line in lines):
                    raise RuntimeError(
                        f"{self.folder} has runs with another manifest {name}; give another OUTPUT."
                    )

    def train_sets(
        self, share: float = 1.0, labelled: bool = True, untranscribed: float = 0.0, beside: bool = False
    ) -> list[Path]:
        """The training manifests: all of them, a share of their utterances, or without transcripts.

        Args:
            share: of the utterances, drawn once: the smaller is part of the larger.
            labelled: with transcripts.
            untranscribed: share of the utterances that is there, too, without transcripts. It is taken from
                the other end, so that a teacher of a share was not trained on it.
            beside: with the manifests without transcripts.
        """
        parts = self._share(share, labelled, untranscribed)
        return parts + [self._without_text(manifest) for manifest in self.untranscribed if beside]

    def _share(self, share: float, labelled: bool, untranscribed: float) -> list[Path]:
        if share == 1.0 and labelled:
            return list(self.train)
        rows = [row for manifest in self.train for row in _absolute(manifest)]
        random.Random(0).shuffle(rows)
        begin, end = round(share * len(rows)), len(rows) - round(untranscribed * len(rows))
        for place, row in enumerate(rows):
            if not labelled or place >= begin:
                row.pop("text", None)
        about = "" if labelled else "_without_text"
        about += f"_{100 * untranscribed:g}_untranscribed" if untranscribed else ""
        return [
            self._write(f"{self.name}_train_{100 * share:g}{about}", rows[:begin] + rows[max(begin, end) :])
        ]

    def _without_text(self, manifest: Path) -> Path:
        rows = _absolute(manifest)
        for row in rows:
            row.pop("text", None)
        return self._write(f"{manifest.stem}_without_text", rows)

    def _write(self, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = self.folder / f"{name}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:  # another run may be reading it
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def _absolute(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, with absolute audio paths: they are written to another folder."""
    rows = read_rows(manifest)
    for row in rows:
        row["audio_filepath"] = str((manifest.parent / row["audio_filepath"]).resolve())
    return rows
