# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading NeMo and Lightning checkpoints as what they are: untrusted input."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.yaml_aliases import check_aliases

MODEL_CONFIG, MODEL_WEIGHTS = "model_config.yaml", "model_weights.ckpt"
# The largest configs, those with a vocabulary of many thousand pieces, are far smaller.
_CONFIG_BYTES = 64 << 20


def read_nemo_config(path: Path) -> DictConfig:
    """The config inside a `.nemo` file (or unpacked folder), without restoring the model.

    Raises:
        TutorError: no such file, or not a readable `.nemo` archive.
    """
    if path.is_dir():
        if not (path / MODEL_CONFIG).is_file():
            raise TutorError(f"{path} is a folder without {MODEL_CONFIG}; give a .nemo file.")
        return _as_config((path / MODEL_CONFIG).read_bytes(), path)
    if not path.is_file():
        raise TutorError(f"there is no file {path}; give the path of a .nemo file.")
    try:
        with tarfile.open(path, "r:*") as archive:
            # Listing every member reads to the end, which a truncated archive does not reach.
            names = {os.path.normpath(member.name): member for member in archive.getmembers()}
            if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:  # it stops without an end mark
                raise tarfile.ReadError("unexpected end of data")
            if MODEL_CONFIG not in names:
                raise TutorError(f"{path} holds no {MODEL_CONFIG}; it is not a NeMo checkpoint.")
            if not names[MODEL_CONFIG].isfile() or names[MODEL_CONFIG].size > _CONFIG_BYTES:
                raise TutorError(
                    f"{path} holds a {MODEL_CONFIG} that is no file of a config's size; it is not a NeMo "
                    "checkpoint."
                )
            stream = archive.extractfile(names[MODEL_CONFIG])
            assert stream is not None
            content = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, TutorError):
            raise
        if path.suffix == ".ckpt":
            raise TutorError(
                f"{path} is no .nemo file; make one of a run's .ckpt with `nemo-tutornet export` first."
            ) from None
        if isinstance(error, PermissionError):
            raise TutorError(
                f"{path} is not for this user ({error.strerror}); change its mode or name another."
            ) from None
        first = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise TutorError(
            f"{path} is not a readable .nemo file ({first}); it may be truncated, copy it again."
        ) from None
    return _as_config(content, path)


def _as_config(content: bytes, path: Path) -> DictConfig:
    try:
        check_aliases(content)
        config = OmegaConf.create(content.decode("utf-8"))
    except (
        UnicodeDecodeError,
        yaml.YAMLError,
        OmegaConfBaseException,
        AssertionError,
        RecursionError,
    ) as error:
        first = str(error).splitlines()[0] if str(error) else "not a mapping"
        raise TutorError(
            f"{path}: {MODEL_CONFIG} is not readable ({first}); take the file from its source again."
        ) from None
    if not isinstance(config, DictConfig):
        raise TutorError(f"{path}: {MODEL_CONFIG} is not a mapping; it is not a NeMo checkpoint.")
    return config
