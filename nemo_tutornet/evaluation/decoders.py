# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The decoder that transcribes: a hybrid has two, a CTC head and a transducer; other models have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.stock_config import TEACHER_CLASSES

# NeMo's names, of `decoder_type` in its transcribe_speech.py.
CTC, RNNT = "ctc", "rnnt"
DECODERS = (CTC, RNNT)
ATTENTION = "attention"
# The decoders of each class; the first is NeMo's own choice.
_OF_CLASS = {
    "EncDecCTCModel": (CTC,),
    "EncDecCTCModelBPE": (CTC,),
    "EncDecHybridRNNTCTCModel": (RNNT, CTC),
    "EncDecHybridRNNTCTCBPEModel": (RNNT, CTC),
    "EncDecRNNTModel": (RNNT,),
    "EncDecRNNTBPEModel": (RNNT,),
    "EncDecMultiTaskModel": (ATTENTION,),
}
_IN_WORDS = {CTC: "a CTC model", RNNT: "a transducer", ATTENTION: "an attention model"}


def check_decoder(decoder: str | None) -> None:
    """Refuses the name of a decoder that NeMo does not have.

    Args:
        decoder: `ctc`, `rnnt`, or None for the model's own choice.

    Raises:
        TutorError: it is another name.
    """
    if decoder not in (None, *DECODERS):
        raise TutorError(f"there is no decoder {decoder!r}; choose one of {', '.join(DECODERS)}.")


def decoder_of(archive: NemoArchive, decoder: str | None = None) -> str:
    """Returns the decoder that transcribes with a model.

    Args:
        archive: the model's archive.
        decoder: `ctc` or `rnnt`, which the model must have; None for NeMo's own choice, which is a hybrid's
            transducer. A transducer that predicts durations (TDT) is `rnnt`, too.

    Returns:
        `ctc`, `rnnt` or `attention`.

    Raises:
        TutorError: the file is not a recogniser's, or the model lacks the decoder.
    """
    target = archive.target
    own = _OF_CLASS.get(target.rsplit(".", 1)[-1]) if target.startswith("nemo.collections.asr.") else None
    if own is None:
        raise TutorError(
            f"{archive.path} is a checkpoint of {target}; a model to evaluate must be a NeMo recogniser "
            f"({', '.join(TEACHER_CLASSES)}), so give the file of one."
        )
    if decoder is None:
        return own[0]
    if decoder not in own:
        raise TutorError(no_such_decoder(archive.path, decoder, own[0]))
    return decoder


def no_such_decoder(path: Path, decoder: str | None, own: str) -> str:
    """Says that a model lacks a decoder.

    Args:
        path: the model's file or folder.
        decoder: the decoder that was asked for.
        own: the decoder that it has.
    """
    return (
        f"{path} is {_IN_WORDS[own]} and has no {decoder} decoder; leave out --decoder, or evaluate it by "
        "itself."
    )


def select_decoder(model: Any, decoder: str) -> None:
    """Makes a hybrid transcribe with one of its decoders; other models have only theirs.

    Args:
        model: the NeMo model.
        decoder: from `decoder_of`.
    """
    if hasattr(model, "cur_decoder") and model.cur_decoder != decoder:
        model.change_decoding_strategy(decoder_type=decoder, verbose=False)
