# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the transcripts of a student's data sets before a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_tutornet.data.dataloader import manifest_entries
from nemo_tutornet.data.lhotse_rows import MOST_ROWS, lhotse_rows
from nemo_tutornet.data.manifest_checks import frame_seconds
from nemo_tutornet.data.transcripts import find_losses
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.missing_labels import is_lost_by, remedy_for, student_parser


def data_sets(student: Any, train_section: str = "model.train_ds") -> list[tuple[str, Any]]:
    """Returns the section of the config and the dataloader of each training and validation set of a student.

    Args:
        student: a NeMo CTC model.
        train_section: the section of the config that the training set comes from.
    """
    validation = student._validation_dl
    loaders = [(train_section, student._train_dl)]
    loaders += [
        ("model.validation_ds", one) for one in (validation if isinstance(validation, list) else [validation])
    ]
    return [(section, loader) for section, loader in loaders if loader is not None]


def check_transcripts(student: Any, train_section: str = "model.train_ds") -> list[str]:
    """Finds the transcripts of a student's training and validation sets that it cannot learn.

    The texts come from the manifests of files and tars. Where Lhotse reads, up to `MOST_ROWS` rows of a set
    are read, without their audio.

    Args:
        student: a NeMo CTC model with its data sets.
        train_section: the section of the config that the training set comes from, for the sentences.

    Returns:
        Warnings, a sentence each; also where a validation set has no transcript, so that its word error rate
        is not a number.

    Raises:
        TutorError: no transcript of a data set has a letter or digit that the student can write.
    """
    # A student is not run here: that would change the random numbers of its training.
    seconds, is_lost, warnings = frame_seconds(student.cfg), is_lost_by(student), []
    done: set[str] = set()
    for section, loader in data_sets(student, train_section):
        is_train = loader is student._train_dl
        data = student.cfg.get("train_ds" if is_train else "validation_ds") or {}
        if data.get("use_lhotse"):
            if section in done:  # several loaders share a section
                continue
            done.add(section)
            encode = _encoder(student)
            rows = [
                (name, text, encode(text), length)
                for name, text, length in lhotse_rows(data, section, MOST_ROWS)
            ]
        else:
            rows = [
                (str(entry.audio_file), entry.text_raw or "", entry.text_tokens, entry.duration)
                for entry in manifest_entries(loader)
            ]
        lost = find_losses(rows, is_lost, seconds)
        sentences = lost.in_words(section, remedy_for(lost.characters, student))
        if lost.transcripts and lost.empty == lost.transcripts:
            raise TutorError(sentences[0])
        if rows and not lost.transcripts and not is_train:
            sentences.append(
                f"{section}: none of its {len(rows)} utterances has a transcript, so its word error rate is "
                "not a number (nan) and selects no checkpoint; give a set with transcripts."
            )
        warnings += sentences
    return warnings


def _encoder(student: Any) -> Callable[[str], list[int] | None]:
    """Returns what converts a transcript to labels in NeMo's Lhotse data set."""
    subwords = hasattr(student, "tokenizer")
    convert = student.tokenizer.text_to_ids if subwords else student_parser(student)
    return lambda text: convert(text) if text.strip() else None
