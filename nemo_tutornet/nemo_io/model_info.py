# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What a restored NeMo model is: its class, size, front end and labels, read without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from omegaconf import OmegaConf

from nemo_tutornet.nemo_io.restore import ctc_head, labels_of
from nemo_tutornet.nemo_io.stock_config import target_of


@dataclass(frozen=True)
class FrontEnd:
    """How audio becomes features.

    Attributes:
        sample_rate: samples per second.
        mel_bins: of its spectrogram; None where it computes something else.
        window_ms: milliseconds of audio that a feature frame sees.
        stride_ms: milliseconds from one feature frame to the next.
        normalize: NeMo's word for the normalisation, or `fixed` for a stored mean; None without one.
    """

    sample_rate: int
    mel_bins: int | None
    window_ms: float
    stride_ms: float
    normalize: str | None


@dataclass(frozen=True)
class ModelInfo:
    """The facts about one NeMo model that are known without running it.

    Attributes:
        class_name: of the object, which may be a subclass of the target.
        target: NeMo's class, from the model's config.
        parameters: their number.
        front_end: how audio becomes features.
        preprocessor: the section of the model's config, with every interpolation resolved.
        labels: what it writes, by output, without the blank; a transducer's are those of its joint network.
        label_kind: `characters` or `subwords`.
        tokenizer: NeMo's word for its type (`bpe` is SentencePiece); None for characters.
        has_ctc_head: True where it has posteriors on frames; False for a transducer.
    """

    class_name: str
    target: str
    parameters: int
    front_end: FrontEnd
    preprocessor: dict[str, Any]
    labels: tuple[str, ...]
    label_kind: str
    tokenizer: str | None
    has_ctc_head: bool

    @property
    def posterior_labels(self) -> tuple[str, ...]:
        """Labels in the order of the posterior, without the blank, which is last; none for a transducer."""
        return self.labels if self.has_ctc_head else ()

    def as_facts(self) -> dict[str, str]:
        """The facts that a person compares, in words, by name."""
        return {
            "class": self.class_name,
            "parameters": f"{self.parameters / 1e6:.2f} M ({self.parameters * 4 / 1e6:.0f} MB in fp32)",
            "front end": front_end_in_words(self.front_end.sample_rate, self.front_end.mel_bins),
            "labels": posterior_labels_in_words(len(self.labels) if self.has_ctc_head else None),
        }


def describe_model(model: Any) -> ModelInfo:
    """Reads what a model is; the model is not run and not changed.

    Args:
        model: a NeMo CTC, hybrid or transducer model.
    """
    head = ctc_head(model)
    # A character model does not read a `tokenizer` that its config still has.
    tokenizer = model.cfg.tokenizer if getattr(model, "tokenizer", None) is not None else None
    return ModelInfo(
        class_name=type(model).__name__,
        target=target_of(model.cfg),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        front_end=_front_end(model.preprocessor),
        preprocessor=cast("dict[str, Any]", OmegaConf.to_container(model.cfg.preprocessor, resolve=True)),
        labels=tuple(labels_of(model, model.joint if head is None else head)),
        label_kind="characters" if tokenizer is None else "subwords",
        tokenizer=None if tokenizer is None else str(tokenizer.get("type")),
        has_ctc_head=head is not None,
    )


def front_end_in_words(sample_rate: int, mel_bins: int | None) -> str:
    """The parts of a front end in which a teacher and its student may differ."""
    return f"{sample_rate} Hz, {'no mel spectrogram' if mel_bins is None else f'{mel_bins} mel bins'}"


def posterior_labels_in_words(labels: int | None) -> str:
    """How many labels a posterior has; None for a transducer, which has no posteriors on frames."""
    return "none on frames" if labels is None else f"{labels} and the blank"


def _front_end(preprocessor: Any) -> FrontEnd:
    sample_rate = int(preprocessor._sample_rate)
    featurizer = preprocessor.featurizer
    normalize = getattr(featurizer, "normalize", None)
    return FrontEnd(
        sample_rate=sample_rate,
        mel_bins=getattr(featurizer, "nfilt", None),
        window_ms=round(1000 * preprocessor.win_length / sample_rate, 3),
        stride_ms=round(1000 * preprocessor.hop_length / sample_rate, 3),
        normalize=normalize if normalize is None or isinstance(normalize, str) else "fixed",
    )
