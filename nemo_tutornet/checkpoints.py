# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading NeMo and Lightning checkpoints as what they are: untrusted input."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import lzma
import os
import signal
import tarfile
import tempfile
import threading
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.aliases import check_aliases
from nemo_tutornet.errors import TutorError

MODEL_CONFIG, MODEL_WEIGHTS = "model_config.yaml", "model_weights.ckpt"
STOCK_CHAR = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
STOCK_BPE = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
# NeMo writes a class by its defining module, older checkpoints by the package that re-exports it.
CTC_CLASSES = {"EncDecCTCModel": STOCK_CHAR, "EncDecCTCModelBPE": STOCK_BPE}
# Recognisers that can teach: those, hybrids through their CTC head, and transducers by their encoder alone.
TEACHER_CLASSES = (
    *CTC_CLASSES, "EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel", "EncDecRNNTModel", "EncDecRNNTBPEModel",
)  # fmt: skip
# The largest configs, those with a vocabulary of many thousand pieces, are far smaller.
_CONFIG_BYTES = 64 << 20
# Keys of files that do not end as such: of datasets, and of a beam search's language model and its phrases.
_DATA = ("input_cfg", "ngram_lm_model", "key_phrases_file")
# Plain containers and scalars that NeMo's hyperparameters are made of.
_HARMLESS = {
    "builtins.int", "builtins.float", "builtins.bool", "builtins.str", "builtins.dict", "builtins.list", "builtins.tuple",
    "builtins.set", "collections.defaultdict", "collections.OrderedDict", "typing.Any", "typing.List", "typing.Dict",
    "typing.Optional", "typing.Union", "pathlib.PosixPath", "pathlib.Path",
}  # fmt: skip


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
                    f"{path} holds a {MODEL_CONFIG} that is no file of a config's size; it is not a NeMo checkpoint."
                )
            stream = archive.extractfile(names[MODEL_CONFIG])
            assert stream is not None
            content = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, TutorError):
            raise
        if path.suffix == ".ckpt":
            raise TutorError(f"{path} is no .nemo file; make one of a run's .ckpt with `nemo-tutornet export` first.") from None
        if isinstance(error, PermissionError):
            raise TutorError(f"{path} is not for this user ({error.strerror}); change its mode or name another.") from None
        first = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise TutorError(f"{path} is not a readable .nemo file ({first}); it may be truncated, copy it again.") from None
    return _as_config(content, path)


def _as_config(content: bytes, path: Path) -> DictConfig:
    try:
        check_aliases(content)
        config = OmegaConf.create(content.decode("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else "not a mapping"
        raise TutorError(f"{path}: {MODEL_CONFIG} is not readable ({first}); take the file from its source again.") from None
    if not isinstance(config, DictConfig):
        raise TutorError(f"{path}: {MODEL_CONFIG} is not a mapping; it is not a NeMo checkpoint.")
    return config


def ctc_class(config: DictConfig, path: Path, what: str) -> str:
    """The stock CTC class that a checkpoint's config names.

    Args:
        config: the checkpoint's config.
        path: its file, for the message.
        what: what the checkpoint is wanted for, for the message.

    Returns:
        `STOCK_CHAR` or `STOCK_BPE`.

    Raises:
        TutorError: any other class.
    """
    target = target_of(config)
    stock = CTC_CLASSES.get(target.rsplit(".", 1)[-1]) if target.startswith("nemo.collections.asr.") else None
    if stock is None:
        raise TutorError(
            f"{path} is a checkpoint of {target}; {what} must be a NeMo CTC recogniser "
            f"({' or '.join(CTC_CLASSES)}), so give the file of one."
        )
    return stock


def check_teacher(config: DictConfig, path: Path) -> None:
    """Refuses a checkpoint that cannot teach.

    Raises:
        TutorError: its class is none of NeMo's CTC, hybrid and transducer recognisers.
    """
    target = target_of(config)
    if not target.startswith("nemo.collections.asr.") or target.rsplit(".", 1)[-1] not in TEACHER_CLASSES:
        raise TutorError(
            f"{path} is a checkpoint of {target}; a teacher must be a NeMo recogniser with an encoder and frames "
            f"({', '.join(TEACHER_CLASSES)}), so give the file of one."
        )


def target_of(config: DictConfig) -> str:
    """The class that a config names, for messages and comparison; it is never imported."""
    try:
        return str(config.get("target", "nothing"))
    except OmegaConfBaseException:
        return "a class that its config does not name"


def stock_config(config: DictConfig) -> DictConfig:
    """A student's config as it leaves: NeMo's class, no `tutor:` section and no path of the training machine.

    Args:
        config: the config of the model in training; it is not changed.
    """
    stock = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(stock, DictConfig)
    stock.pop("tutor", None)
    stock.target = CTC_CLASSES.get(str(stock.get("target")).rsplit(".", 1)[-1], stock.get("target"))
    for name in ("train_ds", "validation_ds", "test_ds", "decoding"):  # a beam search names its language model
        section = stock.get(name)
        if isinstance(section, DictConfig):
            _forget_paths(section)
    if stock.target == STOCK_BPE and not isinstance(stock.get("validation_ds"), DictConfig):
        stock.validation_ds = {"manifest_filepath": None}  # NeMo's transcribe() looks into it
    vocabulary = OmegaConf.select(stock, "decoder.vocabulary")
    if stock.target == STOCK_CHAR and vocabulary:
        stock.labels = list(vocabulary)  # NeMo's script for fine-tuning reads them; its change_vocabulary leaves the old ones
    tokenizer = stock.get("tokenizer")
    if isinstance(tokenizer, DictConfig):
        for section in (tokenizer, *(tokenizer.get("langs") or {}).values()):  # `langs` are an aggregate tokenizer's
            if isinstance(section, DictConfig):
                if section.get("dir"):
                    section.dir = ""  # the pieces travel inside the archive; NeMo wants the key
                if section.get("type"):
                    section.type = str(section.type).lower()  # as NeMo reads it; its other readers may not
    return stock


def names_data(key: str) -> bool:
    """Whether a key holds files of the training machine, as those of datasets and of their augmentation do.

    Most by their ending: NeMo and its Lhotse loader have a dozen of them (manifest_filepath, noise_path, rir_manifest_path, ...).
    """
    return key in _DATA or key.endswith(("_path", "_paths", "_filepath", "_filepaths"))


def _forget_paths(section: DictConfig) -> None:
    for key in section:
        if names_data(str(key)):
            section[key] = None
        elif isinstance(section[key], DictConfig):
            _forget_paths(section[key])


def load_lightning_checkpoint(path: Path) -> Dict[str, Any]:
    """Reads a Lightning `.ckpt` without running code from it.

    NeMo's hyperparameters are OmegaConf objects and config dataclasses; those and plain containers are all that is let through
    besides tensors.

    Raises:
        TutorError: no such file, unreadable, or it names a class that is none of these.
    """
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not path.is_file():
        raise TutorError(f"there is no file {path}; give a .ckpt or a .nemo file.")
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
        with safe_globals([_harmless_class(name, path) for name in names]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except TutorError:
        raise
    except Exception as error:  # whatever a damaged zip or pickle makes torch raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TutorError(f"{path} is not a readable checkpoint ({first}); it may be truncated, take another.") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "hyper_parameters" not in checkpoint:
        raise TutorError(f"{path} is not a checkpoint of a NeMo model: it has no state_dict with hyper_parameters.")
    return checkpoint


def _harmless_class(name: str, path: Path) -> Any:
    module, _, attribute = name.rpartition(".")
    if name in _HARMLESS or module.split(".")[0] in ("omegaconf", "nemo"):
        found = getattr(importlib.import_module(module), attribute, None)
        config_class = isinstance(found, type) and (dataclasses.is_dataclass(found) or module.startswith("omegaconf."))
        if found is not None and (name in _HARMLESS or config_class):
            return found
    raise TutorError(f"{path} wants to load {name}, which is no part of a NeMo model's checkpoint; it was not opened.")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder inside `folder`; at the end its files are renamed into `folder`, after an error none is."""
    with staged_in(folder) as stages:
        yield stages[folder]


@contextmanager
def staged_in(*folders: Path) -> Iterator[Dict[Path, Path]]:
    """`staged` for several folders, whose files appear together: yields the temporary folder of each."""
    with ExitStack() as stack:
        stages: Dict[Path, Path] = {}
        for folder in dict.fromkeys(folders):
            folder.mkdir(parents=True, exist_ok=True)
            stages[folder] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=".tutornet-")))
        yield stages
        targets = {path: folder / path.name for folder, stage in stages.items() for path in sorted(stage.iterdir())}
        for target in targets.values():
            if target.is_dir() and not target.is_symlink():  # the one name that no file can take
                raise IsADirectoryError(errno.EISDIR, f"{target} is a folder")
        with uninterrupted():
            for path, target in targets.items():
                os.replace(path, target)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts an interrupt or a plain kill off until a step that must not be left half done is over."""
    seen: List[int] = []
    handlers: Dict[int, Any] = {}  # what stood before
    if threading.current_thread() is threading.main_thread():  # no other thread is interrupted, or may set a handler
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # one that is not Python's could not be put back
                handlers[number] = signal.signal(number, lambda got, _: seen.append(got))
    try:
        yield
    finally:
        for masked, handler in handlers.items():
            signal.signal(masked, handler)
    for got in seen:
        if callable(handlers[got]):
            handlers[got](got, None)
        elif handlers[got] == signal.SIG_DFL:
            raise KeyboardInterrupt


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary place for a file and renames it at the end, so that no half-written file stays behind."""
    with staged(path.parent) as folder:
        yield folder / path.name


@contextmanager
def untouched_app_state() -> Iterator[None]:
    """Lets a model be restored inside another's life.

    NeMo keeps the path and the mode of the restore in progress in a global; a second restore would overwrite the first's.
    """
    from nemo.utils.app_state import AppState

    state = AppState()
    kept: Dict[str, Any] = dict(state.__dict__)
    paths: List[str] = list(state._all_model_restore_paths)
    try:
        yield
    finally:
        state._is_model_being_restored = kept["_is_model_being_restored"]
        state._nemo_file_folder = kept["_nemo_file_folder"]
        state._model_restore_path = kept["_model_restore_path"]
        state._all_model_restore_paths = paths


@contextmanager
def quiet_nemo() -> Iterator[None]:
    """Silences NeMo below errors while a model that is only going to be run is restored."""
    from nemo.utils import logging

    with logging.temp_verbosity(logging.ERROR):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Inside, NeMo's encoders see no process group, so they do not ask all ranks for the longest batch of all.

    Convolutional ones ask in every forward, and cannot be told not to. What runs in here is the same on every rank or is nobody
    else's business, and may run where the ranks cannot talk: NCCL refuses the CPU, on which a model is until Lightning moves it.
    """
    from torch import distributed

    there = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = there
