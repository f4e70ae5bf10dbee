# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcribes utterances with a NeMo CTC model, and measures the time.

Legend: `N` samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs

_TIMED_SECONDS = 15.0
T = TypeVar("T")


def transcribe(
    model: Any,
    rows: Sequence[Utterance],
    batch_size: int,
    passes: int = 1,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[list[str], float]:
    """Transcribes utterances with a NeMo CTC model, and measures the time.

    The time includes the front end, the network and greedy decoding, but not the reading of the audio.

    Args:
        model: the NeMo CTC model.
        rows: the utterances.
        batch_size: number of utterances that are transcribed together.
        passes: how often the computing is timed; the fastest counts.
        report: called after each batch with the number of utterances that are transcribed.

    Returns:
        The hypotheses in the order of the rows, and the computing time in seconds.

    Raises:
        TutorError: an utterance is a single frame of audio, which NeMo refuses on a machine with a GPU.
    """
    audio = [read_samples(row, int(model.preprocessor._sample_rate)) for row in rows]
    # Utterances of similar length need less padding in a batch.
    order = sorted(range(len(rows)), key=lambda i: len(audio[i]))
    hypotheses = [""] * len(rows)
    import torch

    def compute() -> list[Any]:
        outputs: list[Any] = []
        # `model.transcribe` collects what this yields.
        for batch in model.transcribe_generator([audio[i] for i in order], _as_is(model, batch_size)):
            outputs += batch
            report(len(outputs))
        return outputs

    with suppress_nemo_logs(), torch.inference_mode():
        try:
            # The first call includes warm-up, so it is not timed.
            model.transcribe([audio[order[-1]]], override_config=_as_is(model, 1))
            outputs, seconds = time_fastest(compute, passes)
        except ValueError as error:
            if "tensor of length 1" not in str(error):
                raise
            raise TutorError(
                "an utterance of the manifest is a single frame of audio (10 to 20 ms), which NeMo refuses "
                "on a machine with a "
                "GPU; leave it out, or evaluate with --runtime onnx."
            ) from None
    for i, output in zip(order, outputs, strict=True):
        hypotheses[i] = output if isinstance(output, str) else output.text
    return hypotheses, seconds


def _as_is(model: Any, batch_size: int) -> Any:
    """Returns the model's transcription config with padding of short audio switched off.

    NeMo 3 pads arrays shorter than one second with silence, but not files. Without padding, an utterance
    gives the same result as an array and as a file.
    """
    config = model.get_transcribe_config()
    config.batch_size, config.num_workers, config.verbose, config.pad_min_duration = batch_size, 0, False, 0.0
    return config


def time_fastest(compute: Callable[[], T], passes: int) -> tuple[T, float]:
    """Times a computation several times, because other programs on the machine can only slow it down.

    Args:
        compute: the computation.
        passes: how often it is run at most. Once `_TIMED_SECONDS` have passed, it is not run again.

    Returns:
        Its result, and the seconds of the fastest run.
    """
    seconds: list[float] = []
    while True:
        start = time.perf_counter()
        result = compute()
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= passes or sum(seconds) > _TIMED_SECONDS:
            return result, min(seconds)
