# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What the log says before a training with a teacher begins."""

from __future__ import annotations

from typing import Any

from nemo.utils import logging

from nemo_tutornet.config import TutorConfig
from nemo_tutornet.distill.consistency import check_views
from nemo_tutornet.distill.matching import ModelMatch


def log_setup(student: Any, config: TutorConfig, match: ModelMatch) -> None:
    """Logs what is matched with what.

    Args:
        student: a NeMo CTC model.
        config: the checked `tutor:` section.
        match: the student matched with its teacher.

    Raises:
        TutorError: the student's two views would be equal (`tutor.consistency`).
    """
    for warning in check_views(student, config.consistency):
        logging.warning(warning)
    logging.info(
        f"Teacher {config.teacher.cache or config.teacher.model_path}: hint layer {match.hint.path!r} "
        f"({match.hint.width} wide, {match.hint.frame_ms:g} ms), guided layer {match.guided.path!r} "
        f"({match.guided.width} wide, {match.guided.frame_ms:g} ms), frame weighting "
        f"{match.frame_weighting!r}."
    )
    for pair in match.further_pairs:
        logging.info(
            f"RKD also compares hint layer {pair.hint.path!r} ({pair.hint.width} wide, "
            f"{pair.hint.frame_ms:g} ms) with guided layer {pair.guided.path!r} ({pair.guided.width} "
            "wide, "
            f"{pair.guided.frame_ms:g} ms)."
        )
    for teacher in config.other_teachers:
        logging.info(
            f"Teacher {teacher.cache or teacher.model_path}: its posteriors count {teacher.weight:g} to "
            f"{config.teacher.weight:g}."
        )
    for layer in match.heads:
        logging.info(f"Inter-KD: a head at {layer.path!r} ({layer.width} wide, {layer.frame_ms:g} ms).")
    if config.rkd.warm_start_decoder and config.uses("rkd") and match.no_warm_start:
        logging.warning(f"The decoder is not warm-started after RKD: {match.no_warm_start}")
