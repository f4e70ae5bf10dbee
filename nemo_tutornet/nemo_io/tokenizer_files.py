# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and reads the tokenizer files of a subword model.

A config names these files, and NeMo packs them into the model's `.nemo` without a check. So they must be
regular files in one folder, and their content must be a tokenizer's. This keeps all other files of this
machine out of the `.nemo`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError, first_line
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.tokenizer_contents import (
    MOST_BYTES,
    TokenizerSection,
    same_labels,
    tokenizer_labels,
    unfit,
)
from nemo_tutornet.utils.files import open_regular_file

# NeMo's keys of tokenizer files in a checkpoint's config, and the names of these files in a tokenizer's
# folder.
TOKENIZER_FILES = {
    "model_path": "tokenizer.model",
    "vocab_path": "vocab.txt",
    "spe_tokenizer_vocab": "tokenizer.vocab",
}
# Keys by the tokenizer's type: first the file that NeMo reads, then the files that it only copies.
_KEYS = {"bpe": ("model_path", "vocab_path", "spe_tokenizer_vocab"), "wpe": ("vocab_path",)}
_OPTIONAL = "spe_tokenizer_vocab"  # NeMo's older checkpoints do not have this file


def tokenizer_of(source: Path | NemoArchive) -> tuple[str | None, dict[str, bytes]]:
    """Reads the tokenizer of a checkpoint.

    Args:
        source: an archive, or its path.

    Returns:
        The tokenizer's type, or None for a character model; and the contents of its files by their names in a
        tokenizer's folder. Only the types `bpe` and `wpe` have files.

    Raises:
        TutorError: the archive does not contain the files, or they are not a tokenizer's.
    """
    archive = NemoArchive.of(source)
    sections = list(_sections(archive.config, archive.path))
    section = archive.config.get("tokenizer")
    if not isinstance(section, DictConfig):
        return None, {}
    kind = str(section.get("type")).lower()  # NeMo ignores case
    if kind not in _KEYS:
        return kind, {}
    (own,) = sections
    files = _archived(archive, own)
    missing = sorted(_member_of(own.paths[key]) for key in own.paths if section.get(key) and key not in files)
    if missing or not files:
        raise TutorError(
            f"{archive.path} does not hold its tokenizer's files ({', '.join(missing) or 'none is named'}); "
            "take a whole one."
        )
    tokenizer_labels(own, files, str(archive.path))
    return kind, {TOKENIZER_FILES[key]: content for key, content in files.items()}


def check_archive_tokenizer(archive: NemoArchive, packed: bool = False) -> None:
    """Rejects an archive whose tokenizer NeMo would take from this machine.

    NeMo looks for a file's path on this machine first, and in the archive second.

    Args:
        archive: archive of the model that will be restored.
        packed: True if the model will be saved. Then also check the files that NeMo only copies, and the
            content of all files.

    Raises:
        TutorError: NeMo would take a file of this machine, or the content is not a tokenizer's.
    """
    for section in _sections(archive.config, archive.path):
        files = _archived(archive, section, None if packed else _KEYS[section.kind][:1])
        if packed:
            tokenizer_labels(section, files, str(archive.path))


def check_checkpoint_tokenizer(config: DictConfig, source: Path) -> None:
    """Rejects a Lightning checkpoint whose config names other files than those of its own tokenizer.

    NeMo would pack these files into the `.nemo`.

    Args:
        config: the resolved config of the model.
        source: the checkpoint, for messages.

    Raises:
        TutorError: a file is missing, is not a regular file, is in another folder than the others, or is not
            a tokenizer's; or the tokenizer's pieces are not the labels that the checkpoint was trained with.
    """
    sections = list(_sections(config, source))
    if not sections:
        return  # NeMo rejects this config
    labels: list[str] = []
    for section in sections:
        if section.folder and not Path(section.folder).is_dir():
            raise TutorError(
                f"{source} names its tokenizer in {section.folder}, which is not here; export the run's "
                ".nemo, which holds it, or copy that folder here."
            )
        labels += tokenizer_labels(section, _local(section, str(source)), str(source))
    decoder = config.get("decoder")
    trained = list((decoder.get("vocabulary") if isinstance(decoder, DictConfig) else None) or ())
    if not same_labels(labels, trained, ordered=all(section.kind == "bpe" for section in sections)):
        raise TutorError(
            f"{source} was trained with {len(trained)} labels in its decoder.vocabulary, which are not those "
            "of the tokenizer that its config names; put the training's tokenizer back, or export the run's "
            ".nemo, which holds it."
        )


def check_tokenizer_section(cfg: DictConfig) -> None:
    """Rejects a training config with a section `model.tokenizer` whose files are not a tokenizer's.

    Every `.nemo` of the training would contain these files.

    Args:
        cfg: the model's config, with a section `tokenizer`. A type that NeMo does not know is left to NeMo.

    Raises:
        TutorError: a file is missing, is not a regular file, is in another folder than the others, or is not
            a tokenizer's.
    """
    for section in _sections(cfg, None):
        unnamed = section.kind == "bpe" and section.paths.get("model_path") == os.path.join(
            section.folder, TOKENIZER_FILES["model_path"]
        )
        if unnamed and not (section.folder and _is_file(section.paths["model_path"])):
            raise TutorError(
                f"{section.key}.dir is "
                f"{f'{section.folder}, which holds no tokenizer.model' if section.folder else 'not set'}; "
                "give the folder that NeMo's process_asr_text_tokenizer.py wrote (it ends in spe_bpe_v128 or "
                "the like)."
            )
        tokenizer_labels(section, _local(section, "the config"), "the config")


def check_tokenizer_files(kind: str | None, files: Mapping[str, bytes], where: str) -> None:
    """Rejects files that are not a tokenizer's.

    Args:
        kind: `bpe` or `wpe`. Other types have no files, and nothing is checked.
        files: contents by the names in `TOKENIZER_FILES`.
        where: place of the files, for the message.

    Raises:
        TutorError: the content of a file is not a tokenizer's.
    """
    if kind in _KEYS:
        paths = {key: TOKENIZER_FILES[key] for key in _KEYS[kind] if TOKENIZER_FILES[key] in files}
        section = TokenizerSection("tokenizer", kind, "", paths)
        tokenizer_labels(section, {key: files[name] for key, name in paths.items()}, where)


def _sections(
    node: DictConfig, source: Path | None, name: Any = "tokenizer", key: str = ""
) -> Iterator[TokenizerSection]:
    """Yields the tokenizers of a config that have files, read in the same way as NeMo reads the config.

    Args:
        node: config that contains the section.
        source: the config's file, for messages; None for the config of a training.
        name: key of the section in the node.
        key: full key of the section, for messages.

    Yields:
        One section for each tokenizer of type `bpe` or `wpe`.

    Raises:
        TutorError: the section cannot be read.
    """
    key = key or ("tokenizer" if source else "model.tokenizer")
    try:
        section = node.get(name)
        if not isinstance(section, DictConfig):
            return
        kind, langs = str(section.get("type")).lower(), section.get("langs")
        if kind == "agg":
            for lang in langs if isinstance(langs, DictConfig) else ():
                yield from _sections(langs, source, lang, f"{key}.langs.{lang!s}")
        elif kind in _KEYS:
            folder = str(section.get("dir") or "")
            # If the section does not name a file, NeMo looks for it in the folder.
            paths = {
                file: str(section[file] or "")
                if file in section
                else os.path.join(folder, TOKENIZER_FILES[file])
                for file in _KEYS[kind]
            }
            yield TokenizerSection(key, kind, folder, {file: path for file, path in paths.items() if path})
    except OmegaConfBaseException as error:
        raise TutorError(
            f"{source or 'the config'} has a section {key} that cannot be read: {first_line(error)}."
        ) from None


def _archived(
    archive: NemoArchive, section: TokenizerSection, keys: Sequence[str] | None = None
) -> dict[str, bytes]:
    """Reads the files that NeMo takes out of an archive, and returns their contents by key."""
    found: dict[str, bytes] = {}
    for key, path in section.paths.items():
        if keys is not None and key not in keys:
            continue
        if os.path.exists(path) or (path.startswith("nemo:") and "/" in path):
            raise TutorError(
                f"{archive.path} has {path} for {section.key}.{key}, a file of this machine and none of its "
                "own, which NeMo would take in its place; if it is yours, restore the model and "
                "save it with NeMo, so that it holds the file, and give that."
            )
        if _member_of(path) in archive.members:
            found[key] = archive.read(_member_of(path))
    return found


def _member_of(path: str) -> str:
    return path.removeprefix("nemo:") if path.startswith("nemo:") else os.path.basename(path)


def _local(section: TokenizerSection, called: str) -> dict[str, bytes]:
    """Reads the files that NeMo takes from this machine, and returns their contents by key."""
    found: dict[str, bytes] = {}
    folders: set[str] = set()
    for key, path in section.paths.items():
        try:
            with open_regular_file(Path(path)) as file:
                found[key] = file.read(MOST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            if key == _OPTIONAL:
                continue
            raise unfit(section, key, called, "which is not here") from None
        except OSError as error:
            what = {errno.ELOOP: "a link", errno.EMLINK: "a link", errno.EINVAL: "no regular file"}
            found_it = what.get(error.errno or 0, f"not readable ({error.strerror or error})")
            raise unfit(section, key, called, f"which is {found_it}") from None
        folders.add(os.path.dirname(os.path.abspath(path)))
        if len(folders) > 1:
            raise unfit(section, key, called, "which is in another folder than the tokenizer's other files")
    return found


def _is_file(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)
