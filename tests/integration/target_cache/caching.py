# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Students that learn from a cache, and what their targets are compared with."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.teachers.live import LiveTeacher
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import ACCELERATOR, student_config

STAGES = [
    {"name": "rkd", "epochs": 2, "weights": {"rkd": 1.0}},
    {"name": "skd", "weights": {"ctc": 1.0, "skd": 0.25, "pseudo": 0.1}},
]


def whole(model: dict[str, Any]) -> Any:
    """A training script's config."""
    return OmegaConf.create(
        {"model": model, "trainer": {"max_epochs": 2, "accelerator": ACCELERATOR, "devices": 1}}
    )


def cached(corpus: Path, folder: Path, stages: list | None = None, **tutor: Any) -> dict[str, Any]:
    """A student that learns from a cache, without a word about the teacher's file."""
    config = student_config(corpus, Path("nowhere.nemo"), stages or STAGES, **tutor)
    config["tutor"]["teacher"] = {"model_path": "???", "cache": str(folder)}  # as in earlier YAMLs
    return config


def targets_of_batches(model: Any) -> list[tuple[Any, Any]]:
    """What the cache gives for each batch of the training data, and the batch."""
    model.setup("fit")
    stage = model.distiller.schedule.stages[-1]
    return [
        (model.distiller.teacher_targets(stage, TrainingBatch.from_nemo(batch)), batch)
        for batch in model._train_dl
    ]


def check_against(
    teacher: LiveTeacher, found: list[tuple[Any, Any]], utterances: int, tolerance: float = 2e-3
) -> None:
    """Every row has what the teacher says of its audio alone."""
    seen = 0
    for targets, batch in found:
        for row, (frames, samples) in enumerate(
            zip(targets.lengths.tolist(), batch[1].tolist(), strict=True)
        ):
            alone = teacher.targets(
                TrainingBatch(batch[0][row : row + 1, :samples], batch[1][row : row + 1]),
                TargetRequest(posteriors=True),
            )
            assert frames == int(alone.lengths[0])
            difference = targets.log_probs[row, :frames].exp() - alone.log_probs[0, :frames].exp()
            assert float(difference.abs().max()) < tolerance
            seen += 1
    assert seen == utterances


def tar(corpus: Path, folder: Path, names: list[str], number: int) -> dict[str, str]:
    """NeMo's tarred layout: a tar of audio and the manifest of what is in it."""
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    with tarfile.open(folder / f"audio_{number}.tar", "w") as archive:
        for row in rows:
            if row["audio_filepath"] in names:
                archive.add(corpus / row["audio_filepath"], arcname=row["audio_filepath"])
    kept = [{**row, "shard_id": 0} for row in rows if row["audio_filepath"] in names]
    (folder / f"tarred_{number}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8"
    )
    return {
        "manifest_filepath": str(folder / f"tarred_{number}.jsonl"),
        "tarred_audio_filepaths": str(folder / f"audio_{number}.tar"),
    }
