# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Features of utterances of a manifest, on which an ONNX graph is calibrated for static int8.

Legend: `F` mel bins, `T` frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tutornet.data.manifest import Rules, Utterance, open_rows, unopened_rows
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs

MOST_UTTERANCES = 100
# Frames of the front end, 10 s of most. Longer utterances are cut, so that calibration needs little memory.
MOST_FRAMES = 1000


def calibration_features(front_end: Mapping[str, Any], manifest: Path) -> list[np.ndarray]:
    """Computes the features of utterances of a manifest, evenly spread over it.

    Args:
        front_end: the parameters of NeMo's front end, without dither and padding.
        manifest: NeMo manifest. Only the lines of these utterances are parsed, and their audio opened.

    Returns:
        `[1, F, T]` for at most `MOST_UTTERANCES` utterances, valid frames only, at most `MOST_FRAMES` each.

    Raises:
        TutorError: the manifest is invalid, names fewer than two utterances with speech to measure, or a
            file cannot be read.
    """
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    rows = chosen_utterances(manifest)
    with suppress_nemo_logs():
        preprocessor = AudioToMelSpectrogramPreprocessor(**front_end).eval()
    sample_rate = int(front_end["sample_rate"])
    features = [_features(preprocessor, sample_rate, row) for row in rows]
    features = [item for item in features if item.shape[2] > 1]
    if len(features) < 2:
        raise TutorError(
            f"{manifest} names fewer than two utterances of at least two frames; int8 needs some to "
            "calibrate with, and others to measure the result on."
        )
    return features


def chosen_utterances(manifest: Path) -> list[Utterance]:
    """Returns at most `MOST_UTTERANCES` utterances of a manifest, evenly spread over it.

    Args:
        manifest: NeMo manifest. Only the audio of these utterances is opened.

    Raises:
        TutorError: the manifest cannot be read, or one of these rows is invalid.
    """
    rows = unopened_rows(manifest)
    return open_rows([rows[i] for i in evenly_spread(len(rows), MOST_UTTERANCES)], Rules())


def evenly_spread(count: int, most: int) -> list[int]:
    """Returns at most so many indices of a list, evenly spread over it.

    Args:
        count: length of the list.
        most: most indices.

    Example:
        >>> evenly_spread(7, 3), evenly_spread(2, 3)
        ([0, 2, 4], [0, 1])
    """
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]


def _features(preprocessor: Any, sample_rate: int, row: Utterance) -> np.ndarray:
    import torch
    from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

    try:
        samples = AudioSegment.from_file(
            str(row.audio), target_sr=sample_rate, offset=row.offset, duration=row.duration
        ).samples
    except Exception as error:  # the readers behind NeMo's have no other common base class
        raise TutorError(
            f"{row.audio} cannot be read ({error}); fix the file or remove its line from the manifest."
        ) from None
    if samples.ndim != 1:
        raise TutorError(f"{row.audio} has {samples.shape[1]} channels; calibrate with mono files.")
    signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None]
    with torch.no_grad():
        features, length = preprocessor(input_signal=signal, length=torch.tensor([signal.shape[1]]))
    return features[:, :, : min(int(length), MOST_FRAMES)].numpy()
