# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Matches the layers, frames and labels of a teacher with those of a student, before training.

Legend: `B` utterances, `S` frames of a layer of the student, `T` of the teacher, `D` width, `V` labels with
the blank last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from nemo_tutornet.config import TutorConfig
from nemo_tutornet.errors import TutorError
from nemo_tutornet.functional.alignment import (
    check_lengths,
    covered_frames,
    label_order,
    pool_hidden,
    pool_posteriors,
    repeat_frames,
    teacher_frames,
)
from nemo_tutornet.nemo_io.layers import CHECKED_SECONDS, ENCODER, Layer, encode_silence, hop_of, measure
from nemo_tutornet.nemo_io.restore import labels_of, pointwise_decoder
from nemo_tutornet.teachers.adapter import AdapterInfo, upsampling_for
from nemo_tutornet.teachers.targets import Teacher

_NO_HEAD = "the teacher has no CTC head (it is a transducer or an attention model)"


@dataclass(frozen=True)
class LayerPair:
    """Two layers that RKD compares.

    Attributes:
        guided: layer of the student.
        hint: layer of the teacher.
    """

    guided: Layer
    hint: Layer


@dataclass(frozen=True)
class ModelMatch:
    """The correspondence between the layers, frames and labels of a teacher and a student.

    Attributes:
        student_encoder: output layer of the student's encoder.
        guided: guided layer of the student.
        heads: layers of the student that have a head of their own (`tutor.skd.intermediate_layers`).
        teacher_encoder: output layer of the teacher's encoder.
        hint: hint layer of the teacher.
        label_order: index of the teacher's output for each of the student's outputs. None if the orders are
            equal, or if the labels cannot be matched.
        frame_weighting: `nonblank`, `energy` or `uniform`; `auto` is already resolved.
        no_warm_start: the reason why the decoder cannot be composed; None if it can.
        further_pairs: the pairs of layers of `tutor.rkd.pairs`.
    """

    student_encoder: Layer
    guided: Layer
    heads: tuple[Layer, ...]
    teacher_encoder: Layer
    hint: Layer
    label_order: tuple[int, ...] | None
    frame_weighting: str
    no_warm_start: str | None
    further_pairs: tuple[LayerPair, ...] = ()

    @property
    def pairs(self) -> tuple[LayerPair, ...]:
        """All pairs of layers that RKD compares, guided and hint layer first."""
        return (LayerPair(self.guided, self.hint), *self.further_pairs)

    def align_posteriors(
        self, log_probs: Tensor, teacher_lengths: Tensor, frames: int, layer: Layer
    ) -> Tensor:
        """Maps the teacher's log-probabilities to the frames of a student's layer and the student's labels.

        Args:
            log_probs: log-probabilities of the teacher `[B, T, V]`.
            teacher_lengths: valid frames of the teacher's encoder `[B]`.
            frames: `S`, number of frames of the student's layer.
            layer: layer of the student.

        Returns:
            Log-probabilities `[B, S, V]`.
        """
        return self._on_frames_of(layer, self.in_students_order(log_probs), teacher_lengths, frames)

    def align_blank(self, log_probs: Tensor, teacher_lengths: Tensor, frames: int, layer: Layer) -> Tensor:
        """Maps the log-probability of the blank alone, the last of `align_posteriors`.

        The blank is the last output of a teacher and of a student, whatever the order of their labels.

        Args:
            log_probs: log-probabilities of the teacher `[B, T, V]`.
            teacher_lengths: valid frames of the teacher's encoder `[B]`.
            frames: `S`, number of frames of the student's layer.
            layer: layer of the student.

        Returns:
            Log-probabilities `[B, S, 1]`.
        """
        return self._on_frames_of(layer, log_probs[..., -1:], teacher_lengths, frames)

    def _on_frames_of(self, layer: Layer, log_probs: Tensor, teacher_lengths: Tensor, frames: int) -> Tensor:
        ratio = layer.frame_ms / self.teacher_encoder.frame_ms
        if ratio > 1:
            return pool_posteriors(log_probs, *covered_frames(frames, teacher_lengths, ratio))
        return repeat_frames(log_probs, teacher_frames(frames, teacher_lengths, ratio), dim=1)

    def in_students_order(self, log_probs: Tensor) -> Tensor:
        """Puts the teacher's log-probabilities `[B, T, V]` into the order of the student's labels."""
        if self.label_order is None:
            return log_probs
        return log_probs[..., _order_on(self.label_order, log_probs.device)]

    def align_hidden(
        self, hidden: Tensor, teacher_lengths: Tensor, frames: int, pair: LayerPair | None = None
    ) -> Tensor:
        """Maps the hint layer to the frames of the guided layer.

        Args:
            hidden: output of the hint layer `[B, D, T]`.
            teacher_lengths: valid frames of the teacher's encoder `[B]`.
            frames: `S`, number of frames of the guided layer.
            pair: the two layers; None is the first of `pairs`.

        Returns:
            Output of the hint layer `[B, D, S]`.
        """
        pair = pair or self.pairs[0]
        lengths = layer_lengths(teacher_lengths, self.teacher_encoder, pair.hint, hidden.shape[2])
        ratio = pair.guided.frame_ms / pair.hint.frame_ms
        if ratio > 1:
            return pool_hidden(hidden, *covered_frames(frames, lengths, ratio))
        return repeat_frames(hidden, teacher_frames(frames, lengths, ratio), dim=2)


@lru_cache(maxsize=16)
def _order_on(order: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns an order of labels on a device, to which it is copied once."""
    with torch.inference_mode(False):  # a validation may be the first that needs it
        return torch.tensor(order, device=device)


def layer_lengths(encoder_lengths: Tensor, encoder: Layer, layer: Layer, frames: int) -> Tensor:
    """Returns the number of frames of a layer that are certainly valid, from the lengths of the encoder.

    A stride of 2 gives the same number of frames for `2 n - 1` as for `2 n` input frames. The last input
    frame may then be padding, so it is not counted. The losses of an utterance therefore do not depend on the
    other utterances in its batch.

    Args:
        encoder_lengths: valid frames of the encoder's output `[B]`.
        encoder: output layer of the encoder.
        layer: the layer.
        frames: padded number of frames of the layer.

    Returns:
        Lengths `[B]`, from 0 to `frames`.
    """
    if layer.frame_ms == encoder.frame_ms:
        return encoder_lengths
    return (((encoder_lengths - 1) * (encoder.frame_ms / layer.frame_ms)).floor().long() + 1).clamp(
        min=0, max=frames
    )


def match_models(student: Any, teacher: Teacher, config: TutorConfig) -> ModelMatch:
    """Matches a student with its teacher, and raises an error for a pair that cannot be distilled.

    Args:
        student: a NeMo CTC model. It is run on silence in eval mode, and its mode is then restored.
        teacher: the student's teacher.
        config: the checked `tutor:` section.

    Returns:
        The matched layers, frames and labels.

    Raises:
        TutorError: the sample rates differ, a layer does not exist, the adapter was made for a student with
            other labels or frames, the student's frames are longer than the teacher's without `pool_frames`,
            the lengths of the encoders' outputs disagree, SKD is used with different label sets, or
            `min_confidence` is set with a teacher without posteriors, which has no confidence.
    """
    sample_rate = int(student.preprocessor._sample_rate)
    if sample_rate != teacher.sample_rate:
        raise TutorError(
            f"the student's sample rate (model.preprocessor.sample_rate) is {sample_rate} Hz, the teacher's "
            "is "
            f"{teacher.sample_rate} Hz; both read the same audio, so give the student the teacher's rate or "
            "take another teacher."
        )
    silence = partial(encode_silence, student)
    layer_of = partial(measure, student, run=silence, hop=hop_of(student))
    with _eval_mode(student):
        encoder = layer_of(ENCODER)
        path = config.rkd.guided_layer
        guided = (
            encoder if path in (None, ENCODER) else layer_of(str(path), key="model.tutor.rkd.guided_layer")
        )
        heads = tuple(
            layer_of(path, key=f"model.tutor.skd.intermediate_layers[{i}]")
            for i, path in enumerate(config.skd.intermediate_layers)
        )
        further_guided = [
            layer_of(pair.guided_layer, key=f"model.tutor.rkd.pairs[{i}].guided_layer")
            for i, pair in enumerate(config.rkd.pairs if config.uses("rkd") else [])
        ]
        lengths = [silence(seconds) for seconds in CHECKED_SECONDS]
    order, mismatch = _match_labels(student, teacher)
    if teacher.adapter is not None:
        _check_adapter(teacher.adapter, encoder, mismatch)
    hint = teacher.hint_layer
    matches = [("skd", encoder, teacher.encoder_layer, "encoder"), ("rkd", guided, hint, "guided layer")]
    matches += [("skd", head, teacher.encoder_layer, f"layer {head.path!r}") for head in heads]
    pairs = [LayerPair(*pair) for pair in zip(further_guided, teacher.further_hint_layers, strict=True)]
    matches += [("rkd", pair.guided, pair.hint, f"layer {pair.guided.path!r}") for pair in pairs]
    for loss, layer, other, where in matches:
        if config.uses(loss) and layer.frame_ms > other.frame_ms and not config.pool_frames:
            raise TutorError(
                f"a frame of the student's {where} lasts {layer.frame_ms:g} ms, longer than the teacher's "
                f"{other.frame_ms:g} ms ({other.path!r}), so several teacher frames fall on one student "
                "frame; set model.tutor.pool_frames to true to pool them, or take shorter frames."
            )
        if loss == "skd" and config.uses("skd") and config.skd.alignment == "pool_student":
            _check_shorter_frames(layer, other)
    teacher_lengths = [teacher.frames_of(seconds) for seconds in CHECKED_SECONDS]
    check_lengths(
        lengths,
        teacher_lengths,
        encoder.frame_ms / teacher.encoder_layer.frame_ms,
        upsampling=1 if teacher.adapter is None else teacher.adapter.upsampling,
    )
    if mismatch and config.uses("skd"):
        adapt = "make an adapter of this teacher with `nemo-tutornet adapt`"
        remedy = f"or {adapt}." if not teacher.has_posteriors else f"{adapt}, or give the student its labels."
        raise TutorError(
            f"SKD compares posteriors, but {mismatch.rstrip('.')}; RKD and pseudo-labels still work: leave "
            f"skd out of model.tutor.stages, {remedy}"
        )
    if not teacher.has_posteriors and config.uses("pseudo") and config.pseudo_labels.min_confidence > 0:
        raise TutorError(
            f"model.tutor.pseudo_labels.min_confidence is set, but {_NO_HEAD}, so its hypotheses have no "
            "confidence here; leave it at 0 or filter by max_wer."
        )
    no_warm_start = None
    if mismatch:
        remedy = "an adapter (`nemo-tutornet adapt`) gives the teacher the student's labels and frames."
        no_warm_start = f"{mismatch.rstrip('.')}; {remedy}"
    return ModelMatch(
        student_encoder=encoder,
        guided=guided,
        heads=heads,
        teacher_encoder=teacher.encoder_layer,
        hint=hint,
        label_order=order,
        frame_weighting=resolve_frame_weighting(
            config.rkd.frame_weighting, teacher.has_posteriors, teacher.ends_in_layer_norm
        ),
        no_warm_start=no_warm_start or _no_warm_start(student, teacher, guided, hint),
        further_pairs=tuple(pairs),
    )


def _check_shorter_frames(layer: Layer, teacher: Layer) -> None:
    """Refuses to pool a student's frames that are longer than the teacher's."""
    if layer.frame_ms > teacher.frame_ms:
        raise TutorError(
            f"model.tutor.skd.alignment is pool_student, but a frame of the student's layer {layer.path!r} "
            f"lasts {layer.frame_ms:g} ms, longer than the teacher's {teacher.frame_ms:g} ms; set the "
            "alignment to frames or occurrences."
        )


def _check_adapter(adapter: AdapterInfo, encoder: Layer, mismatch: str | None) -> None:
    """Refuses an adapter that was made for a student with other labels or other frames."""
    if mismatch:
        raise TutorError(
            f"model.tutor.teacher.adapter was made for a student with other labels: {mismatch.rstrip('.')}; "
            "make one for this student with `nemo-tutornet adapt`."
        )
    teacher_ms = adapter.frame_ms * adapter.upsampling
    if upsampling_for(teacher_ms, encoder.frame_ms) != adapter.upsampling:
        raise TutorError(
            f"model.tutor.teacher.adapter has frames of {adapter.frame_ms:g} ms, and the student's last "
            f"{encoder.frame_ms:g} ms; make an adapter for this student with `nemo-tutornet adapt`."
        )


def _match_labels(student: Any, teacher: Teacher) -> tuple[tuple[int, ...] | None, str | None]:
    """Returns the order of the labels (see `ModelMatch`), and the reason if the labels cannot be matched."""
    if not teacher.has_posteriors:
        return None, f"{_NO_HEAD} and so no posteriors on frames."
    try:
        return label_order(labels_of(student, student.decoder), teacher.labels), None
    except TutorError as error:
        return None, str(error)


def resolve_frame_weighting(asked: str, has_posteriors: bool, ends_in_layer_norm: bool) -> str:
    """Returns the frame weighting for a teacher and its hint layer, with `auto` resolved.

    Args:
        asked: the config's value: `auto`, `nonblank`, `energy` or `uniform`.
        has_posteriors: whether the teacher has posteriors on frames; without a CTC head it has none.
        ends_in_layer_norm: whether the hint layer's output is layer-normalised.

    Returns:
        `nonblank`, `energy` or `uniform`.

    Raises:
        TutorError: `nonblank` is set, but the teacher has no CTC head.
    """
    if asked == "nonblank" and not has_posteriors:
        raise TutorError(
            f"model.tutor.rkd.frame_weighting is nonblank, but {_NO_HEAD} and so no posteriors on frames; "
            "take energy or uniform."
        )
    if asked != "auto":
        return asked
    if not ends_in_layer_norm:
        return "energy"
    return "nonblank" if has_posteriors else "uniform"  # energy is nearly constant after a LayerNorm


def _no_warm_start(student: Any, teacher: Teacher, guided: Layer, hint: Layer) -> str | None:
    last = teacher.encoder_layer.path  # the layer that the teacher's CTC head reads
    if guided.path != ENCODER or hint.path != last:
        output = "the encoder's output" if last == ENCODER else "the encoder's output and the adapter"
        return f"the hint layer ({hint.path!r}) and the guided layer ({guided.path!r}) must both be {output}"
    projections = {"student": pointwise_decoder(student.decoder), "teacher": teacher.ctc_projection()}
    for owner, projection in projections.items():
        if projection is None:
            return f"the {owner}'s decoder is not a single 1x1 convolution"
    return None


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Sets a model to eval mode within the context, and then restores the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
