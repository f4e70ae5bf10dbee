# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The samples of a manifest's utterance.

Legend: `N` samples.
"""

from __future__ import annotations

import numpy as np

from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError


def read_samples(row: Utterance, sample_rate: int) -> np.ndarray:
    """Reads the audio of an utterance.

    Args:
        row: the utterance.
        sample_rate: samples per second to resample to.

    Returns:
        The samples of one channel, or the mean of all where the row asks for it, `[N]`, float32.

    Raises:
        TutorError: the file cannot be decoded, or has several channels and the row chooses none.
    """
    import librosa
    import soundfile

    # librosa rounds down to whole samples, and a floating-point error can lose one sample. Adding a
    # microsecond prevents this, and is shorter than a sample. Of an open file, librosa tries no other reader,
    # whose error would hide the reason.
    try:
        with soundfile.SoundFile(row.audio) as file:
            if row.channel is None and file.channels > 1:  # their mean may be noise to a model
                raise TutorError(
                    f"{row.audio} has {file.channels} channels, but an ASR model reads one; write the "
                    "channel that holds the speech to a mono file."
                )
            samples, _ = librosa.load(
                file, sr=sample_rate, mono=False, offset=row.offset, duration=row.duration + 1e-6
            )
    except (soundfile.LibsndfileError, OSError) as error:
        raise TutorError(
            f"{row.audio} cannot be read to its end ({error}); fix the file or remove its line from the "
            "manifest."
        ) from None
    if samples.ndim == 1:
        return samples
    return samples.mean(axis=0) if row.channel == "average" else np.ascontiguousarray(samples[row.channel])
