# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`nemo-tutornet pseudo-labels`: a training manifest of a teacher's transcripts, in the student's labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict

from nemo_tutornet.data.pseudo_manifest import check_source, pseudo_manifest
from nemo_tutornet.data.teacher_text import TeacherText
from nemo_tutornet.distill.pseudo_labels import encoding_of
from nemo_tutornet.models import model_class_for
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.teachers.tokenizer import resolve_teacher_tokenizer


def write_pseudo_manifest(
    cfg: Any, source: Path, destination: Path, max_wer: float | None = None, keep_transcripts: bool = False
) -> tuple[Counter[str], str]:
    """Writes a manifest of hypotheses by the rule of the loss `pseudo`.

    Args:
        cfg: config of the training script; its student is built, without data and teacher.
        source: see `pseudo_manifest`.
        destination: see `pseudo_manifest`.
        max_wer: see `pseudo_manifest`.
        keep_transcripts: see `pseudo_manifest`.

    Returns:
        Number of rows by outcome, and the characters that the student has no label for, the most frequent
        first.

    Raises:
        TutorError: see `pseudo_manifest`; or the student cannot be built.
    """
    check_source(source)  # before the student is built, which takes some seconds
    with suppress_nemo_logs():
        text = TeacherText(*encoding_of(_student(cfg.model)))
    counts = pseudo_manifest(source, destination, max_wer, keep_transcripts, text)
    return counts, "".join(c for c, _ in text.missing.most_common())


def _student(model_cfg: Any) -> Any:
    """Creates the student of a config for its labels, tokenizer and parser."""
    cfg: Any = OmegaConf.create(OmegaConf.to_container(model_cfg, resolve=True))
    resolve_teacher_tokenizer(cfg)
    with open_dict(cfg):
        for name in ("tutor", "validation_ds", "test_ds"):
            cfg.pop(name, None)
        cfg.train_ds.defer_setup = True  # its parser is read, and nothing of its audio
    return model_class_for(cfg)(cfg=cfg)
