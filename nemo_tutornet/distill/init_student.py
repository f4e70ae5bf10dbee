# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Initialises a student from the layers of its teacher (`tutor.init`), by blocks or by layers of equal shape.

Nothing here draws a random number, so a training has the same data with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nemo.utils import logging
from torch import Tensor, nn

from nemo_tutornet.config import TutorConfig
from nemo_tutornet.distill.block_fit import UTTERANCES, can_be_fitted, fit_blocks, last_blocks
from nemo_tutornet.distill.distiller import Distiller
from nemo_tutornet.distill.folded_batch_norm import folded_batch_norms, unfolded_state
from nemo_tutornet.distill.matching import LayerPair
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.alignment import label_order
from nemo_tutornet.functional.block_selection import Geometry, check_blocks, first_difference, select_blocks
from nemo_tutornet.nemo_io.archive import NemoArchive
from nemo_tutornet.nemo_io.layers import ENCODER
from nemo_tutornet.nemo_io.model_info import describe_model
from nemo_tutornet.nemo_io.restore import ctc_head, labels_of, locate, pointwise_decoder, restore_ctc
from nemo_tutornet.nemo_io.stock_config import check_teacher
from nemo_tutornet.teachers.targets import Teacher

KEY = "model.tutor.init"
_REMEDY = f"give the student blocks and layers of the teacher's shapes, or leave {KEY} out"
_FRONT_END = {"mel_bins": "mel bins", "window_ms": "window in ms", "stride_ms": "stride in ms"}
_OTHER_WEIGHTS = ("init_from_nemo_model", "init_from_pretrained_model", "init_from_ptl_ckpt")


@dataclass(frozen=True)
class InitReport:
    """What a student was initialised from.

    Attributes:
        copied: what was copied from where, as text.
        warnings: problems worth knowing before a long run.
    """

    copied: str
    warnings: tuple[str, ...]

    def log(self) -> None:
        """Logs the report."""
        logging.info(f"The student is initialised from its teacher: {self.copied}.")
        for warning in self.warnings:
            logging.warning(warning)


@dataclass(frozen=True)
class _Stack:
    """The repeated part of an encoder.

    Attributes:
        name: name of the module that holds the blocks, in the encoder.
        unit: what a block is called.
        blocks: geometry of each block.
        rest: geometry of everything else in the encoder.
    """

    name: str
    unit: str
    blocks: list[Geometry]
    rest: Geometry


def init_student(student: Any, distiller: Distiller, utterances: int = UTTERANCES) -> InitReport:
    """Copies the teacher's weights into a student, as `tutor.init` says.

    Args:
        student: a NeMo CTC model. Its encoder is overwritten, and its decoder where labels and shapes are
            equal.
        distiller: has the teacher and the projection. The projection becomes the identity where it maps a
            copy to its original.
        utterances: most utterances of the training set that blocks are fitted on.

    Returns:
        What was copied.

    Raises:
        TutorError: the teacher's weights are not at hand, or do not fit.
    """
    config, teacher = distiller.config, teacher_model(distiller.teacher, distiller.config)
    mine, theirs = _stack(student.encoder), _stack(teacher.encoder)
    blocks = _match_encoders(student, teacher, mine, theirs, config.init.layers)
    count = len(theirs.blocks)
    fit = config.init.fit and can_be_fitted(student, blocks, count)
    folded = _copy_encoder(student, teacher, mine, blocks)
    copied = f"{mine.unit}s {_range(len(blocks))} <- {', '.join(map(str, blocks))}"
    fitted = fit_blocks(student, teacher, blocks, utterances) if fit else 0
    if fitted:
        copied += f"; {fitted} {mine.unit}s fitted to the outputs of the teacher's {mine.unit}s "
        copied += ", ".join(map(str, last_blocks(blocks, count)))
    elif folded:
        copied += f"; {folded} batch norms un-folded"
    copied += f"; {_copy_decoder(student, teacher)}"
    copies, outputs = 0, last_blocks(blocks, count) if fitted else blocks
    for pair, projection in zip(distiller.match.pairs, distiller.projections, strict=True):
        if config.uses("rkd") and _is_copy(pair, mine, outputs, count):
            copies += 1
            with torch.no_grad():
                nn.init.dirac_(projection.weight)
                assert projection.bias is not None
                projection.bias.zero_()
    if copies:
        every = "the projection starts" if copies == 1 else f"{copies} projections start"
        copied += f"; {every} as the identity"
    return InitReport(copied, tuple(_front_end_warnings(student, teacher)))


def check_other_weights(cfg: Any, config: TutorConfig | None) -> None:
    """Refuses `tutor.init` beside NeMo's keys that initialise a model from another one.

    Args:
        cfg: the whole config of the training script, or the part of it with NeMo's keys.
        config: the checked `tutor:` section.

    Raises:
        TutorError: both are set.
    """
    other = next((key for key in _OTHER_WEIGHTS if cfg.get(key) is not None), None)
    if config is not None and config.init.source is not None and other is not None:
        raise TutorError(
            f"{KEY} and {other} are both set, and each would overwrite the other's weights; leave one of "
            "them "
            "out."
        )


def teacher_model(teacher: Teacher, config: TutorConfig) -> Any:
    """Returns the teacher's NeMo model, which is restored from its file if the teacher is cached.

    Raises:
        TutorError: the file cannot be restored, or the cache was built with another one.
    """
    model = getattr(teacher, "model", None)
    if model is not None:
        return model
    archive = NemoArchive(locate(config.teacher.model_path))
    if teacher.sha256 is not None and archive.sha256 != teacher.sha256:
        raise TutorError(
            f"model.tutor.teacher.cache was built with another teacher than {archive.path} (sha256 "
            f"{teacher.sha256}), whose weights {KEY} copies; give the file of that teacher, or build the "
            "cache "
            "again."
        )
    check_teacher(archive.config, archive.path)
    return restore_ctc(archive)


# --- The encoder


def _stack(encoder: nn.Module) -> _Stack:
    """Finds the blocks of an encoder.

    Raises:
        TutorError: the encoder is neither convolutional nor of the Conformer family.
    """
    for name, unit, kind in (("encoder", "block", nn.Sequential), ("layers", "layer", nn.ModuleList)):
        blocks = getattr(encoder, name, None)
        if isinstance(blocks, kind):
            whole = _geometry(encoder)
            rest = {key: shape for key, shape in whole.items() if not key.startswith(f"{name}.")}
            return _Stack(name, unit, [_geometry(block) for block in blocks], rest)
    raise TutorError(
        f"{KEY} knows the blocks of QuartzNet, Jasper and Citrinet and the layers of Conformer and "
        f"FastConformer, but an encoder here is a {type(encoder).__name__}; leave {KEY} out."
    )


def _geometry(module: nn.Module) -> Geometry:
    """Returns the shapes of a module's tensors, and the strides and dilations of its convolutions."""
    geometry = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.conv._ConvNd):
            geometry[f"{name}.stride"], geometry[f"{name}.dilation"] = (
                tuple(part.stride),
                tuple(part.dilation),
            )
    return geometry


def _match_encoders(
    student: Any, teacher: Any, mine: _Stack, theirs: _Stack, layers: Sequence[int] | None
) -> list[int]:
    """Returns the teacher's block for each of the student's.

    Raises:
        TutorError: a block, or something else in the encoder, does not fit.
    """
    if mine.name != theirs.name:
        kinds = [type(model.encoder).__name__ for model in (student, teacher)]
        raise TutorError(
            f"{KEY}: the student's encoder is a {kinds[0]} and the teacher's a {kinds[1]}, which have no "
            f"layers in common; take a teacher of the student's family, or leave {KEY} out."
        )
    difference = first_difference(mine.rest, theirs.rest)
    if difference is not None:
        raise TutorError(f"{KEY}: {ENCODER}.{difference}; {_REMEDY}.")
    try:
        if layers is None:
            return select_blocks(mine.blocks, theirs.blocks, mine.unit)
        check_blocks(layers, mine.blocks, theirs.blocks, mine.unit)
    except TutorError as error:
        key = KEY if layers is None else f"{KEY}.layers"
        raise TutorError(f"{key}: {str(error).rstrip('.')}; {_REMEDY}.") from None
    return list(layers)


def _copy_encoder(student: Any, teacher: Any, stack: _Stack, blocks: Sequence[int]) -> int:
    """Copies the blocks and everything else of the encoder.

    Returns:
        The number of batch norms of the student that were un-folded.
    """
    source: dict[str, Tensor] = dict(teacher.encoder.state_dict())
    used = tuple(f"{stack.name}.{j}." for j in set(blocks))
    outside = f"{stack.name}."
    folded = [
        path
        for path in folded_batch_norms(teacher.encoder)
        if path.startswith(used) or not path.startswith(outside)
    ]
    if folded:
        source.update(unfolded_state(teacher, student, folded))
    origin = _origins(student.encoder.state_dict(), stack.name, blocks)
    student.encoder.load_state_dict({name: source[theirs] for name, theirs in origin.items()})
    unfolded = {f"{path}.running_mean" for path in folded}
    return sum(theirs in unfolded for theirs in origin.values())


def _origins(state: Mapping[str, Tensor], name: str, blocks: Sequence[int]) -> dict[str, str]:
    """Returns the teacher's name for each tensor of the student's encoder."""
    origins = {}
    for key in state:
        parts = key.split(".")
        if parts[0] == name:
            parts[1] = str(blocks[int(parts[1])])
        origins[key] = ".".join(parts)
    return origins


def _range(count: int) -> str:
    return "0" if count == 1 else f"0-{count - 1}"


# --- The decoder, the projection and the front end


def _copy_decoder(student: Any, teacher: Any) -> str:
    """Copies the teacher's CTC decoder where labels and shapes are equal.

    Returns:
        What was done, as text.
    """
    head = ctc_head(teacher)
    mine, theirs = pointwise_decoder(student.decoder), pointwise_decoder(head)
    if mine is None or theirs is None:
        owner = "student" if mine is None else "teacher"
        return f"decoder not copied: the {owner}'s is not a single 1x1 convolution"
    try:
        order = label_order(labels_of(student, student.decoder), labels_of(teacher, head))
    except TutorError as error:
        return f"decoder not copied: {str(error).rstrip('.')}"
    state = theirs.state_dict()
    difference = first_difference(_geometry(mine), _geometry(theirs))
    if difference is not None:
        return f"decoder not copied: {difference}"
    if order is not None:
        state = {name: value[list(order)] for name, value in state.items()}
    mine.load_state_dict(state)
    return "decoder copied" if order is None else "decoder copied, its rows in the student's order"


def _is_copy(pair: LayerPair, stack: _Stack, blocks: Sequence[int], count: int) -> bool:
    """Tells whether a guided layer begins as its hint layer: as a copy, or fitted to it."""
    copies = {f"{ENCODER}.{stack.name}.{i}": f"{ENCODER}.{stack.name}.{j}" for i, j in enumerate(blocks)}
    if blocks[-1] == count - 1:
        copies[ENCODER] = ENCODER
    return copies.get(pair.guided.path) == pair.hint.path and pair.guided.width == pair.hint.width


def _front_end_warnings(student: Any, teacher: Any) -> list[str]:
    mine, theirs = (vars(describe_model(model).front_end) for model in (student, teacher))
    different = [
        f"{_FRONT_END.get(name, name)} {value} against {theirs[name]}"
        for name, value in mine.items()
        if theirs[name] != value
    ]
    if not different:
        return []
    return [
        f"{KEY} copies layers of a teacher with another front end ({', '.join(different)}), so "
        "the copied first layers see other features than they were trained on; give model.preprocessor the "
        "teacher's values."
    ]
