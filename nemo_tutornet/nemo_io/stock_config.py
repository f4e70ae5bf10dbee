# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of NeMo's classes, and the config of an exported student."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError

STOCK_CHAR = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
STOCK_BPE = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
# NeMo writes the name of a class with its defining module. Older checkpoints have the package that re-exports
# the class.
CTC_CLASSES = {"EncDecCTCModel": STOCK_CHAR, "EncDecCTCModelBPE": STOCK_BPE}
# Recognisers that can be teachers: CTC models, hybrids with their CTC head, and transducers and attention
# models with their encoder and their text.
TEACHER_CLASSES = (
    *CTC_CLASSES,
    "EncDecHybridRNNTCTCModel",
    "EncDecHybridRNNTCTCBPEModel",
    "EncDecRNNTModel",
    "EncDecRNNTBPEModel",
    "EncDecMultiTaskModel",
)
# Keys of files without one of the usual endings: a dataset's config, and a beam search's language model and
# phrases.
_DATA = ("input_cfg", "ngram_lm_model", "key_phrases_file")


def ctc_class(config: DictConfig, path: Path, what: str) -> str:
    """Returns the stock CTC class that a checkpoint's config names.

    Args:
        config: the checkpoint's config.
        path: the checkpoint's file, for the message.
        what: use of the checkpoint, for the message.

    Returns:
        `STOCK_CHAR` or `STOCK_BPE`.

    Raises:
        TutorError: the config names another class.
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
    """Rejects a checkpoint that cannot be a teacher.

    Args:
        config: the checkpoint's config.
        path: the checkpoint's file, for the message.

    Raises:
        TutorError: the class is not one of NeMo's CTC, hybrid, transducer and attention recognisers.
    """
    target = target_of(config)
    if not target.startswith("nemo.collections.asr.") or target.rsplit(".", 1)[-1] not in TEACHER_CLASSES:
        raise TutorError(
            f"{path} is a checkpoint of {target}; a teacher must be a NeMo recogniser with an encoder and "
            "frames "
            f"({', '.join(TEACHER_CLASSES)}), so give the file of one."
        )


def target_of(config: DictConfig) -> str:
    """Returns the class that a config names, for messages and comparison. The class is never imported.

    Args:
        config: a model's config.

    Returns:
        Name of the class, or a phrase for the message if the config does not name one.
    """
    try:
        return str(config.get("target", "nothing"))
    except OmegaConfBaseException:
        return "a class that its config does not name"


def stock_config(config: DictConfig) -> DictConfig:
    """Converts a student's config to the config of the exported model.

    It names NeMo's class, and has no `tutor:` section and no path of the training machine.

    Args:
        config: the config of the model in training; it is not changed.

    Returns:
        A new config.
    """
    stock = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(stock, DictConfig)
    stock.pop("tutor", None)
    stock.target = CTC_CLASSES.get(str(stock.get("target")).rsplit(".", 1)[-1], stock.get("target"))
    # A section `decoding` can have the path of a beam search's language model.
    for name in ("train_ds", "validation_ds", "test_ds", "decoding"):
        section = stock.get(name)
        if isinstance(section, DictConfig):
            _forget_paths(section)
    if stock.target == STOCK_BPE and not isinstance(stock.get("validation_ds"), DictConfig):
        stock.validation_ds = {"manifest_filepath": None}  # NeMo's transcribe() reads this section
    vocabulary = OmegaConf.select(stock, "decoder.vocabulary")
    if stock.target == STOCK_CHAR and vocabulary:
        # NeMo's script for fine-tuning reads `labels`, and NeMo's change_vocabulary does not update them.
        stock.labels = list(vocabulary)
    tokenizer = stock.get("tokenizer")
    if isinstance(tokenizer, DictConfig):
        # An aggregate tokenizer has a section for each language in `langs`.
        for section in (tokenizer, *(tokenizer.get("langs") or {}).values()):
            if isinstance(section, DictConfig):
                if section.get("dir"):
                    section.dir = ""  # the pieces are inside the archive, but NeMo requires the key
                if section.get("type"):
                    section.type = str(section.type).lower()  # NeMo ignores case, other readers may not
    return stock


def names_data(key: str) -> bool:
    """Tells whether a key of a dataset or its augmentation contains paths of the training machine.

    Most of these keys are recognised by their ending, because NeMo and its Lhotse loader have a dozen of them
    (manifest_filepath, noise_path, rir_manifest_path, ...).

    Args:
        key: the key.

    Returns:
        True if the key contains paths.
    """
    return key in _DATA or key.endswith(("_path", "_paths", "_filepath", "_filepaths"))


def _forget_paths(section: DictConfig) -> None:
    for key in section:
        if names_data(str(key)):
            section[key] = None
        elif isinstance(section[key], DictConfig):
            _forget_paths(section[key])
