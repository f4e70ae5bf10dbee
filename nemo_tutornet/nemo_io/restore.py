# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and restores NeMo models, and returns their CTC head and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from nemo_tutornet.errors import LONGEST_INPUT, TutorError, first_line, reason_of, shorten, shown
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.isolation import preserve_app_state, suppress_nemo_logs
from nemo_tutornet.nemo_io.tokenizer_files import check_archive_tokenizer
from nemo_tutornet.utils.files import expand_user


def ctc_head(model: Any) -> nn.Module | None:
    """Returns the module that computes CTC log-probabilities from the encoder's output.

    Args:
        model: a NeMo CTC, hybrid, transducer or attention model.

    Returns:
        The module; None for a transducer and for an attention model.
    """
    if hasattr(model, "ctc_decoder"):  # a hybrid, whose `decoder` is the transducer's
        return model.ctc_decoder
    return None if hasattr(model, "joint") or is_attention_model(model) else model.decoder


def is_attention_model(model: Any) -> bool:
    """Tells whether a model is an attention encoder-decoder (Canary), whose decoder has no frames.

    Args:
        model: a NeMo model.

    Returns:
        True if it is one.
    """
    return hasattr(model, "transf_decoder")


def labels_of(model: Any, head: Any) -> list[str]:
    """Returns the labels of a CTC head in the order of its outputs, without the blank.

    The `vocabulary` of a WordPiece model does not have that order. NeMo lists it in the order of the
    tokenizer's dictionary, which differs from run to run.

    Args:
        model: the NeMo model.
        head: its CTC head, or another module with a `vocabulary`.

    Returns:
        The labels.
    """
    tokenizer = getattr(getattr(model, "tokenizer", None), "tokenizer", None)
    pieces = tokenizer.get_vocab() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else None
    if isinstance(pieces, dict) and pieces.keys() == set(head.vocabulary):
        return sorted(pieces, key=pieces.__getitem__)
    return list(head.vocabulary)


def restore_ctc(source: Path | NemoArchive) -> Any:
    """Restores a stock NeMo model on the CPU, in eval mode.

    NeMo's log messages are hidden, and another restore in progress is not disturbed. NeMo uses the files
    that were checked when the archive was opened. This also holds when the model is saved later, and NeMo
    takes the tokenizer out of the archive again.

    Args:
        source: an archive, or the path of a `.nemo` file or of a folder that one was unpacked to.

    Returns:
        The model.

    Raises:
        TutorError: the tokenizer would be a file of this machine, or NeMo cannot restore the model. The
            message contains NeMo's reason.
    """
    from nemo.collections.asr import models

    from nemo_tutornet.nemo_io.connector import CheckedConnector

    archive = NemoArchive.of(source)
    check_archive_tokenizer(archive)
    # Use the class itself. With ASRModel, NeMo reports any model that it cannot build as "an abstract class",
    # and the reason is lost.
    model_class = getattr(models, archive.target.rsplit(".", 1)[-1], models.ASRModel)
    try:
        with preserve_app_state(), suppress_nemo_logs():
            model = model_class.restore_from(
                str(archive.path), map_location="cpu", save_restore_connector=CheckedConnector(archive)
            )
    except TutorError:
        raise
    except Exception as error:  # a damaged part can make NeMo raise any exception
        raise TutorError(f"NeMo cannot restore {archive.path}: {reason_of(error)}.") from error
    return model.eval()


def locate(model_path: str | None, key: str = "model.tutor.teacher.model_path") -> Path:
    """Finds the file of a checkpoint, and downloads it if the config gives the name of a pretrained model.

    Args:
        model_path: a `.nemo` file, a folder that one was unpacked to, or the name of a pretrained NeMo model.
        key: the key of the config, for the message.

    Returns:
        Path of the file or folder.

    Raises:
        TutorError: the key is not set, or its value is neither a file of this machine nor the name of a model
            that could be downloaded.
    """
    if not model_path:
        raise TutorError(
            f"{key} is not set; give the teacher's .nemo file or the name of a pretrained NeMo model."
        )
    path = expand_user(model_path)
    if os.path.exists(path) or path.suffix == ".nemo":  # `os.path` allows a name of any length
        return path
    from nemo.collections.asr.models import ASRModel

    try:
        return Path(ASRModel.from_pretrained(model_path, return_model_file=True))
    except Exception as error:  # from the hub, the network or NeMo
        raise TutorError(
            f"{key} is {shown(model_path)}, which is neither a file here nor a pretrained NeMo model that "
            f"could be fetched ({shorten(first_line(error), LONGEST_INPUT)}); give the path of a .nemo file "
            "or a name that NeMo knows."
        ) from None


def pointwise_decoder(decoder: nn.Module | None) -> nn.Conv1d | None:
    """Returns the single 1x1 convolution of a NeMo CTC decoder.

    Args:
        decoder: the decoder; may be None.

    Returns:
        The convolution; None if the decoder is anything else.
    """
    layers = list(getattr(decoder, "decoder_layers", []))
    if len(layers) == 1 and isinstance(layers[0], nn.Conv1d) and layers[0].kernel_size == (1,):
        return layers[0]
    return None
