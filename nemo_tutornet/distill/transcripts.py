# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the transcripts of a student's data sets before a training."""

from __future__ import annotations

from typing import Any

from nemo_tutornet.data.dataloader import manifest_entries
from nemo_tutornet.data.manifest_checks import frame_seconds
from nemo_tutornet.data.transcripts import find_losses
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.missing_labels import is_lost_by, remedy_for


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

    The texts come from NeMo's data sets of files and tars. Lhotse reads its rows lazily, so they are not
    checked.

    Args:
        student: a NeMo CTC model with its data sets.
        train_section: the section of the config that the training set comes from, for the sentences.

    Returns:
        Warnings, a sentence each.

    Raises:
        TutorError: no transcript of a data set has a letter or digit that the student can write.
    """
    # A student is not run here: that would change the random numbers of its training.
    seconds, is_lost, warnings = frame_seconds(student.cfg), is_lost_by(student), []
    for section, loader in data_sets(student, train_section):
        rows = (
            (str(entry.audio_file), entry.text_raw or "", entry.text_tokens, entry.duration)
            for entry in manifest_entries(loader)
        )
        lost = find_losses(rows, is_lost, seconds)
        sentences = lost.in_words(section, remedy_for(lost.characters, student))
        if lost.transcripts and lost.empty == lost.transcripts:
            raise TutorError(sentences[0])
        warnings += sentences
    return warnings
