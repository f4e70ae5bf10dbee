# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Transcribes utterances with a NeMo model, and measures the time.

Legend: `N` samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import Utterance
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.isolation import suppress_nemo_logs
from nemo_tutornet.nemo_io.prompt import prompt_turns
from nemo_tutornet.nemo_io.restore import is_attention_model

_TIMED_SECONDS = 15.0
# Audio of a block: 58 MB of fp32 at 16 kHz. The time of NeMo's setup is small against that of so much audio.
_BLOCK_SECONDS = 900.0
T = TypeVar("T")


def transcribe(
    model: Any,
    rows: Sequence[Utterance],
    batch_size: int,
    passes: int = 1,
    report: Callable[[int], None] = lambda done: None,
    prompt: Mapping[str, str] | None = None,
) -> tuple[list[str], float]:
    """Transcribes utterances with a NeMo model, and measures the time.

    The time includes the front end, the network and decoding, but not the reading of the audio. The audio is
    read in blocks.

    Args:
        model: the NeMo CTC, hybrid, transducer or attention model. A hybrid decodes with the decoder that is
            selected in it.
        rows: the utterances.
        batch_size: number of utterances that are transcribed together.
        passes: how often the computing is timed; the fastest counts.
        report: called after each batch with the number of utterances that are transcribed.
        prompt: options of an attention model's prompt, by slot.

    Returns:
        The hypotheses in the order of the rows, and the computing time in seconds.

    Raises:
        TutorError: audio cannot be read; an utterance is a single frame of audio, which NeMo refuses on a
            machine with a GPU; or the prompt's options are not those of the model.
    """
    turns = prompt_turns(model, prompt or {}, "--prompt", "the model") if is_attention_model(model) else None
    rate = int(model.preprocessor._sample_rate)
    # Utterances of similar length need less padding in a batch.
    order = sorted(range(len(rows)), key=lambda i: rows[i].duration)
    hypotheses, seconds, before = [""] * len(rows), 0.0, 0
    import torch

    def compute(audio: list[np.ndarray], size: int, report: Callable[[int], None]) -> list[str]:
        outputs: list[str] = []
        # `model.transcribe` collects what this yields.
        for batch in model.transcribe_generator(audio, _as_is(model, size, turns)):
            outputs += best_hypotheses(batch)
            model.eval()  # NeMo's attention decoding leaves the decoder in train mode, with its dropout
            report(len(outputs))
        model.eval()  # and so does the end of its transcription
        return outputs

    def report_block(before: int, done: int) -> None:
        report(before + done)

    with suppress_nemo_logs(), torch.inference_mode():
        try:
            # The first call includes warm-up, so it is not timed.
            compute([read_samples(rows[i], rate) for i in order[-1:]], 1, lambda done: None)
            for indices, audio in read_blocks(rows, order, rate, batch_size):
                outputs, fastest = time_fastest(
                    partial(compute, audio, batch_size, partial(report_block, before)), passes
                )
                seconds, before = seconds + fastest, before + len(indices)
                for i, output in zip(indices, outputs, strict=True):
                    hypotheses[i] = output
        except ValueError as error:
            if "tensor of length 1" not in str(error):
                raise
            raise TutorError(
                "an utterance of the manifest is a single frame of audio (10 to 20 ms), which NeMo refuses "
                "on a machine with a GPU; leave it out, or evaluate with --runtime onnx."
            ) from None
    return hypotheses, seconds


def read_blocks(
    rows: Sequence[Utterance], order: Sequence[int], sample_rate: int, batch_size: int = 1
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Reads the audio of utterances in blocks, so that the memory does not grow with the manifest.

    A block holds whole batches, and so many of them that their audio reaches `_BLOCK_SECONDS`.

    Args:
        rows: the utterances.
        order: their indices in the order in which they are read.
        sample_rate: samples per second to resample to.
        batch_size: number of utterances of a batch.

    Yields:
        The indices of the utterances of a block, and their waveforms `[N]`.

    Raises:
        TutorError: audio cannot be read.
    """
    indices: list[int] = []
    audio: list[np.ndarray] = []
    for first in range(0, len(order), batch_size):
        batch = list(order[first : first + batch_size])
        indices += batch
        audio += [read_samples(rows[i], sample_rate) for i in batch]
        if sum(map(len, audio)) >= _BLOCK_SECONDS * sample_rate or first + batch_size >= len(order):
            yield indices, audio
            indices, audio = [], []


def best_hypotheses(batch: Any) -> list[str]:
    """Returns the text of the best hypothesis of each utterance.

    Args:
        batch: what NeMo's decoding returns: texts or hypotheses; of a beam search also a list for each
            utterance, the best first, or (NeMo 2) a pair of the best and of all.
    """
    batch = batch[0] if isinstance(batch, tuple) else batch
    best = [entry[0] if isinstance(entry, list) else entry for entry in batch]
    return [entry if isinstance(entry, str) else str(entry.text) for entry in best]


def _as_is(model: Any, batch_size: int, turns: list[dict[str, Any]] | None = None) -> Any:
    """Returns the model's transcription config with padding of short audio switched off.

    NeMo 3 pads arrays shorter than one second with silence, but not files. Without padding, an utterance
    gives the same result as an array and as a file. An attention model reads each utterance whole.
    """
    config = model.get_transcribe_config()
    config.batch_size, config.num_workers, config.verbose, config.pad_min_duration = batch_size, 0, False, 0.0
    if turns is not None:
        config.prompt, config.enable_chunking = turns, False
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
