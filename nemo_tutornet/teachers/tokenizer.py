# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Resolves `tokenizer: teacher`, with which a subword student uses its teacher's tokenizer.

The label sets of student and teacher are then equal by construction.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from omegaconf import DictConfig, open_dict

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.restore import locate
from nemo_tutornet.nemo_io.tokenizer_files import (
    TOKENIZER_FILES,
    check_tokenizer_files,
    check_tokenizer_section,
    tokenizer_of,
)
from nemo_tutornet.utils.files import SET_CACHE, expand_user, staging_directory, user_cache


def resolve_teacher_tokenizer(cfg: DictConfig) -> None:
    """Replaces `tokenizer: teacher` in a student's config by the teacher's tokenizer, in place.

    The tokenizer's files are copied from the teacher's archive, or from the cache of targets, into a folder
    of the user's cache directory. The folder is named by the content of the files, so that a resumed run
    finds them. The student's `.nemo` holds its own copy.

    `tokenizer: FILE.nemo` (or a pretrained name) uses the tokenizer of another checkpoint. An undistilled
    baseline has no teacher, so its config names the teacher's file in this way.

    Args:
        cfg: the student's config. A tokenizer that is already a section stays unchanged.

    Raises:
        TutorError: the config has no teacher, the teacher has no tokenizer of its own, or the folder of a
            tokenizer section contains no tokenizer; or the user's cache folder cannot be written to.
    """
    asked = cfg.get("tokenizer")
    if not isinstance(asked, str):
        # During a restore the files are in the archive, where NeMo finds them, so the check is skipped.
        if isinstance(asked, DictConfig) and not _is_being_restored():
            check_tokenizer_section(cfg)
        return
    cache = _cache_of(cfg) if asked == "teacher" else None
    if cache is not None:
        where, (kind, files) = f"the cache {cache}", _cached(cache)
    else:
        path = locate(_teacher_of(cfg) if asked == "teacher" else asked, "model.tokenizer")
        where, (kind, files) = str(path), tokenizer_of(path)
    if not files:
        what = f"a tokenizer of type {kind!r}" if kind else "characters and no tokenizer"
        raise TutorError(
            f"model.tokenizer takes the tokenizer of {where}, which has {what}; give a checkpoint with one "
            "of type bpe or wpe, or make the student a character model: model.labels in place of "
            "model.tokenizer."
        )
    check_tokenizer_files(kind, files, where)
    with open_dict(cfg):
        cfg.tokenizer = {"dir": str(_kept(files)), "type": kind}


def _is_being_restored() -> bool:
    from nemo.utils.app_state import AppState

    return bool(AppState().is_model_being_restored)


def _cache_of(cfg: DictConfig) -> Path | None:
    teacher = (cfg.get("tutor") or {}).get("teacher") or {}
    return expand_user(teacher["cache"]) if teacher.get("cache") else None


def _cached(folder: Path) -> tuple[str | None, dict[str, bytes]]:
    from nemo_tutornet.target_cache.reader import CacheReader

    reader = CacheReader(folder)
    kind = reader.provenance.get("tokenizer")
    return kind, {
        name: reader.path(name).read_bytes() for name in TOKENIZER_FILES.values() if reader.has(name)
    }


def _teacher_of(cfg: DictConfig) -> str:
    tutor = cfg.get("tutor")
    teacher = tutor.get("teacher") if isinstance(tutor, DictConfig) else None
    model_path = teacher.get("model_path") if isinstance(teacher, DictConfig) else None
    if not model_path:
        raise TutorError(
            "model.tokenizer is 'teacher', but there is no model.tutor.teacher.model_path to take it from; "
            "without a teacher, name the checkpoint itself: model.tokenizer=teacher.nemo."
        )
    return str(model_path)


def _kept(files: dict[str, bytes]) -> Path:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    folder = user_cache() / "tokenizers" / digest.hexdigest()[:16]
    try:
        with staging_directory(folder) as stage:  # several ranks may write the same files at once
            for name, content in files.items():
                (stage / name).write_bytes(content)
    except OSError as error:
        raise TutorError(
            f"the teacher's tokenizer cannot be kept in {folder} ({error.strerror or error}); {SET_CACHE}."
        ) from None
    return folder
