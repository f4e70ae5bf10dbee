# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Loading of the student to export, from a `.ckpt`, a `.nemo`, or a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.errors import TutorError, first_line, reason_of
from nemo_tutornet.export.averaging import average_checkpoints
from nemo_tutornet.export.batch_norm_statistics import batch_norms, estimate_statistics, training_manifests
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.config_limits import check_numbers
from nemo_tutornet.nemo_io.isolation import preserve_app_state, suppress_nemo_logs
from nemo_tutornet.nemo_io.lightning_ckpt import load_lightning_checkpoint
from nemo_tutornet.nemo_io.model_size import limit_parameters
from nemo_tutornet.nemo_io.restore import restore_ctc
from nemo_tutornet.nemo_io.run_checkpoints import choose_checkpoints, ema_copy
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, ctc_class
from nemo_tutornet.nemo_io.tokenizer_files import check_archive_tokenizer, check_checkpoint_tokenizer
from nemo_tutornet.nemo_io.weights import check_finite
from nemo_tutornet.utils.interpolations import check_interpolations
from nemo_tutornet.utils.progress import PartReport

# Matches an interpolation that calls a resolver (`${oc.env:HOME}`). The resolver's name may itself be an
# interpolation. An interpolation of a key has no colon.
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


def student_from_model(source: Any, copy: Path) -> Any:
    """Loads a copy of a model's weights as a student.

    Args:
        source: a NeMo CTC model, which does not change.
        copy: a `.nemo` file to write. It must exist until the student is saved, because NeMo reads a subword
            tokenizer from it.

    Raises:
        TutorError: it is no NeMo model, or not a CTC model.
    """
    if not hasattr(source, "save_to"):
        raise TutorError(
            f"a {type(source).__name__} cannot be exported; give a .ckpt, a .nemo or a NeMo CTC model."
        )
    with suppress_nemo_logs():
        source.save_to(str(copy))
    return _from_nemo(copy)


def student_from_file(source: Path) -> tuple[Any, str | None]:
    """Loads a student from a `.ckpt` or a `.nemo`.

    Args:
        source: the file.

    Returns:
        The student, and a sentence that its user should know, if any.

    Raises:
        TutorError: the file cannot be read, is not a CTC model, or its weights do not fit NeMo's class.
    """
    return _from_ckpt(source) if source.suffix == ".ckpt" else (_from_nemo(source), None)


def _from_nemo(source: Path) -> Any:
    archive = NemoArchive(source)
    config = _resolved(archive.config, source)
    if "model" in config:
        raise TutorError(
            f"{source} has a section `model` in its config, which NeMo would restore instead of the rest; "
            "take another."
        )
    if ctc_class(config, source, "a student") == STOCK_BPE:
        check_archive_tokenizer(archive, packed=True)
    return restore_ctc(archive)


def _resolved(config: DictConfig, source: Path) -> DictConfig:
    """Resolves the interpolations of a config, as NeMo does when it saves one.

    Raises:
        TutorError: an interpolation calls a resolver, whose value would be computed on this machine, or the
            config cannot be resolved.
    """
    content = OmegaConf.to_container(config, resolve=False)
    for key, text in _texts(content):
        if _RESOLVER.search(text):
            raise TutorError(
                f"{source} has {text!r} for {key} in its config, which would be computed on this machine and "
                "written into the student; if that is wanted, restore the model and save it with NeMo, which "
                "writes the value, and export that."
            )
    try:
        check_interpolations(content)
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise TutorError(f"{source} has a config that cannot be resolved: {first_line(error)}.") from None
    assert isinstance(resolved, DictConfig)
    return resolved


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for child, value in children:
        yield from _texts(value, f"{key}.{child}".lstrip("."))


@dataclass(frozen=True)
class AverageInfo:
    """What an averaged student was made of.

    Attributes:
        checkpoints: the files, in the order of their steps.
        steps: optimizer steps of the run at each of them.
        statistics: on how much audio batch norm statistics were estimated anew, in words; None for a student
            without batch norm, and for a single checkpoint.
    """

    checkpoints: list[Path]
    steps: list[int]
    statistics: str | None = None

    @property
    def note(self) -> str:
        """What was averaged, in words."""
        count = len(self.checkpoints)
        mean = (
            f"the mean of {count} checkpoints" if count > 1 else f"the weights of {self.checkpoints[0].name}"
        )
        steps = ", ".join(map(str, self.steps))
        statistics = f"; batch norm statistics of {self.statistics}" if self.statistics else ""
        return f"{mean} (step{'s' if count > 1 else ''} {steps}){statistics}"


def averaged_student(
    source: Path, which: str, statistics: Path | None, report: PartReport
) -> tuple[Any, str | None, AverageInfo]:
    """Loads the mean of a run's checkpoints as a student, with batch norm statistics of its own.

    Args:
        source: the run's folder.
        which: `last-K` or `best-K`.
        statistics: manifest of the audio for the statistics; None for the run's training set.
        report: shows what is being done.

    Returns:
        The student, a sentence that its user should know, if any, and what was averaged.

    Raises:
        TutorError: there are fewer checkpoints, they do not fit together, or the audio cannot be read.
    """
    chosen = choose_checkpoints(source, which)
    paths = [checkpoint.path for checkpoint in chosen]
    checkpoint = average_checkpoints(paths, report)
    model, note = _from_checkpoint(checkpoint, paths[-1])
    words = None
    if batch_norms(model) and (len(paths) > 1 or statistics is not None):
        manifests = [statistics] if statistics is not None else training_manifests(model.cfg)
        utterances, seconds = estimate_statistics(model, manifests, report)
        words = f"{utterances} utterances, {seconds / 60:.1f} min"
    return model, note, AverageInfo(paths, [checkpoint.step for checkpoint in chosen], words)


def _from_ckpt(source: Path) -> tuple[Any, str | None]:
    model, note = _from_checkpoint(load_lightning_checkpoint(source), source)
    ema = ema_copy(source)
    if ema is not None and note is None:
        note = (
            f"{source.name} holds the weights of its last step; those that NeMo's EMA averaged are in "
            f"{ema.name}."
        )
    return model, note


def _from_checkpoint(checkpoint: Mapping[str, Any], source: Path) -> tuple[Any, str | None]:
    hyper_parameters = checkpoint["hyper_parameters"]
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, (Mapping, DictConfig)) else None
    if config is None:
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its hyper_parameters have no cfg.")
    try:
        config = OmegaConf.create(config) if isinstance(config, (dict, DictConfig)) else None
    except Exception:  # a pickled config may have any content
        config = None
    if not isinstance(config, DictConfig):
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its cfg is not a mapping.")
    config = _resolved(config, source)
    target = ctc_class(config, source, "a student")
    if target == STOCK_BPE:
        check_checkpoint_tokenizer(config, source)
    tutor = checkpoint.get("tutor")
    random = isinstance(tutor, Mapping) and tutor.get("decoder_is_random") is True
    note = (
        f"no stage had trained the decoder of {source} yet, and it could not be composed, so the student may "
        "write noise; continue its training."
        if random
        else None
    )
    return _fresh(config, target, checkpoint["state_dict"], source), note


def _fresh(config: DictConfig, target: str, state: dict[str, Any], source: Path) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE

    config.target = target
    model_class = EncDecCTCModelBPE if target == STOCK_BPE else EncDecCTCModel
    data = {name: config.pop(name) for name in ("train_ds", "validation_ds", "test_ds") if name in config}
    check_numbers(config, str(source))
    try:
        with preserve_app_state(), suppress_nemo_logs(), limit_parameters(source.stat().st_size) as limit:
            model = model_class(cfg=config)
        model.load_state_dict(state)
    except Exception as error:  # a surplus key, or any error that NeMo raises because of the config
        reason = "its config describes more parameters than the file holds"
        reason = reason if limit.exceeded else reason_of(error)
        raise TutorError(f"{source} does not fit NeMo's {model_class.__name__}: {reason}.") from error
    check_finite(model, source)
    # Put the dataset sections back: they were removed only so that NeMo does not open the data here.
    OmegaConf.set_struct(model.cfg, False)
    for name, section in data.items():
        model.cfg[name] = section
    return model.eval()
