# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversion between a teacher's targets and the arrays of a shard.

Legend: `B` utterances, `T` frames of the encoder's output, `T'` frames of the hint layer, `V` labels with the
blank last, `D` width of the hint layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_tutornet.data.utterances import Utterance, key_bytes
from nemo_tutornet.errors import TutorError
from nemo_tutornet.target_cache import codec
from nemo_tutornet.target_cache.fingerprint import SIZE
from nemo_tutornet.target_cache.schema import CacheSchema, arrays_of, hidden_widths
from nemo_tutornet.target_cache.shard import Record


@dataclass(frozen=True)
class UtteranceTargets:
    """A teacher's targets for one utterance, on the teacher's frames and without padding.

    Fields that the schema does not include are None.

    Attributes:
        samples: number of audio samples.
        frames: number of frames `T` of the encoder's output.
        log_probs: log-probabilities `[T, V]`.
        hidden: hidden vectors `[D, T']` of the hint layer.
        further_hidden: hidden vectors of the further hint layers, each `[D, T']`.
        text: the teacher's hypothesis.
        confidence: confidence of the hypothesis, 0 to 1 (`functional.frame_weighting.confidence`); None
            without a CTC head.
        fingerprint: fingerprint of the audio that the teacher read `[P]`.
    """

    samples: int
    frames: int
    log_probs: Tensor | None = None
    hidden: Tensor | None = None
    text: str | None = None
    confidence: float | None = None
    fingerprint: Tensor | None = None
    further_hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Kinds:
    """The kinds of targets that are decoded; a kind that the schema does not include is left out.

    Attributes:
        log_probs: log-probabilities.
        hidden: hidden vectors of the hint layer.
        texts: hypotheses and their confidences.
        further: which of the further hint layers, by their numbers from 0; None decodes all of them.
    """

    log_probs: bool = False
    hidden: bool = False
    texts: bool = False
    further: Sequence[int] | None = ()


EVERYTHING = Kinds(log_probs=True, hidden=True, texts=True, further=None)


@dataclass(frozen=True)
class BatchTargets:
    """A teacher's targets for a batch. Fields that the schema does not include, or that are not read, are
    None.

    Attributes:
        samples: number of audio samples of each utterance `[B]`, int64.
        lengths: valid frames `[B]` of the encoder's output, int64.
        log_probs: log-probabilities `[B, T, V]`, fp32; padded frames give the blank a probability of 1.
        hidden: hidden vectors `[B, D, T']`, fp32, padded with 0.
        further_hidden: hidden vectors of the further hint layers that are read, alike.
        texts: hypothesis of each utterance.
        confidences: confidence of each hypothesis, 0 to 1; None without a CTC head.
        fingerprints: fingerprint of the audio of each utterance `[B, P]`.
    """

    samples: Tensor
    lengths: Tensor
    log_probs: Tensor | None = None
    hidden: Tensor | None = None
    texts: list[str] | None = None
    confidences: list[float | None] | None = None
    fingerprints: Tensor | None = None
    further_hidden: tuple[Tensor, ...] = ()


def encode(utterance: Utterance, targets: UtteranceTargets, schema: CacheSchema) -> Record:
    """Encodes the targets of one utterance as arrays of a shard.

    Args:
        utterance: the utterance, for its key and for messages.
        targets: targets of the teacher; must include everything that the schema includes.
        schema: schema of the cache.

    Returns:
        The arrays by the names of `arrays_of`.

    Raises:
        TutorError: the teacher's outputs contain NaN or infinity. Log-probabilities of -inf are allowed.
    """
    record: Record = {"keys": _bytes(key_bytes(utterance))}
    if schema.labels is not None:
        assert targets.log_probs is not None and targets.log_probs.shape == (targets.frames, schema.labels)
        if not bool((targets.log_probs < math.inf).all()):
            raise _not_finite(utterance, "log-probabilities")
        if schema.min_posterior is None:
            record["log_probs"] = codec.encode_whole(targets.log_probs).numpy()
        else:
            sparse = codec.encode_sparse(targets.log_probs, schema.min_posterior)
            record["sparse.counts"] = sparse.counts.numpy()
            record["sparse.rest"] = sparse.residual_log_mass.numpy()
            record["sparse.ids"], record["sparse.values"] = sparse.ids.numpy(), sparse.values.numpy()
    hidden_vectors = (targets.hidden, *targets.further_hidden)
    # Without hint layers the schema has no widths, and the vectors are None.
    for (name, width), vectors in zip(hidden_widths(schema).items(), hidden_vectors, strict=False):
        assert vectors is not None and vectors.dim() == 2 and vectors.shape[0] == width
        if not bool((vectors.abs() < codec.MOST_HIDDEN).all()):
            raise _not_finite(utterance, "hidden vectors")
        hidden = codec.encode_hidden(vectors)
        record[f"{name}.values"], record[f"{name}.frames"] = hidden.values.numpy(), hidden.frames.numpy()
        record[f"{name}.channels"] = hidden.channels.numpy()[None]
        record[f"{name}.peak"] = np.array([hidden.peak], dtype=np.float32)
    if schema.hypotheses:
        assert targets.text is not None
        record["texts"] = _bytes(targets.text.encode("utf-8", "replace"))
        record["confidence"] = np.array(
            [math.nan if targets.confidence is None else targets.confidence], dtype=np.float32
        )
    if schema.fingerprints:
        assert targets.fingerprint is not None
        record["fingerprint"] = targets.fingerprint.numpy()[None]
    assert record.keys() == arrays_of(schema).keys()
    return record


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def _not_finite(utterance: Utterance, what: str) -> TutorError:
    return TutorError(
        f"the teacher's {what} for {utterance} are not finite; look at that audio, or run the teacher in "
        "fp32 "
        f"(model.tutor.teacher.precision=fp32)."
    )


def validate_record(record: Record, schema: CacheSchema) -> bool:
    """Checks that the arrays of an utterance can be decoded.

    Correct checksums are not enough, because a forged cache can have correct checksums.

    Args:
        record: arrays of one utterance.
        schema: schema of the cache.

    Returns:
        True if sparse counts and ids are in range, and every float except the confidence is finite.
    """
    if schema.min_posterior is not None:
        assert schema.labels is not None
        counts = record["sparse.counts"].astype(np.int64)
        if counts.sum() != len(record["sparse.ids"]) or (counts < 1).any() or (counts > schema.labels).any():
            return False
        if (record["sparse.ids"] >= schema.labels).any():
            return False
    return all(
        np.isfinite(record[name]).all()
        for name in record
        if name != "confidence" and record[name].dtype.kind == "f"
    )


def decode(
    records: Sequence[Record],
    samples: Sequence[int],
    frames: Sequence[int],
    schema: CacheSchema,
    kinds: Kinds = EVERYTHING,
) -> BatchTargets:
    """Decodes the arrays of several utterances into the targets of a batch.

    Args:
        records: arrays of each utterance, already checked.
        samples: number of audio samples of each utterance.
        frames: number of frames of each utterance in the encoder's output.
        schema: schema of the cache.
        kinds: what to decode. Fingerprints always are.

    Returns:
        The targets, padded, on the CPU.
    """
    texts = confidences = None
    if schema.hypotheses and kinds.texts:
        texts = [record["texts"].tobytes().decode("utf-8", "replace") for record in records]
        values = [float(record["confidence"][0]) for record in records]
        confidences = [None if math.isnan(value) else value for value in values]
    fingerprints = None
    if schema.fingerprints:
        stored = [record["fingerprint"] for record in records]
        fingerprints = torch.from_numpy(np.concatenate([np.zeros((0, SIZE), np.float32), *stored]))
    layers = list(hidden_widths(schema).items())
    further = range(1, len(layers)) if kinds.further is None else [1 + i for i in kinds.further]
    return BatchTargets(
        samples=torch.tensor(samples, dtype=torch.long),
        lengths=torch.tensor(frames, dtype=torch.long),
        log_probs=_log_probs(records, frames, schema) if kinds.log_probs else None,
        hidden=_hidden(records, *layers[0]) if kinds.hidden and layers else None,
        texts=texts,
        confidences=confidences,
        fingerprints=fingerprints,
        further_hidden=tuple(_hidden(records, *layers[i]) for i in further),
    )


def _log_probs(records: Sequence[Record], frames: Sequence[int], schema: CacheSchema) -> Tensor | None:
    if schema.labels is None:
        return None
    blank = np.full(schema.labels, codec.MIN_LOG_PROB, dtype=np.float32)
    blank[-1] = 0.0
    if schema.min_posterior is None:
        coded = np.empty((len(records), max(frames, default=0), schema.labels), dtype=np.float16)
        for row, record, length in zip(coded, records, frames, strict=True):
            row[:length], row[length:] = record["log_probs"], blank
        return codec.decode_whole(torch.from_numpy(coded))
    log_probs = torch.empty(len(records), max(frames, default=0), schema.labels)
    for i, (record, length) in enumerate(zip(records, frames, strict=True)):
        parts = (torch.from_numpy(record[f"sparse.{name}"]) for name in ("counts", "ids", "values", "rest"))
        codec.decode_sparse(codec.SparsePosteriors(*parts), schema.labels, out=log_probs[i, :length])
        log_probs[i, length:] = torch.from_numpy(blank)
    return log_probs


def _hidden(records: Sequence[Record], name: str, width: int) -> Tensor:
    lengths = [len(record[f"{name}.values"]) for record in records]
    hidden = torch.empty(len(records), width, max(lengths, default=0))
    for i, (record, length) in enumerate(zip(records, lengths, strict=True)):
        coded = codec.CodedHidden(
            values=torch.from_numpy(record[f"{name}.values"]),
            channels=torch.from_numpy(record[f"{name}.channels"][0]),
            frames=torch.from_numpy(record[f"{name}.frames"]),
            peak=float(record[f"{name}.peak"][0]),
        )
        codec.decode_hidden(coded, out=hidden[i, :, :length])
        hidden[i, :, length:] = 0.0
    return hidden
