# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Schema of a cache: the kinds of targets that it stores, and the arrays of a shard that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_tutornet.target_cache.codec import MOST_LABELS
from nemo_tutornet.target_cache.fingerprint import SIZE as FINGERPRINT_SIZE

MOST_FURTHER_LAYERS = 100


@dataclass(frozen=True)
class CacheSchema:
    """The kinds of targets that a cache stores for each utterance, and their encoding (see `codec`).

    Attributes:
        labels: number of labels `V` of the posteriors, blank included; None without posteriors.
        min_posterior: smallest posterior that is stored; None stores all.
        width: width `D` of the hidden vectors; None without hidden vectors.
        further_widths: widths of the hidden vectors of further hint layers (`tutor.rkd.pairs`).
        hypotheses: whether a text and its confidence are stored.
        fingerprints: whether a fingerprint of the audio is stored (see `fingerprint`). Caches of earlier
            versions have none.

    Raises:
        ValueError: a field has a wrong type or is out of range.
    """

    labels: int | None = None
    min_posterior: float | None = None
    width: int | None = None
    hypotheses: bool = False
    fingerprints: bool = False
    further_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if type(self.further_widths) is not tuple or len(self.further_widths) > MOST_FURTHER_LAYERS:
            raise ValueError("further widths are no short list")
        if self.further_widths and self.width is None:
            raise ValueError("there are further hidden vectors, and no first ones")
        if None in self.further_widths:
            raise ValueError("a further width is no size")
        for value in (self.labels, self.width, *self.further_widths):
            if value is not None and (type(value) is not int or not 0 < value < 2**31):
                raise ValueError(f"{value!r} is no size")
        if self.min_posterior is not None and (
            self.labels is None
            or self.labels > MOST_LABELS
            or type(self.min_posterior) is not float
            or not 0 < self.min_posterior < 1
        ):
            raise ValueError(f"{self.min_posterior!r} is no floor of {self.labels!r} posteriors")
        if type(self.hypotheses) is not bool or type(self.fingerprints) is not bool:
            raise ValueError("hypotheses and fingerprints are true or false")


@dataclass(frozen=True)
class Array:
    """Type and shape of one array of a shard.

    Attributes:
        dtype: name of the element type in safetensors.
        unit: name of the size in the index that counts the rows; `utterances` means one row per utterance.
        row: shape of a row.
    """

    dtype: str
    unit: str
    row: tuple[int, ...] = ()


# Maps the fields of a schema to their names in the format on disk.
_ON_DISK = {"labels": "labels", "min_posterior": "floor", "width": "width", "hypotheses": "hypotheses"}
# In addition, only where they say something, so that caches of earlier versions stay valid.
_FINGERPRINTS, _FURTHER_WIDTHS = "fingerprints", "further_widths"
NUMPY = {
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "F16": "float16",
    "U32": "uint32",
    "F32": "float32",
    "U64": "uint64",
}


def arrays_of(schema: CacheSchema) -> dict[str, Array]:
    """Lists the arrays that store the utterances of a shard.

    Args:
        schema: schema of the cache.

    Returns:
        The arrays by name, in the order in which the checksum of an utterance reads them.
    """
    arrays = {"keys": Array("U8", "key_bytes")}
    if schema.labels is not None and schema.min_posterior is None:
        arrays["log_probs"] = Array("F16", "frames", (schema.labels,))
    if schema.min_posterior is not None:
        arrays["sparse.counts"] = Array("U16", "frames")
        arrays["sparse.rest"] = Array("F16", "frames")
        arrays["sparse.ids"] = Array("U16", "entries")
        arrays["sparse.values"] = Array("F16", "entries")
    for name, width in hidden_widths(schema).items():
        arrays[f"{name}.values"] = Array("I8", f"{name}_frames", (width,))
        arrays[f"{name}.frames"] = Array("U8", f"{name}_frames")
        arrays[f"{name}.channels"] = Array("U8", "utterances", (width,))
        arrays[f"{name}.peak"] = Array("F32", "utterances")
    if schema.hypotheses:
        arrays["texts"] = Array("U8", "text_bytes")
        arrays["confidence"] = Array("F32", "utterances")  # NaN where the teacher gives no confidence
    if schema.fingerprints:
        arrays["fingerprint"] = Array("F32", "utterances", (FINGERPRINT_SIZE,))
    return arrays


def hidden_widths(schema: CacheSchema) -> dict[str, int]:
    """Lists the hint layers of which hidden vectors are stored.

    Args:
        schema: schema of the cache.

    Returns:
        The width of each layer by the first part of its arrays' names, `hidden` for the layer of
        `rkd.hint_layer`.

    Example:
        >>> hidden_widths(CacheSchema(width=4, further_widths=(8, 4)))
        {'hidden': 4, 'hidden1': 8, 'hidden2': 4}
    """
    widths = [] if schema.width is None else [schema.width, *schema.further_widths]
    return {f"hidden{i or ''}": width for i, width in enumerate(widths)}


def index_of(schema: CacheSchema) -> dict[str, str]:
    """Lists the arrays of the index of a shard; each has the shape `[U]`, with `U` utterances.

    Args:
        schema: schema of the cache.

    Returns:
        The safetensors dtypes by name, in the order in which the checksum of the index reads the arrays.
    """
    units = [array.unit for array in arrays_of(schema).values() if array.unit != "utterances"]
    sizes = dict.fromkeys(["samples", "frames", *units])
    return {"index.hash": "U64", **{f"index.{name}": "U32" for name in sizes}, "index.checksum": "U32"}


def schema_of(header: Mapping[str, Any]) -> CacheSchema:
    """Reads the schema from the content of `cache.json`.

    Args:
        header: content of `cache.json`.

    Returns:
        The schema.

    Raises:
        ValueError: the header has no valid schema.
    """
    stored = header["coding"]
    if set(stored) - {_FINGERPRINTS, _FURTHER_WIDTHS} != set(_ON_DISK.values()):
        raise ValueError("its coding is unknown")
    fields = {name: stored[key] for name, key in _ON_DISK.items()}
    further = stored.get(_FURTHER_WIDTHS, [])
    if not isinstance(further, list):
        raise ValueError("further widths are no list")
    return CacheSchema(**fields, fingerprints=stored.get(_FINGERPRINTS, False), further_widths=tuple(further))


def schema_to_disk(schema: CacheSchema) -> dict[str, Any]:
    """Converts a schema to the names of the format on disk, where it is the entry `coding`.

    Args:
        schema: schema of the cache.

    Returns:
        The values of the schema by their names on disk.
    """
    stored = {key: getattr(schema, name) for name, key in _ON_DISK.items()}
    if schema.fingerprints:
        stored[_FINGERPRINTS] = True
    if schema.further_widths:
        stored[_FURTHER_WIDTHS] = list(schema.further_widths)
    return stored
