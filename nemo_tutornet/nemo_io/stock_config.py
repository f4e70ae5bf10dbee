# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""NeMo's classes by name, and a student's config as it is exported."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError

STOCK_CHAR = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
STOCK_BPE = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
# NeMo writes a class by its defining module, older checkpoints by the package that re-exports it.
CTC_CLASSES = {"EncDecCTCModel": STOCK_CHAR, "EncDecCTCModelBPE": STOCK_BPE}
# Recognisers that can teach: those, hybrids through their CTC head, and transducers by their encoder alone.
TEACHER_CLASSES = (
    *CTC_CLASSES,
    "EncDecHybridRNNTCTCModel",
    "EncDecHybridRNNTCTCBPEModel",
    "EncDecRNNTModel",
    "EncDecRNNTBPEModel",
)
# Keys of files that do not end as such: of datasets, and of a beam search's language model and its phrases.
_DATA = ("input_cfg", "ngram_lm_model", "key_phrases_file")


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
            f"{path} is a checkpoint of {target}; a teacher must be a NeMo recogniser with an encoder and "
            "frames "
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
    for name in (
        "train_ds",
        "validation_ds",
        "test_ds",
        "decoding",
    ):  # a beam search names its language model
        section = stock.get(name)
        if isinstance(section, DictConfig):
            _forget_paths(section)
    if stock.target == STOCK_BPE and not isinstance(stock.get("validation_ds"), DictConfig):
        stock.validation_ds = {"manifest_filepath": None}  # NeMo's transcribe() looks into it
    vocabulary = OmegaConf.select(stock, "decoder.vocabulary")
    if stock.target == STOCK_CHAR and vocabulary:
        stock.labels = list(
            vocabulary
        )  # NeMo's script for fine-tuning reads them; its change_vocabulary leaves the old ones
    tokenizer = stock.get("tokenizer")
    if isinstance(tokenizer, DictConfig):
        for section in (
            tokenizer,
            *(tokenizer.get("langs") or {}).values(),
        ):  # `langs` are an aggregate tokenizer's
            if isinstance(section, DictConfig):
                if section.get("dir"):
                    section.dir = ""  # the pieces travel inside the archive; NeMo wants the key
                if section.get("type"):
                    section.type = str(section.type).lower()  # as NeMo reads it; its other readers may not
    return stock


def names_data(key: str) -> bool:
    """Whether a key holds files of the training machine, as those of datasets and of their augmentation do.

    Most by their ending: NeMo and its Lhotse loader have a dozen of them (manifest_filepath, noise_path,
    rir_manifest_path, ...).
    """
    return key in _DATA or key.endswith(("_path", "_paths", "_filepath", "_filepaths"))


def _forget_paths(section: DictConfig) -> None:
    for key in section:
        if names_data(str(key)):
            section[key] = None
        elif isinstance(section[key], DictConfig):
            _forget_paths(section[key])
